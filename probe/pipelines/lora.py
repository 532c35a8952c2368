"""LoRA files: loaded into a diffusers pipeline by peft, and described as they are at the moment of a recording."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from toushi.probe.base.errors import ToushiError


class BadLora(ToushiError):
    """A LoRA file that cannot be read, or that was made for another model."""


def load_loras(pipeline, loras: Sequence[tuple[Path, float]]) -> None:
    """Loads the files and turns them on, each with its scale. Raises BadLora for a file that does not fit entirely."""
    files: dict[str, dict[str, str]] = {}
    for number, (file, _) in enumerate(loras):
        adapter = _adapter_name(file, number)
        _load_lora(pipeline, file, adapter)
        files[adapter] = {"file": file.name, "sha256": sha256(file)}
    if loras:
        pipeline.set_adapters(list(files), adapter_weights=[scale for _, scale in loras])
        pipeline.lora_files = files


def _load_lora(pipeline, file: Path, adapter: str) -> None:
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


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def loras_of(model) -> list[dict[str, Any]]:
    """Every LoRA of the model as it is now: name, file and sha256 if `load` loaded it, scale, whether it is on, and in
    which components. The scale is a list where one LoRA has several, which peft allows."""
    peft = sys.modules.get("peft.tuners.tuners_utils")  # its import takes seconds; a model with a LoRA has done it
    if peft is None:
        return []
    known, found = getattr(model, "lora_files", {}), {}
    parts = {"": model} if isinstance(model, nn.Module) else getattr(model, "components", {})
    for part, component in parts.items():
        for layer in component.modules() if isinstance(component, nn.Module) else ():
            if not isinstance(layer, peft.BaseTunerLayer):
                continue
            for adapter, scaling in getattr(layer, "scaling", {}).items():
                own = found.setdefault(adapter, {"scales": set(), "on": False, "parts": []})
                if part and part not in own["parts"]:
                    own["parts"].append(part)
                active = adapter in layer.active_adapters and not layer.disable_adapters
                merged = adapter in layer.merged_adapters
                own["on"] |= active or merged
                rank = layer.r[adapter] ** (0.5 if layer.use_rslora.get(adapter, False) else 1)
                own["scales"].add(round(scaling * rank / layer.lora_alpha[adapter], 6))
    return [
        {
            "name": adapter,
            **known.get(adapter, {"file": None, "sha256": None}),
            "scale": scales[0] if len(scales := sorted(own["scales"])) == 1 else scales,
            "on": own["on"],
            "parts": own["parts"],
        }
        for adapter, own in found.items()
    ]
