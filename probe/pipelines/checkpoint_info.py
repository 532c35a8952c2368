"""What a model's folder holds, part by part, without its weights: from configs, index files and safetensors headers.

Parts are built on torch's meta device, where a tensor has a shape and no memory, so that a folder of configs alone
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
class Part:
    """A part of a model that has weights. Counts are of parameters, None where the folder does not tell."""

    name: str
    kind: str
    parameters: int | None
    stored: int | None  # bytes on disk, of the files as they were published
    known: tuple[str, ...]  # where from: "headers", "index", "config"
    missing: int  # weight files that are named but not here
    block: int | None = None  # the largest of its repeated blocks
    beside: int | None = None  # what is outside of its repeated blocks
    layer: int | None = None  # the largest layer


@dataclass(frozen=True)
class Opened:
    """A diffusers pipeline without weights. `pipeline` is None where its class could not be built from configs."""

    folder: Path
    kind: str
    pipeline: Any
    parts: tuple[Part, ...]
    unknown: dict[str, str]  # part -> why nothing is known of it


def opened(folder: Path) -> Opened:
    """What the folder of a diffusers pipeline says of it."""
    import diffusers

    from toushi.probe.pipelines.load import without_advice

    index = listed(folder)
    components: dict[str, Any] = {}
    parts, unknown = [], {}
    with without_advice():
        for name, (library, kind) in index.items():
            if library is None or kind is None:
                components[name] = None
                continue
            try:
                components[name] = skeleton(folder / name, library, kind)
            except Exception as error:  # each library fails in its own ways
                components[name], unknown[name] = None, f"{kind}: {' '.join(str(error).split())[:100]}"
            if isinstance(components[name], nn.Module) or list((folder / name).glob("*.safetensors*")):
                parts.append(part(folder / name, name, kind, components[name]))
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
        try:
            given = components | ({"requires_safety_checker": False} if "safety_checker" in components else {})
            pipeline = getattr(diffusers, kind)(**given)
        except Exception as error:
            pipeline, unknown["pipeline"] = None, f"{kind}: {' '.join(str(error).split())[:100]}"
    return Opened(folder, kind, pipeline, tuple(parts), unknown)


def listed(folder: Path) -> dict[str, tuple[str | None, str | None]]:
    """Of each part the library and the class, as model_index.json lists them."""
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
    """A part from its configs alone; a module is on the meta device."""
    if library not in ("diffusers", "transformers"):
        known = importlib.util.find_spec(f"diffusers.pipelines.{library}") if library.isidentifier() else None
        if known is None:
            raise ToushiError(f"it is made by {library}, whose code is not run here")
    home = importlib.import_module(
        library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    )
    made = getattr(home, kind)
    if not issubclass(made, nn.Module):
        return made.from_pretrained(folder, local_files_only=True)
    if hasattr(made, "load_config"):
        config = made.load_config(folder, local_files_only=True)
        with torch.device("meta"):
            return made.from_config(config).to("meta").eval()
    config = made.config_class.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return made(config).to("meta").eval()  # some make tensors of their own, elsewhere


def part(folder: Path, name: str, kind: str, module: Any) -> Part:
    files, named = weight_files(folder)
    counted = stored = None
    known = []
    if files and len(files) == len(named):
        counted, stored = of_headers(files)
        known.append("headers")
    elif index := next(iter(sorted(folder.glob("*.safetensors.index.json"))), None):
        stored = json.loads(index.read_text(encoding="utf-8")).get("metadata", {}).get("total_size")
        known.append("index")
    sizes: dict[str, int | None] = {"block": None, "beside": None, "layer": None}
    if isinstance(module, nn.Module):
        whole, sizes = of_modules(module)
        counted = counted or whole
        known.append("config")
    elif counted is None and stored is not None:
        counted = stored // bytes_of_config(folder)
    return Part(name, kind, counted, stored, tuple(known), len(named) - len(files), **sizes)


def weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The weight files that are here, and the names of those that there should be."""
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is not None:
        names = shards(index)
    else:
        found = sorted(path.name for path in folder.glob(WEIGHTS))
        usual = [name for name in ("diffusion_pytorch_model.safetensors", "model.safetensors") if name in found]
        names = usual[:1] or found[:1] or ["model.safetensors"]  # other files are variants of the same weights
    return [folder / name for name in names if (folder / name).is_file()], names


def of_headers(files: list[Path]) -> tuple[int, int]:
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


def of_modules(module: nn.Module) -> tuple[int, dict[str, int | None]]:
    """Parameters of the whole; of the largest repeated block, of what is outside of blocks, of the largest layer."""
    whole = sum(weight.numel() for weight in module.parameters())
    blocks = [block for child in module.children() if isinstance(child, nn.ModuleList) for block in child]
    sizes = [sum(weight.numel() for weight in block.parameters()) for block in blocks]
    layers = [sum(weight.numel() for weight in layer.parameters(recurse=False)) for layer in module.modules()]
    return whole, {
        "block": max(sizes, default=None),
        "beside": whole - sum(sizes) if sizes else None,
        "layer": max(layers),
    }


def bytes_of_config(folder: Path) -> int:
    """Of one number, as the config says that it is stored."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 4
    return 2 if str(config.get("torch_dtype") or config.get("dtype")) in ("bfloat16", "float16") else 4


def needed(parts: Mapping[str, Part], denoiser: str, way: str, dtype: str) -> int | None:
    """Bytes of weights that the device holds at once. None where the folder does not tell.

    With model offload the largest part; with group offload the denoiser's largest block twice, for the next one is on
    its way, and what is beside its blocks; with sequential offload the largest layer.
    """
    if any(part.parameters is None for part in parts.values()) or not parts:
        return None
    whole = {name: weight_bytes(part, name, denoiser, dtype) for name, part in parts.items()}
    if way == "none":
        return sum(whole.values())
    if way == "model":
        return max(whole.values())
    most = []
    for name, part in parts.items():
        if part.layer is None:
            return None
        each = whole[name] / max(1, part.parameters or 0)
        blocks = way == "group" and name == denoiser and part.block is not None
        count = (part.beside or 0) + 2 * (part.block or 0) if blocks else part.layer * (2 if way == "group" else 1)
        most.append(int(min(count * each, whole[name])))
    return max(most)


BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}


def weight_bytes(part: Part, name: str, denoiser: str, dtype: str) -> int:
    """In memory. "4bit" is bf16 with the denoiser and the text encoders in 4 bits, and half a bit of scales."""
    small = dtype == "4bit" and (name == denoiser or name.startswith("text_encoder"))
    return int((part.parameters or 0) * (0.5625 if small else BYTES.get(dtype, 2.0)))
