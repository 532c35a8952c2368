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
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.load import UnknownModel, shards

WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class ComponentInfo:
    """A component that has weights. Numbers are parameters; None where the folder does not tell."""

    name: str
    kind: str  # its class
    parameters: int | None
    stored: int | None  # bytes of its weight files
    known: tuple[str, ...]  # sources of these numbers: "headers", "index", "config"
    missing: int  # weight files that an index names and that are not here
    block: int | None = None  # of the largest of its repeated blocks
    beside: int | None = None  # of everything outside its repeated blocks
    layer: int | None = None  # of the largest layer


@dataclass(frozen=True)
class PipelineInfo:
    """A diffusers pipeline without weights. `pipeline` is None where its class could not be built from configs."""

    folder: Path
    kind: str
    pipeline: Any
    parts: tuple[ComponentInfo, ...]
    unknown: dict[str, str]  # component -> why nothing is known of it


def read_pipeline_info(folder: Path) -> PipelineInfo:
    """The pipeline of a folder, without its weights. Raises UnknownModel if the folder holds none."""
    import diffusers

    from toushi.probe.pipelines.load import quiet_library_logs

    index = component_classes(folder)
    components: dict[str, Any] = {}
    parts, unknown = [], {}
    with quiet_library_logs():
        for name, (library, kind) in index.items():
            if library is None or kind is None:
                components[name] = None
                continue
            try:
                components[name] = skeleton(folder / name, library, kind)
            except Exception as error:  # each library fails in its own ways
                components[name], unknown[name] = None, f"{kind}: {' '.join(str(error).split())[:100]}"
            if isinstance(components[name], nn.Module) or list((folder / name).glob("*.safetensors*")):
                parts.append(component_info(folder / name, name, kind, components[name]))
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
        try:
            more = {"requires_safety_checker": False} if "safety_checker" in components else {}
            pipeline = getattr(diffusers, kind)(**components, **more)
        except Exception as error:
            pipeline, unknown["pipeline"] = None, f"{kind}: {' '.join(str(error).split())[:100]}"
    return PipelineInfo(folder, kind, pipeline, tuple(parts), unknown)


def component_classes(folder: Path) -> dict[str, tuple[str | None, str | None]]:
    """Library and class of each component, as model_index.json lists them."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        if not isinstance(index["_class_name"], str):
            raise TypeError("_class_name is no name")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnknownModel(
            f"{folder} is no folder with a diffusers pipeline ({error} in model_index.json): download it again"
        ) from None
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and Path(name).name == name
    }


def skeleton(folder: Path, library: str, kind: str) -> Any:
    """A component from its configs alone; a module is on the meta device."""
    if library not in ("diffusers", "transformers"):
        spec = importlib.util.find_spec(f"diffusers.pipelines.{library}") if library.isidentifier() else None
        if spec is None:
            raise ToushiError(f"it is made by {library}, whose code is not run here")
    module = importlib.import_module(
        library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    )
    component: Any = getattr(module, kind)
    if not issubclass(component, nn.Module):
        return component.from_pretrained(folder, local_files_only=True)
    # `.to("meta")`: some models make tensors on a device of their own choice.
    if hasattr(component, "load_config"):
        config = component.load_config(folder, local_files_only=True)
        with torch.device("meta"):
            return component.from_config(config).to("meta").eval()
    config = component.config_class.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return component(config).to("meta").eval()


def component_info(folder: Path, name: str, kind: str, module: Any) -> ComponentInfo:
    """Of one component, by the best source that is there: file headers, then the index file, then the config."""
    files, names = weight_files(folder)
    parameters = stored = None
    known = []
    if files and len(files) == len(names):
        parameters, stored = count_in_headers(files)
        known.append("headers")
    elif index := next(iter(sorted(folder.glob("*.safetensors.index.json"))), None):
        stored = json.loads(index.read_text(encoding="utf-8")).get("metadata", {}).get("total_size")
        known.append("index")
    sizes: dict[str, int | None] = {"block": None, "beside": None, "layer": None}
    if isinstance(module, nn.Module):
        whole, sizes = count_in_module(module)
        parameters = parameters or whole
        known.append("config")
    elif parameters is None and stored is not None:
        parameters = stored // bytes_of_number(folder)
    return ComponentInfo(name, kind, parameters, stored, tuple(known), len(names) - len(files), **sizes)


def weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The weight files that are in the folder, and the names of all that should be."""
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is not None:
        names = shards(index)
    else:
        present = sorted(path.name for path in folder.glob(WEIGHTS))
        usual = [name for name in ("diffusion_pytorch_model.safetensors", "model.safetensors") if name in present]
        names = usual[:1] or present[:1] or ["model.safetensors"]  # other files are variants of the same weights
    return [folder / name for name in names if (folder / name).is_file()], names


def count_in_headers(files: list[Path]) -> tuple[int, int]:
    """Parameters and bytes of weight files; only their headers are read."""
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
    """Parameters of the whole module, and `block`, `beside` and `layer` of ComponentInfo."""
    whole = sum(weight.numel() for weight in module.parameters())
    blocks = [block for child in module.children() if isinstance(child, nn.ModuleList) for block in child]
    sizes = [sum(weight.numel() for weight in block.parameters()) for block in blocks]
    layers = [sum(weight.numel() for weight in layer.parameters(recurse=False)) for layer in module.modules()]
    return whole, {
        "block": max(sizes, default=None),
        "beside": whole - sum(sizes) if sizes else None,
        "layer": max(layers),
    }


def bytes_of_number(folder: Path) -> int:
    """Bytes of one stored number, by the config's dtype."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 4
    return 2 if str(config.get("torch_dtype") or config.get("dtype")) in ("bfloat16", "float16") else 4


def needed_bytes(parts: Mapping[str, ComponentInfo], denoiser: str, way: str, dtype: str) -> int | None:
    """Bytes of weights that the device holds at once. None where the folder does not tell.

    `way` is the offload. "model": the largest component. "group": the denoiser's largest block twice, since the next
    block is on its way, and everything outside the blocks. "sequential": the largest layer.
    """
    if any(part.parameters is None for part in parts.values()) or not parts:
        return None
    whole = {name: weight_bytes(part, name, denoiser, dtype) for name, part in parts.items()}
    if way == "none":
        return sum(whole.values())
    if way == "model":
        return max(whole.values())
    largest = []
    for name, part in parts.items():
        if part.layer is None:
            return None
        each = whole[name] / max(1, part.parameters or 0)
        blocks = way == "group" and name == denoiser and part.block is not None
        count = (part.beside or 0) + 2 * (part.block or 0) if blocks else part.layer * (2 if way == "group" else 1)
        largest.append(int(min(count * each, whole[name])))
    return max(largest)


BYTES_OF_DTYPE = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}


def weight_bytes(part: ComponentInfo, name: str, denoiser: str, dtype: str) -> int:
    """Bytes in memory. "4bit" is bf16 with denoiser and text encoders in 4 bits, and half a bit for their scales."""
    small = dtype == "4bit" and (name == denoiser or name.startswith("text_encoder"))
    return int((part.parameters or 0) * (0.5625 if small else BYTES_OF_DTYPE.get(dtype, 2.0)))
