"""The maps of one step: one entry for each site and group of rows."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from toushi.hooks.kernels import index_of
from toushi.probe.recording.policy import KeptColumns
from toushi.probe.session.row_matching import PromptKey


class RowColumns(NamedTuple):
    """The kept columns of one row, counted in a range of columns that several rows share."""

    single: list[int]
    pads: list[int] | None


def column_range(columns: Sequence[KeptColumns]) -> tuple[slice, list[RowColumns]]:
    """The range of columns that all rows need together, and each row's own columns in it."""
    needed = [column for kept in columns for column in (*kept.single, *kept.pads)]
    first, last = (min(needed), max(needed) + 1) if needed else (0, 0)

    def in_range(columns: list[int]) -> list[int]:
        return [column - first for column in columns]

    rows = [RowColumns(in_range(kept.single), in_range(kept.pads) if kept.pads else None) for kept in columns]
    return slice(first, last), rows


class Maps(NamedTuple):
    """The maps of one site in one evaluation."""

    site: str
    rows: list[tuple[int, PromptKey]]  # row of the batch, and its prompt
    columns: list[RowColumns] | None  # of each row, in those of `values`; None: all
    values: Tensor  # [row, head?, column, cell]
    rest: Tensor | None  # [row, head?, cell]: in joint attention the mass that goes to no text column

    def sum_pads(self, dtype: torch.dtype) -> "list[Maps]":
        """The same maps. If rows have pads, each row by itself and in this dtype: its single columns, then the sum over
        its pads."""
        if self.columns is None or all(columns.pads is None for columns in self.columns):
            return [self]
        split = []
        for number, (row, columns) in enumerate(zip(self.rows, self.columns)):
            values = self.values[number]
            parts = [values[..., index_of(columns.single, values.device), :]]
            if columns.pads is not None:
                parts.append(values[..., index_of(columns.pads, values.device), :].sum(-2, keepdim=True))
            rest = None if self.rest is None else self.rest[number : number + 1]
            split.append(Maps(self.site, [row], None, torch.cat(parts, -2).to(dtype)[None], rest))
        return split

    def convert(self, dtype: torch.dtype, mean: bool) -> "Maps":
        """The same maps in another dtype. With `mean` averaged over the heads, which must be there."""

        def convert(tensor: Tensor) -> Tensor:
            return (tensor.mean(1) if mean else tensor).to(dtype)

        return self._replace(values=convert(self.values), rest=None if self.rest is None else convert(self.rest))
