"""The options of loading, alike in every command that loads a model."""

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.load_options import LoadOptions


@dataclass(frozen=True)
class Loads:
    """A command that loads a model."""

    loading: tyro.conf.OmitArgPrefixes[LoadOptions] = field(default_factory=LoadOptions)
    medvram: Annotated[bool, tyro.conf.arg(help="Another name for --offload model.")] = False
    lowvram: Annotated[bool, tyro.conf.arg(help="Another name for --offload sequential.")] = False

    def chosen(self) -> LoadOptions:
        """What was asked for, with a device that is here."""
        if self.medvram and self.lowvram:
            raise ToushiError("--medvram and --lowvram are two ways of offload; take one of them")
        way = "model" if self.medvram else "sequential" if self.lowvram else self.loading.offload
        if self.loading.offload not in ("none", way):
            name = "--medvram" if self.medvram else "--lowvram"
            raise ToushiError(f"{name} means --offload {way}, but --offload {self.loading.offload} came too; take one")
        return replace(self.loading, offload=way, device=checked_device(self.loading.device))


def checked_device(device: str | None) -> str | None:
    if device is None:
        return None
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.partition(":")[0], False):
        have = ", ".join(name for name, is_there in there.items() if is_there)
        raise ToushiError(f"there is no device {device!r} here; there is {have}")
    kind, _, number = device.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if number and not (number.isdecimal() and int(number) < count):
        raise ToushiError(f"there is no device {device!r} here; {kind} has the numbers 0 to {count - 1}")
    return device
