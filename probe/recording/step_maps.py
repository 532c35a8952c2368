"""Maps read from attention calls: several at once, where each alone is so small that it is their number that costs."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from toushi.hooks.attention import Call
from toushi.hooks.kernels import Attended, Columns
from toushi.probe.session.row_matching import Place

SMALL = 1 << 16  # scores


class Maps(NamedTuple):
    """What one site gave in one evaluation."""

    site: str
    fresh: list[tuple[int, Place]]
    own: list[list[int] | slice] | None  # where in the columns those of each fresh row are; None: all
    values: Tensor  # [fresh row, head?, column, cell]
    rest: Tensor | None  # [fresh row, head?, cell]: mass on the image's own keys, in joint attention


def probabilities(
    calls: Sequence[Call], columns: Columns, rows: Sequence[int] | None, mean: bool, dtype: torch.dtype
) -> list[Tensor]:
    """`call.probabilities(columns, rows, None, mean, dtype)` of each, small ones of equal shape in one go."""
    alike: dict[tuple, list[Call]] = {}
    for call in calls:
        many, what = call.shape, call.what
        small = many[0] * many[1] * many[2] * many[3] <= SMALL and what.key.shape[:2] == what.query.shape[:2]
        key = (many, what.query.shape[3], what.query.dtype, what.scale, what.first, id(what.mask), call.lse is None)
        alike.setdefault(key if small else (id(call),), []).append(call)
    found: dict[int, Tensor] = {}
    for some in alike.values():
        if len(some) == 1:
            found[id(some[0])] = some[0].probabilities(columns, rows, None, mean, dtype)
            continue
        count = some[0].shape[0]
        own = None if rows is None else [number * count + row for number in range(len(some)) for row in rows]
        parts = _joined(some).probabilities(columns, own, None, mean, dtype).chunk(len(some))
        found |= zip(map(id, some), parts)
    return [found[id(call)] for call in calls]


def _joined(calls: Sequence[Call]) -> Call:
    """One call with the rows of all of them, which have the same mask."""
    first, mask = calls[0], calls[0].what.mask
    if mask is not None and mask.dim() == 4 and mask.shape[0] > 1:
        mask = torch.cat([mask] * len(calls))
    query, key = (torch.cat([getattr(call.what, name) for call in calls]) for name in ("query", "key"))
    lse = None if first.lse is None else torch.cat([call.lse for call in calls])
    return Call(
        first.site, first.what._replace(query=query, key=key, mask=mask), Attended(first.output, lse, first.kernel)
    )
