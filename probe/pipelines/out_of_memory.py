"""Out of memory, said in one line: which setting to change."""

from contextlib import contextmanager

import torch

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.load_options import Loading

SIGNS = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory", "out of memory")


class OutOfMemory(ToushiError):
    """What was asked for does not fit here; the message says which settings need less."""


def out_of_memory(error: BaseException) -> bool:
    """Whether this is what an allocator says when there is no more. The CPU's has no exception of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextmanager
def enough_memory(what: str, loading: Loading | None, size: tuple[int, int] | None = None):
    """Turns running out of memory inside into OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(
            f"there is not enough memory for {what}: {'; or '.join(advice(loading or Loading(), size))}. "
            "`toushi doctor MODEL` says what fits here."
        ) from error


def advice(loading: Loading, size: tuple[int, int] | None) -> list[str]:
    """Settings that need less memory than these, what costs least first."""
    given = []
    on_cpu = (loading.device or "cpu").partition(":")[0] == "cpu"
    if not on_cpu and loading.offload != "sequential":
        further = {"none": "model", "model": "group", "group": "sequential"}[loading.offload]
        given.append(f"take --offload {further} (now {loading.offload})")
    if loading.dtype in (None, "fp32"):
        given.append(f"take --dtype bf16 (now {loading.dtype or 'fp32'})")
    if size is not None:
        given.append(f"draw smaller, such as --size {_half(size[0])}x{_half(size[1])} (now {size[0]}x{size[1]})")
        if not loading.vae_tiling:
            given.append("add --vae-tiling")
    if loading.quantize is None and not on_cpu:
        given.append("take --quantize 4bit")
    return given or ["take a smaller model, or a machine with more memory"]


def _half(pixels: int) -> int:
    return max(16, pixels // 2 // 16 * 16)
