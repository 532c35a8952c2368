"""LoRA files: put into a diffusers pipeline by peft, and told as they are at the moment of a recording."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from toushi.probe.base.errors import ToushiError


class BadLora(ToushiError):
    """A LoRA file that cannot be read, or that was made for another model."""


def put_in(pipeline, loras: Sequence[tuple[Path, float]]) -> None:
    """Loads the files and turns them on, each with its scale. A file that does not fit entirely is refused."""
    files: dict[str, dict[str, str]] = {}
    for number, (file, _) in enumerate(loras):
        adapter = _name(file, number)
        _load(pipeline, file, adapter)
        files[adapter] = {"file": file.name, "sha256": sha256(file)}
    if loras:
        pipeline.set_adapters(list(files), adapter_weights=[scale for _, scale in loras])
        pipeline.lora_files = files


def _load(pipeline, file: Path, adapter: str) -> None:
    kind = type(pipeline).__name__
    if not hasattr(pipeline, "load_lora_weights"):
        raise BadLora(f"a {kind} takes no LoRA in diffusers; leave {file.name} out")
    try:
        found = pipeline.lora_state_dict(str(file.parent), weight_name=file.name)
        weights = found[0] if isinstance(found, tuple) else found
        wanted = [name for name in weights if "lora" in name]
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=adapter)
        said = ""
    except Exception as error:  # peft, diffusers and safetensors each have errors of their own
        wanted, said = [], f" ({' '.join(str(error).split())[:120]})"
    placed = sum(
        f".{adapter}." in f"{name}."
        for part in pipeline.components.values()
        if isinstance(part, nn.Module)
        for name, _ in part.named_parameters()
    )
    if not wanted or placed != len(wanted):
        some = f": of its {len(wanted)} weights {placed} have a place in it" if wanted else said
        raise BadLora(
            f"the LoRA {file.name} does not fit this {kind}{some}. Take a LoRA that was made for this very model, or "
            "leave it out."
        )


def _name(file: Path, number: int) -> str:
    """A module's name may not have a dot, and two files may be called alike."""
    return f"{number}_{''.join(c if c.isalnum() else '_' for c in file.stem)}"


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def loras_of(model) -> list[dict[str, Any]]:
    """Every LoRA that is in the model, as it is now: name, file and sha256 if we loaded it, scale, whether it is on,
    and in which parts of the model. Several scales of one LoRA, which peft allows, are told as a list."""
    peft = sys.modules.get("peft.tuners.tuners_utils")  # to import it takes seconds, and who put a LoRA in has done so
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
