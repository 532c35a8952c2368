"""The way of a step's tensors from the GPU to the CPU: one copy for all of them, while the GPU goes on.

A copy of its own for each map would stop the GPU sixty to a hundred times a step. So the tensors, each of a whole batch,
are packed on the GPU into one, which a stream of its own copies to pinned memory. Only the thread that writes the
arrays waits for it.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor

from toushi.probe.trace.step_array import StepArray

DTYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.uint8: np.uint8}


class GpuBatch:
    """An array [row, …] that may still be on its way: its place in a copy."""

    def __init__(self, copy: "PackedCopy", start: int, shape: tuple[int, ...], dtype: torch.dtype):
        self.copy, self.start, self.shape, self.dtype = copy, start, shape, np.dtype(DTYPES[dtype])

    def wait(self) -> np.ndarray:
        size = prod(self.shape) * self.dtype.itemsize
        return self.copy.wait()[self.start : self.start + size].view(self.dtype).reshape(self.shape)


class ArrivingRow:
    """A row of a batch that may still be on its way. `numpy.asarray` waits for it."""

    def __init__(self, batch: GpuBatch, number: int, places: list[int] | None):
        self.batch, self.number, self.places, self.dtype = batch, number, places, batch.dtype
        shape = batch.shape[1:]
        self.shape = shape if places is None else (*shape[:-3], len(places), *shape[-2:])

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(row_of(self.batch.wait(), self.number, self.places), dtype=dtype, copy=copy)


def row_of(batch: np.ndarray | GpuBatch, number: int, places: list[int] | None = None) -> StepArray:
    """One row of a batch [row, …], and of a row [head?, place, y, x] only these places."""
    if isinstance(batch, GpuBatch):
        return ArrivingRow(batch, number, places)
    row = batch[number]
    return row if places is None or places == list(range(row.shape[-3])) else row[..., places, :, :]


class PackedCopy:
    """One copy of these bytes to the CPU. It has begun when this returns."""

    def __init__(self, packed: Tensor):
        stream = _copy_stream(packed.device)
        self.host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(packed.device))
        with torch.cuda.stream(stream):
            self.host.copy_(packed, non_blocking=True)
        packed.record_stream(stream)  # its memory is not used again before the copy is done
        self.done = stream.record_event()

    def wait(self) -> np.ndarray:
        self.done.synchronize()
        return self.host.numpy()


@lru_cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def pack(tensors: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """All tensors as one of bytes, and where each begins in it. Wide numbers come first, so that all are aligned."""
    order = sorted(range(len(tensors)), key=lambda index: -tensors[index].element_size())
    starts, end = [0] * len(tensors), 0
    for index in order:
        starts[index] = end
        end += tensors[index].numel() * tensors[index].element_size()
    return torch.cat([tensors[index].contiguous().view(-1).view(torch.uint8) for index in order]), starts


def copy_to_host(tensors: Sequence[Tensor]) -> Sequence[np.ndarray | GpuBatch]:
    """The tensors as arrays: fp16, fp32 or uint8. Those of a CPU share its memory; of others all are on one device."""
    if not tensors or tensors[0].device.type != "cuda":
        return [tensor.cpu().numpy() for tensor in tensors]
    packed, starts = pack(tensors)
    copy = PackedCopy(packed)
    return [GpuBatch(copy, start, tuple(tensor.shape), tensor.dtype) for tensor, start in zip(tensors, starts)]
