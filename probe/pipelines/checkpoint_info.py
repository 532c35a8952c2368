"""What a pipeline's folder holds, by its configs, index files and safetensors headers. No weights are loaded.

Components are built on torch's meta device, where a tensor has a shape and no memory. So a folder of configs alone
tells how many parameters there are and which attention can be recorded.
"""

import importlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.load import quiet_library_logs
from toushi.probe.pipelines.model_index import UnknownModel, read_model_index, weight_files

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline


@dataclass(frozen=True)
class ComponentInfo:
    """A component that has weights. Sizes are numbers of parameters; None if the folder does not tell them."""

    name: str
    kind: str  # its class
    parameters: int | None
    stored_bytes: int | None  # of its weight files
    sources: tuple[str, ...]  # of these numbers: "headers", "index", "config"
    missing_files: int  # weight files that an index lists and that are not in the folder
    largest_block: int | None = None  # of its repeated blocks
    outside_blocks: int | None = None
    largest_layer: int | None = None


@dataclass(frozen=True)
class PipelineInfo:
    """A diffusers pipeline without weights. `pipeline` is None if its class could not be built from configs."""

    folder: Path
    kind: str
    pipeline: "DiffusionPipeline | None"
    components: tuple[ComponentInfo, ...]
    failures: dict[str, str]  # component -> why it could not be built


def read_pipeline_info(folder: Path) -> PipelineInfo:
    """The pipeline of a folder, without its weights. Raises UnknownModel if the folder has none."""
    import diffusers

    kind, classes = read_model_index(folder)
    built: dict[str, Any] = {}
    components, failures = [], {}
    with quiet_library_logs():
        for name, (library, component_kind) in classes.items():
            if library is None or component_kind is None:
                built[name] = None
                continue
            try:
                built[name] = build_without_weights(folder / name, library, component_kind)
            except Exception as error:  # each library fails in its own ways
                built[name], failures[name] = None, _failure(component_kind, error)
            if isinstance(built[name], nn.Module) or list((folder / name).glob("*.safetensors*")):
                components.append(component_info(folder / name, name, component_kind, built[name]))
        try:
            more = {"requires_safety_checker": False} if "safety_checker" in built else {}
            pipeline = getattr(diffusers, kind)(**built, **more)
        except Exception as error:
            pipeline, failures["pipeline"] = None, _failure(kind, error)
    return PipelineInfo(folder, kind, pipeline, tuple(components), failures)


def _failure(kind: str, error: Exception) -> str:
    return f"{kind}: {' '.join(str(error).split())[:100]}"


def build_without_weights(folder: Path, library: str, kind: str) -> object:
    """A component from its configs alone. A module is on the meta device."""
    if library not in ("diffusers", "transformers"):
        spec = importlib.util.find_spec(f"diffusers.pipelines.{library}") if library.isidentifier() else None
        if spec is None:
            raise ToushiError(f"it is made by {library}, whose code is not run here")
    module = importlib.import_module(
        library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    )
    component = getattr(module, kind)
    if nn.Module not in component.__mro__:
        return component.from_pretrained(folder, local_files_only=True)
    # `.to("meta")`: some models make tensors on a device of their own choice.
    if hasattr(component, "load_config"):
        config = component.load_config(folder, local_files_only=True)
        with torch.device("meta"):
            return component.from_config(config).to("meta").eval()
    config = component.config_class.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return component(config).to("meta").eval()


def component_info(folder: Path, name: str, kind: str, component: object) -> ComponentInfo:
    """Sizes of one component by the best source in its folder: file headers, then the index file, then the config."""
    files, names = weight_files(folder)
    parameters = stored_bytes = None
    sources = []
    if files and len(files) == len(names):
        parameters, stored_bytes = count_in_headers(files)
        sources.append("headers")
    elif index := next(iter(sorted(folder.glob("*.safetensors.index.json"))), None):
        stored_bytes = json.loads(index.read_text(encoding="utf-8")).get("metadata", {}).get("total_size")
        sources.append("index")
    sizes: dict[str, int | None] = {}
    if isinstance(component, nn.Module):
        total, sizes = count_in_module(component)
        parameters = parameters or total
        sources.append("config")
    elif parameters is None and stored_bytes is not None:
        parameters = stored_bytes // bytes_per_weight(folder)
    return ComponentInfo(name, kind, parameters, stored_bytes, tuple(sources), len(names) - len(files), **sizes)


def count_in_headers(files: list[Path]) -> tuple[int, int]:
    """Parameters and bytes of weight files. Only their headers are read."""
    count = size = 0
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                count += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UnknownModel(f"{file} cannot be read ({error}): download it again") from None
        size += file.stat().st_size
    return count, size


def count_in_module(module: nn.Module) -> tuple[int, dict[str, int | None]]:
    """Parameters of the whole module, and the last three fields of ComponentInfo."""
    total = sum(weight.numel() for weight in module.parameters())
    blocks = [block for child in module.children() if isinstance(child, nn.ModuleList) for block in child]
    sizes = [sum(weight.numel() for weight in block.parameters()) for block in blocks]
    layers = [sum(weight.numel() for weight in layer.parameters(recurse=False)) for layer in module.modules()]
    return total, {
        "largest_block": max(sizes, default=None),
        "outside_blocks": total - sum(sizes) if sizes else None,
        "largest_layer": max(layers),
    }


def bytes_per_weight(folder: Path) -> int:
    """Bytes of one stored number, by the dtype in the config."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 4
    return 2 if str(config.get("torch_dtype") or config.get("dtype")) in ("bfloat16", "float16") else 4


def needed_bytes(components: Mapping[str, ComponentInfo], denoiser: str, offload: str, dtype: str) -> int | None:
    """Bytes of weights that the device holds at once. None if the folder does not tell.

    Of the offloads, "model" needs the largest component; "group" the denoiser's largest block twice, since the next
    block is moved at the same time, and everything outside the blocks; "sequential" the largest layer.
    """
    if any(component.parameters is None for component in components.values()) or not components:
        return None
    total = {name: weight_bytes(component, name, denoiser, dtype) for name, component in components.items()}
    if offload == "none":
        return sum(total.values())
    if offload == "model":
        return max(total.values())
    largest = []
    for name, info in components.items():
        if info.largest_layer is None:
            return None
        if offload == "group" and name == denoiser and info.largest_block is not None:
            count = (info.outside_blocks or 0) + 2 * info.largest_block
        else:
            count = info.largest_layer * (2 if offload == "group" else 1)
        bytes_each = total[name] / max(1, info.parameters or 0)
        largest.append(int(min(count * bytes_each, total[name])))
    return max(largest)


BYTES_OF_DTYPE = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}


def weight_bytes(component: ComponentInfo, name: str, denoiser: str, dtype: str) -> int:
    """Bytes in memory. "4bit" is bf16 with denoiser and text encoders in 4 bits, and half a bit for their scales."""
    small = dtype == "4bit" and (name == denoiser or name.startswith("text_encoder"))
    return int((component.parameters or 0) * (0.5625 if small else BYTES_OF_DTYPE.get(dtype, 2.0)))
