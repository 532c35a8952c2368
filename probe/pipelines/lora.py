"""LoRA files: loaded into a diffusers pipeline by peft, and described as they are when a run is recorded."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from torch import Tensor, nn

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.encoder_identity import sample_digest
from toushi.probe.pipelines.family import Arguments, Model

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline


class BadLora(ToushiError):
    """A LoRA file that cannot be read, or that was made for another model."""


class LoraEntry(TypedDict):
    """Of a LoRA in the manifest."""

    name: str
    file: str | None
    sha256: str | None
    scale: float | list[float]  # a list if the layers have several, which peft allows
    on: bool
    fused: bool  # into the weights: the scale of a later call does not change it
    weights_sample_sha256: str | None  # None if its weights are not in memory
    parts: list[str]  # components with layers of it


def load_loras(pipeline: "DiffusionPipeline", loras: Sequence[tuple[Path, float]]) -> None:
    """Loads the files and turns them on, each with its scale. Raises BadLora if a weight of a file has no place."""
    files: dict[str, dict[str, str]] = {}
    for number, (file, _) in enumerate(loras):
        adapter = _adapter_name(file, number)
        _load_lora(pipeline, file, adapter)
        files[adapter] = {"file": file.name, "sha256": file_sha256(file)}
    if loras:
        pipeline.set_adapters(list(files), adapter_weights=[scale for _, scale in loras])
        pipeline.lora_files = files


def _load_lora(pipeline: "DiffusionPipeline", file: Path, adapter: str) -> None:
    kind = type(pipeline).__name__
    if not hasattr(pipeline, "load_lora_weights"):
        raise BadLora(f"a {kind} takes no LoRA in diffusers; leave {file.name} out")
    try:
        weights = pipeline.lora_state_dict(str(file.parent), weight_name=file.name)
        weights = weights[0] if isinstance(weights, tuple) else weights
        names = [name for name in weights if "lora" in name]
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=adapter)
        message = ""
    except Exception as error:  # peft, diffusers and safetensors each have errors of their own
        names, message = [], f" ({' '.join(str(error).split())[:120]})"
    placed = sum(
        f".{adapter}." in f"{name}."
        for part in pipeline.components.values()
        if isinstance(part, nn.Module)
        for name, _ in part.named_parameters()
    )
    if not names or placed != len(names):
        reason = f": {placed} of its {len(names)} weights have a place in it" if names else message
        raise BadLora(
            f"the LoRA {file.name} does not fit this {kind}{reason}. Take a LoRA that was made for this very model, or "
            "leave it out."
        )


def _adapter_name(file: Path, number: int) -> str:
    """Without dots, which a module's name may not have, and numbered, since two files may have one name."""
    return f"{number}_{''.join(c if c.isalnum() else '_' for c in file.stem)}"


def file_sha256(file: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def lora_scale(arguments: Arguments) -> float:
    """The factor by which a call of a pipeline scales every LoRA, `cross_attention_kwargs={"scale": 0.5}`, or 1."""
    names = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
    options = next((arguments[name] for name in names if arguments.get(name)), {})
    scale = options.get("scale", 1.0) if isinstance(options, dict) else 1.0
    return float(scale) if isinstance(scale, int | float) else 1.0


def describe_loras(model: Model, factor: float = 1.0) -> list[LoraEntry]:
    """Every LoRA of the model as it is now, its scale times `factor`. File and sha256 are known if `load` loaded it.

    A LoRA that is fused into the weights keeps the scale that it was fused with.
    """
    if "peft.tuners.lora" not in sys.modules:  # its import takes seconds; a model with a LoRA has done it
        return []
    from peft.tuners.lora import LoraLayer

    files: dict[str, dict[str, str]] = getattr(model, "lora_files", {})
    scales: dict[str, set[float]] = {}
    parts: dict[str, list[str]] = {}
    turned_on: set[str] = set()
    fused: set[str] = set()
    weights: dict[str, Tensor] = {}
    components = {"": model} if isinstance(model, nn.Module) else model.components
    for name, component in components.items():
        if not isinstance(component, nn.Module):
            continue
        weights |= {f"{name}.{path}.": weight for path, weight in component.named_parameters() if ".lora_" in path}
        for layer in component.modules():
            if not isinstance(layer, LoraLayer):
                continue
            for adapter, scaling in layer.scaling.items():
                if adapter in layer.merged_adapters:
                    fused.add(adapter)
                rank = layer.r[adapter] ** (0.5 if layer.use_rslora.get(adapter, False) else 1)
                scale = scaling * rank / layer.lora_alpha[adapter] * (1 if adapter in layer.merged_adapters else factor)
                scales.setdefault(adapter, set()).add(round(scale, 6))
                if name and name not in parts.setdefault(adapter, []):
                    parts[adapter].append(name)
                if adapter in layer.active_adapters and not layer.disable_adapters:
                    turned_on.add(adapter)
    return [
        LoraEntry(
            name=adapter,
            file=files.get(adapter, {}).get("file"),
            sha256=files.get(adapter, {}).get("sha256"),
            scale=sorted(each) if len(each) > 1 else min(each),
            on=adapter in turned_on | fused,
            fused=adapter in fused,
            weights_sample_sha256=sample_digest(entry for entry in weights.items() if f".{adapter}." in entry[0]),
            parts=parts.get(adapter, []),
        )
        for adapter, each in scales.items()
    ]
