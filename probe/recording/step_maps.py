"""The maps of one step: one entry for each site, of all rows of the batch together.

Nothing loops over rows before the copy to the CPU, so that a GPU starts as much work for sixty-four pictures as for one.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from toushi.hooks.kernels import index_of
from toushi.probe.recording.host_copy import copy_to_host, row_of
from toushi.probe.recording.policy import KeptColumns
from toushi.probe.session.row_matching import PromptKey
from toushi.probe.trace.step_array import StepArray


class ColumnPlan(NamedTuple):
    """Which text columns are computed for several rows together, and which of these each row keeps."""

    computed: slice
    single: list[int]  # those that some row keeps one by one, counted from the first computed one
    pads: list[tuple[int, ...]]  # of each row, those that it keeps as their sum, counted likewise
    places: list[list[int]]  # of each row, its own places among `single` and, behind them, the sum over its pads

    @classmethod
    def of(cls, rows: Sequence[KeptColumns]) -> "ColumnPlan":
        """The plan for rows that keep these columns."""
        needed = [column for kept in rows for column in (*kept.single, *kept.pads)]
        first, end = (min(needed), max(needed) + 1) if needed else (0, 0)
        single = sorted({column for kept in rows for column in kept.single})
        place = {column: number for number, column in enumerate(single)}
        places = [[place[column] for column in kept.single] + [len(single)] * bool(kept.pads) for kept in rows]
        pads = [tuple(column - first for column in kept.pads) for kept in rows]
        return cls(slice(first, end), [column - first for column in single], pads, places)

    @property
    def has_pads(self) -> bool:
        return any(self.pads)

    def keep(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """[row, head?, place, cell] in this dtype, of the computed columns [row, head?, column, cell]."""
        kept = values[..., index_of(self.single, values.device), :]
        if self.has_pads:
            mask = _pad_mask(tuple(self.pads), values.shape[-2], values.device, values.dtype)
            mask = mask.unflatten(0, (-1, *[1] * (values.dim() - 3)))
            kept = torch.cat([kept, (values * mask).sum(-2, keepdim=True)], -2)
        return kept.to(dtype)


@lru_cache(16)
def _pad_mask(pads: tuple[tuple[int, ...], ...], columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[row, column, 1]: 1 at the pads of each row, 0 elsewhere."""
    with torch.inference_mode(False):
        mask = torch.zeros(len(pads), columns, 1, dtype=dtype)
        for row, of_row in enumerate(pads):
            mask[row, list(of_row)] = 1
        return mask.to(device)


class Maps(NamedTuple):
    """The maps of one site in one evaluation."""

    site: str
    rows: list[PromptKey]  # the prompt of each
    places: list[list[int]] | None  # of each row, those of `values` that are its own; None: all
    values: Tensor  # [row, head?, place, cell]
    rest: Tensor | None  # [row, head?, cell]: in joint attention the mass that goes to no text column

    def convert(self, dtype: torch.dtype, mean: bool) -> "Maps":
        """The same maps in another dtype. With `mean` averaged over the heads, which must be there."""

        def convert(tensor: Tensor) -> Tensor:
            return (tensor.mean(1) if mean else tensor).to(dtype)

        return self._replace(values=convert(self.values), rest=None if self.rest is None else convert(self.rest))


class StepTensor(NamedTuple):
    """One tensor of a step, of all rows of the batch."""

    key: Callable[[str], str]  # branch -> its name in the trace
    rows: list[PromptKey]
    places: (
        list[list[int]] | None
    )  # of each row, the token places that are its own; None: all, or there is no such axis
    values: Tensor  # [row, …]


def arrays_of_pictures(tensors: Sequence[StepTensor], pictures: int) -> list[dict[str, StepArray]]:
    """The arrays of each picture, by name. They may still be on their way from a GPU."""
    arrays: list[dict[str, StepArray]] = [{} for _ in range(pictures)]
    for tensor, batch in zip(tensors, copy_to_host([tensor.values for tensor in tensors])):
        for number, (branch, picture) in enumerate(tensor.rows):
            places = None if tensor.places is None else tensor.places[number]
            arrays[picture][tensor.key(branch)] = row_of(batch, number, places)
    return arrays
