"""An array of xarray whose values are read from the files of a trace when they are asked for."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from toushi.probe.trace.selection import refuse_large

Key = slice | np.ndarray  # what selects places of one axis


class LazyArray(BackendArray):
    """float32 [outer…, inner…], read block by block. A block holds all inner axes at one place of the outer axes.

    `read_block(place, inner)` gives the block, reduced to the places that `inner` selects of each inner axis. None
    stands for a block that the trace does not hold; its values are NaN.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outer: int,
        read_block: Callable[[tuple[int, ...], Sequence[Key]], np.ndarray | None],
    ):
        self.shape, self.dtype = shape, np.dtype(np.float32)
        self.outer, self.read_block = outer, read_block

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[int | np.integer | Key, ...]) -> np.ndarray:
        single = tuple(axis for axis, part in enumerate(key) if isinstance(part, int | np.integer))
        parts = [_from_the_start(part, size) for part, size in zip(key, self.shape)]
        places = [range(size)[part] if isinstance(part, slice) else part for part, size in zip(parts, self.shape)]
        sizes = tuple(map(len, places))
        refuse_large([sizes])
        values = None
        for at in itertools.product(*map(range, sizes[: self.outer])):
            where = tuple(int(places[axis][index]) for axis, index in enumerate(at))
            block = self.read_block(where, parts[self.outer :])
            if block is not None:
                values = np.full(sizes, np.nan, np.float32) if values is None else values
                values[at] = block
        values = np.full(sizes, np.nan, np.float32) if values is None else values
        return values.squeeze(single)


def _from_the_start(part: int | np.integer | Key, size: int) -> Key:
    """The key with places counted from the start, and a slice in place of a single place."""
    if isinstance(part, slice):
        return part
    if isinstance(part, np.ndarray):
        return np.where(part < 0, part + size, part)
    place = range(size)[part]
    return slice(place, place + 1)


def select(block: np.ndarray, keys: Sequence[Key]) -> np.ndarray:
    """The block, reduced to the places that each key selects of its axis."""
    for axis, key in enumerate(keys):
        block = block[(slice(None),) * axis + (key,)]
    return block


def lazy_variable(dims: Sequence[str], array: LazyArray, description: str) -> xr.Variable:
    """A variable of a Dataset. Its chunks, for dask and zarr, are the array's blocks."""
    chunks = (1,) * array.outer + tuple(max(1, size) for size in array.shape[array.outer :])
    encoding = {"chunks": chunks, "preferred_chunks": dict(zip(dims, chunks))}
    return xr.Variable(dims, indexing.LazilyIndexedArray(array), {"long_name": description}, encoding)
