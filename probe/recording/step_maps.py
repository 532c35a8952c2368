"""The maps of one step as they are read: one entry for each site and group of rows."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from toushi.probe.recording.policy import KeptColumns
from toushi.probe.session.row_matching import Place


class RowColumns(NamedTuple):
    """Where the kept columns of one row are, in a range of columns that several rows share."""

    single: list[int] | slice
    pads: list[int] | slice | None


def column_range(every: Sequence[KeptColumns]) -> tuple[slice, list[RowColumns]]:
    """The range of columns that all rows need together, and where in it each row's own columns are."""
    wanted = [column for columns in every for column in (*columns.single, *columns.pads)]
    first, last = (min(wanted), max(wanted) + 1) if wanted else (0, 0)

    def within(columns: list[int]) -> list[int] | slice:
        at = [column - first for column in columns]
        contiguous = bool(at) and at == list(range(at[0], at[-1] + 1))
        return slice(at[0], at[-1] + 1) if contiguous else at

    rows = [RowColumns(within(columns.single), within(columns.pads) if columns.pads else None) for columns in every]
    return slice(first, last), rows


class Maps(NamedTuple):
    """What one site gave in one evaluation."""

    site: str
    rows: list[tuple[int, Place]]  # row of the batch, and whose it is
    columns: list[RowColumns] | None  # of each row, among those of `values`; None: all
    values: Tensor  # [row, head?, column, cell]
    rest: Tensor | None  # [row, head?, cell]: mass on the image's own keys, in joint attention

    def with_pads_summed(self, dtype: torch.dtype) -> "list[Maps]":
        """The same, rows with pads one by one: their single columns, then the sum over their pads, in this dtype."""
        if self.columns is None or all(columns.pads is None for columns in self.columns):
            return [self]
        split = []
        for number, (row, columns) in enumerate(zip(self.rows, self.columns)):
            parts = [self.values[number][..., columns.single, :]]
            if columns.pads is not None:
                parts.append(self.values[number][..., columns.pads, :].sum(-2, keepdim=True))
            rest = None if self.rest is None else self.rest[number : number + 1]
            split.append(Maps(self.site, [row], None, torch.cat(parts, -2).to(dtype)[None], rest))
        return split

    def stored(self, dtype: torch.dtype, mean: bool) -> "Maps":
        """The same in another dtype; with `mean` over the heads, which must be there."""

        def convert(tensor: Tensor) -> Tensor:
            return (tensor.mean(1) if mean else tensor).to(dtype)

        return self._replace(values=convert(self.values), rest=None if self.rest is None else convert(self.rest))
