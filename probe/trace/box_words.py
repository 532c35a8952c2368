"""Which words a rectangle of the picture attended to."""

import operator
from collections.abc import Sequence

import numpy as np
import pandas as pd

from toushi.probe.analysis.maps import finest_grid, mean_of_sites, nan_mean
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.prompt_units import units_of
from toushi.probe.trace.selection import AttentionQuery

REST = "(no text)"


def box_words(query: AttentionQuery, box: Sequence[int], rule: str) -> pd.Series:
    """Unit -> mean attention probability in the box; see Trace.box."""
    if query.axis == "key":
        raise ToushiError("Image self-attention attends to the image, not to words. Select image-to-text sites.")
    grid = finest_grid([query.shape(site)[-2:] for site in query.sites])
    rows, columns = _check_box(box, grid)
    manifest, branch = query.manifest, query.branch
    places, words = manifest.branches[branch].places(), manifest.words_of(branch)
    units, weights = units_of(places, words, by_token=manifest.prompt_of(branch) is None)
    maps = mean_of_sites([nan_mean(_unit_maps(query, site, weights)) for site in query.sites])
    shares = maps[:, rows, columns].mean((-2, -1), dtype=np.float64)
    names = [*(unit.name for unit in units), *([REST] if shares[-1] > 0 else [])]
    result = pd.Series(shares[: len(names)], pd.Index(names, name="word"), name="attention")
    result.attrs.update(query.attributes(), rule=rule, sites=query.sites, box=list(box), grid=list(grid))
    return result.sort_values(ascending=False, kind="stable")


def _unit_maps(query: AttentionQuery, site: str, weights: np.ndarray):
    """float32 [unit + 1, y, x] of each step that has the site: the mean over heads. The last row is what is not text."""
    for step in query.steps:
        values, rest = query.step(site, step), query.rest(site, step)
        if values is None or rest is None:
            continue
        maps = np.einsum("ut,...tyx->...uyx", weights, values.astype(np.float32))
        maps = np.concatenate([maps, rest[..., None, :, :]], -3)
        yield nan_mean(maps) if maps.ndim == 4 else maps


def _check_box(box: Sequence[int], grid: tuple[int, int]) -> tuple[slice, slice]:
    """The box as rows and columns of the grid. Raises ToushiError where it is empty or leaves the picture."""
    y0, x0, y1, x1 = box
    try:
        edges = [(operator.index(first), operator.index(last)) for first, last in ((y0, y1), (x0, x1))]
    except TypeError:
        edges = []
    if not edges or not all(0 <= first < last <= cells for (first, last), cells in zip(edges, grid)):
        expected = f"0 <= y0 < y1 <= {grid[0]} and 0 <= x0 < x1 <= {grid[1]}"
        raise ToushiError(
            f"The box y {y0!r}:{y1!r}, x {x0!r}:{x1!r} is empty or outside the picture. The grid has "
            f"{grid[0]}x{grid[1]} cells (rows x columns); expected whole numbers with {expected}."
        )
    return slice(*edges[0]), slice(*edges[1])
