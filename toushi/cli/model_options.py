"""The options of every command that loads a model."""

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.load_options import LoadOptions


@dataclass(frozen=True)
class Loads:
    """Base of a command that loads a model."""

    loading: tyro.conf.OmitArgPrefixes[LoadOptions] = field(default_factory=LoadOptions)
    medvram: Annotated[bool, tyro.conf.arg(help="The same as --offload model.")] = False
    lowvram: Annotated[bool, tyro.conf.arg(help="The same as --offload sequential.")] = False

    def checked_loading(self) -> LoadOptions:
        """The options of loading. Raises ToushiError if they contradict each other or the device is not here."""
        if self.medvram and self.lowvram:
            raise ToushiError("--medvram and --lowvram are two kinds of offload; use one of them")
        way = "model" if self.medvram else "sequential" if self.lowvram else self.loading.offload
        if self.loading.offload not in ("none", way):
            name = "--medvram" if self.medvram else "--lowvram"
            raise ToushiError(f"{name} means --offload {way}, but --offload {self.loading.offload} came, too; use one")
        return replace(self.loading, offload=way, device=checked_device(self.loading.device))


def checked_device(device: str | None) -> str | None:
    if device is None:
        return None
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.partition(":")[0], False):
        have = ", ".join(name for name, is_there in there.items() if is_there)
        raise ToushiError(f"there is no device {device!r} here; there is: {have}")
    kind, _, number = device.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if number and not (number.isdecimal() and int(number) < count):
        raise ToushiError(f"there is no device {device!r} here; {kind} devices have the numbers 0 to {count - 1}")
    return device
