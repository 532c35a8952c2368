"""The maps of one step as they are read: one entry for each site and group of rows."""

from typing import NamedTuple

import torch
from torch import Tensor

from toushi.probe.session.row_matching import Place


class Maps(NamedTuple):
    """What one site gave in one evaluation."""

    site: str
    rows: list[tuple[int, Place]]  # row of the batch, and whose it is
    columns: list[list[int] | slice] | None  # of each row its own columns among those of `values`; None: all
    values: Tensor  # [row, head?, column, cell]
    rest: Tensor | None  # [row, head?, cell]: mass on the image's own keys, in joint attention

    def stored(self, dtype: torch.dtype, mean: bool) -> "Maps":
        """The same in another dtype; with `mean` over the heads, which must be there."""

        def convert(tensor: Tensor) -> Tensor:
            return (tensor.mean(1) if mean else tensor).to(dtype)

        return self._replace(values=convert(self.values), rest=None if self.rest is None else convert(self.rest))
