"""Out of memory: one line that says which setting to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.load_options import LoadOptions

ALLOCATOR_MESSAGES = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory", "out of memory")


class OutOfMemory(ToushiError):
    """The model or the picture does not fit into memory; the message says which settings need less."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator raised this. The CPU's has no exception class of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in ALLOCATOR_MESSAGES)


@contextmanager
def explain_out_of_memory(
    what: str, loading: LoadOptions | None, size: tuple[int, int] | None = None
) -> Iterator[None]:
    """Inside the `with`, an allocator's error becomes OutOfMemory. `what` names what does not fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"there is not enough memory for {what}: {'; or '.join(memory_advice(loading or LoadOptions(), size))}. "
            "`toushi doctor MODEL` says what fits here."
        ) from error


def memory_advice(loading: LoadOptions, size: tuple[int, int] | None) -> list[str]:
    """Settings that need less memory than these, the cheapest change first."""
    settings = []
    on_cpu = (loading.device or "cpu").partition(":")[0] == "cpu"
    if not on_cpu and loading.offload != "sequential":
        mode = {"none": "model", "model": "group", "group": "sequential"}[loading.offload]
        settings.append(f"take --offload {mode} (now {loading.offload})")
    if loading.dtype in (None, "fp32"):
        settings.append(f"take --dtype bf16 (now {loading.dtype or 'fp32'})")
    if size is not None:
        settings.append(
            f"take a smaller size, such as --size {_half(size[0])}x{_half(size[1])} (now {size[0]}x{size[1]})"
        )
        if not loading.vae_tiling:
            settings.append("add --vae-tiling")
    if loading.quantize is None and not on_cpu:
        settings.append("take --quantize 4bit")
    return settings or ["take a smaller model, or a machine with more memory"]


def _half(pixels: int) -> int:
    return max(16, pixels // 2 // 16 * 16)
