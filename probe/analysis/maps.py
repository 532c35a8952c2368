"""Measures of attention maps: where a map lies, how much it holds, how well it finds an object.

Every function takes a numpy array [..., y, x] or an xarray.DataArray with the dimensions y and x, and gives
back the same kind without y and x (`resample` keeps them). Positions are shares of the picture: (0, 0) is its
top left corner, (1, 1) its bottom right one, a cell's position is its centre. So grids of different sizes can
be compared.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from toushi.probe.base.errors import ToushiError

PLAIN_MEAN = "mean over heads within a site, then over steps, then over sites, each equally"  # what `heat_map` does


def resample(maps, size: tuple[int, int]):
    """Maps [..., y, x] on the grid `size` (rows, columns): constants stay, and so does each map's mean.

    Enlarging by a whole factor is bilinear interpolation between cell centres (`align_corners=False`, edges
    clamped, as in torch.nn.functional.interpolate), shrinking by a whole factor is the mean of each block.
    Any other ratio is the one after the other through the least common multiple, since plain bilinear
    sampling would change the mean. The unit of the values is kept; below float64 the result is float32.
    """
    rows, columns = (int(n) for n in size)
    if rows < 1 or columns < 1:
        raise ToushiError(f"resample expected a grid of at least 1x1 cells, but {rows}x{columns} came")
    if _labelled(maps):
        import xarray as xr

        fine = xr.apply_ufunc(
            lambda m: resample(m, size),
            maps.drop_vars(["y", "x"], errors="ignore"),
            input_core_dims=[["y", "x"]],
            output_core_dims=[["y", "x"]],
            exclude_dims={"y", "x"},
            keep_attrs=True,
        )
        return fine.rename(maps.name)
    maps = _maps(maps)
    for_rows, for_columns = _weights(maps.shape[-2], rows), _weights(maps.shape[-1], columns)
    if for_columns is not None:
        maps = maps @ for_columns.T.astype(maps.dtype)
    if for_rows is not None:
        maps = for_rows.astype(maps.dtype) @ maps
    return maps


def mass(maps):
    """Mean over the cells [...]: of attention maps, the share of the attention that this token or word got.

    Attention over all keys sums to 1 in each cell, so the means of all tokens and of `rest` sum to 1 too.
    """
    return _each(lambda m: m.mean((-2, -1)), maps)


def centre(maps) -> tuple:
    """Centre of mass (y, x), two arrays [...], in shares of the picture's sides; NaN where a map is 0."""

    def along(axis: int, m: np.ndarray) -> np.ndarray:
        profile = m.sum(-1 if axis == -2 else -2)
        positions = (np.arange(m.shape[axis]) + 0.5) / m.shape[axis]
        return _ratio(profile @ positions, profile.sum(-1))

    return _each(lambda m: along(-2, m), maps), _each(lambda m: along(-1, m), maps)


def peak(maps) -> tuple:
    """Centre (y, x) of the cell with the largest value, two arrays [...]; of equals, the first one read."""

    def flat(m: np.ndarray) -> np.ndarray:
        return m.reshape(*m.shape[:-2], -1).argmax(-1)

    y = _each(lambda m: (flat(m) // m.shape[-1] + 0.5) / m.shape[-2], maps)
    return y, _each(lambda m: (flat(m) % m.shape[-1] + 0.5) / m.shape[-1], maps)


def above_mean(maps):
    """Maps [..., y, x], what exceeds each map's own mean and 0 elsewhere, in the unit of the maps.

    Attention lies thinly over the whole picture, which draws every centre of mass to the middle; the centre of this
    is where the word stands out.
    """
    if not _labelled(maps):
        maps = _maps(maps)
        return np.maximum(maps - maps.mean((-2, -1), keepdims=True), 0)
    return (maps - maps.mean(["y", "x"])).clip(0).assign_attrs(maps.attrs)


def spread(maps):
    """Root mean square distance from the centre of mass [...], in shares of the sides: 0.41 for flat maps."""

    def one(m: np.ndarray) -> np.ndarray:
        variance = np.zeros(m.shape[:-2])
        for axis, position in zip((-2, -1), centre(m)):
            cells = (np.arange(m.shape[axis]) + 0.5) / m.shape[axis]
            profile = m.sum(-1 if axis == -2 else -2)
            variance += _ratio((profile * (cells - position[..., None]) ** 2).sum(-1), profile.sum(-1))
        return np.sqrt(variance)

    return _each(one, maps)


def entropy(maps):
    """Shannon entropy of the map as a distribution over its cells, divided by log(cells): [...] in 0..1.

    0 is one cell, 1 is all cells alike; NaN where a map is 0. Shannon, "A Mathematical Theory of
    Communication", 1948.
    """

    def one(m: np.ndarray) -> np.ndarray:
        cells = m.shape[-2] * m.shape[-1]
        p = _ratio(m, m.sum((-2, -1), keepdims=True))
        terms = -p * np.log(np.where(p > 0, p, 1))
        return terms.sum((-2, -1)) / (math.log(cells) if cells > 1 else 1)

    return _each(one, maps)


def inside(maps, mask):
    """Share of each map's mass that lies in the mask [...], 0..1; NaN where a map is 0.

    `mask` [Y, X] holds 0..1 (or booleans) on any grid, the picture's as a rule; each cell of the map counts
    with the share of the mask that covers it.
    """
    mask = _mask(mask)
    return _each(lambda m: _ratio((m * resample(mask, m.shape[-2:])).sum((-2, -1)), m.sum((-2, -1))), maps)


def pointing_game(maps, mask):
    """Whether the peak of each map lies in the mask: booleans [...].

    `mask` [Y, X] is boolean (or 0..1) at the picture's size, in pixels. The peak is the centre of the map's
    largest cell; it is a hit when the mask, read bilinearly at that very point, is at least one half (a
    centre that falls between pixels is thus judged by its neighbours together). Ties: when several cells hold
    the largest value, all of them have to hit. So a constant map hits only where the mask covers every cell,
    and luck is never counted. A map with a NaN is an error. The game, without its tolerance of 15 pixels, is
    that of Zhang et al., "Top-down Neural Attention by Excitation Backprop", 2016.
    """
    mask = _mask(mask)

    def one(m: np.ndarray) -> np.ndarray:
        if np.isnan(m).any():
            raise ToushiError(
                "pointing_game expected maps of numbers, but NaN came; average over heads with skipna first"
            )
        hits = _at_centres(mask, m.shape[-2:]) >= 0.5
        tops = m == m.max((-2, -1), keepdims=True)
        return (hits | ~tops).all((-2, -1))

    return _each(one, maps)


def auc(maps, mask):
    """Area under the ROC curve [...] of the map as a detector of the mask's pixels: 0.5 chance, 1 perfect.

    The map is resampled to the mask's grid [Y, X]; equal values count half (Hanley and McNeil, "The Meaning
    and Use of the Area under a ROC Curve", 1982). NaN where the mask is empty or full. A mask of shares is
    cut at one half.
    """
    positive = _mask(mask).ravel() >= 0.5
    n_in, n_out = int(positive.sum()), int((~positive).sum())

    def area(values: np.ndarray) -> float:
        if not n_in or not n_out:
            return math.nan
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each distinct value
        return (ranks[place][positive].sum() - n_in * (n_in + 1) / 2) / (n_in * n_out)

    def one(m: np.ndarray) -> np.ndarray:
        fine = resample(m, _mask(mask).shape)
        return np.array([area(v) for v in fine.reshape(-1, positive.size)]).reshape(m.shape[:-2])

    return _each(one, maps)


# --- the heat map: heads, then steps, then sites --------------------------------------------------------


def heat_map(sites: Iterable[np.ndarray]) -> np.ndarray:
    """One map [y, x] of maps [step, head?, y, x] for each site, on the grid of the finest site.

    Heads are averaged within a site, then steps, then sites, each equally (PLAIN_MEAN), so a site with many heads
    weighs no more than another. NaN stands for what is missing and is left out. A generator is consumed site by site.
    """
    return mean_of_sites([nan_mean(mean_of_heads(maps) if maps.ndim == 4 else maps) for maps in sites])


def mean_of_heads(maps: np.ndarray) -> np.ndarray:
    """[step, ...] of maps [step, head, ...]."""
    return nan_mean(np.moveaxis(maps, 1, 0))


def mean_of_sites(maps: Sequence[np.ndarray]) -> np.ndarray:
    """[..., y, x] of maps [..., y, x] for each site, which may have grids of their own: all on the finest grid."""
    finest = finest_grid([one.shape[-2:] for one in maps])
    return nan_mean(resample(one, finest) for one in maps)


def finest_grid(grids: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """The grid with the most cells. Raises ToushiError where `resample` would need a huge common multiple to reach it."""
    rows, columns = max(grids, key=math.prod)
    for grid in grids:
        if any(a != b and math.lcm(a, b) * a > 2**24 for a, b in zip(grid, (rows, columns))):
            raise ToushiError(f'The grids {sorted(set(grids))} have no common refinement; ask with grid="native".')
    return rows, columns


def nan_mean(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """The mean of arrays of one shape, NaN left out; NaN where all are NaN. Memory holds one array at a time."""
    total, count = 0.0, 0
    for array in arrays:
        there = ~np.isnan(array)
        whole = there.all()
        total = total + (array if whole else np.where(there, array, 0))
        count = count + (1 if whole else there)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count, np.asarray(total).dtype)


def average(attention, over: Sequence[str] = ("head", "layer")):
    """DataArray without the dimensions `over`, averaged in that order, missing values left out.

    Heads within a layer come first, then layers, as in `heat_map`.
    """
    for dimension in over:
        if dimension in attention.dims:
            attention = attention.reduce(_along, dimension, keep_attrs=True)
    return attention


def timeline(attention):
    """Attention mass for each step, DataArray [step] (and `token`, where there is one), a share in 0..1.

    `attention` is [step, layer, head?, token?, y, x] as `trace.attention` gives it, or its dict of native
    grids.
    """
    if not isinstance(attention, dict):
        return average(mass(attention))
    layers = [average(mass(layer), ("head",)) for layer in attention.values()]
    return layers[0].copy(data=nan_mean(layer.values for layer in layers))


def _along(values: np.ndarray, axis: int) -> np.ndarray:
    return nan_mean(np.moveaxis(values, axis, 0))


def _labelled(maps) -> bool:
    return hasattr(maps, "dims")  # so that plain arrays need no import of xarray


def _maps(maps) -> np.ndarray:
    maps = np.asarray(maps)
    if maps.ndim < 2 or 0 in maps.shape[-2:]:
        raise ToushiError(f"expected maps [..., y, x] with at least one cell, but an array of shape {maps.shape} came")
    return maps if maps.dtype == np.float64 else maps.astype(np.float32)


def _mask(mask) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ToushiError(f"expected one mask [y, x], but an array of shape {mask.shape} came")
    return mask.astype(np.float64)


def _each(function, maps):
    """`function`, which takes [..., y, x] in float64 and drops y and x, for arrays and DataArrays alike."""
    if not _labelled(maps):
        return function(_maps(maps).astype(np.float64))
    import xarray as xr

    return xr.apply_ufunc(lambda m: function(m.astype(np.float64)), maps, input_core_dims=[["y", "x"]])


def _ratio(part, whole):
    whole = np.asarray(whole, dtype=np.float64)
    return np.where(whole == 0, np.nan, part / np.where(whole == 0, 1, whole))


def _weights(cells: int, wanted: int) -> np.ndarray | None:
    """Matrix [wanted, cells] that resamples one axis; None where there is nothing to do."""
    if cells == wanted:
        return None
    common = math.lcm(cells, wanted)
    positions = np.clip((np.arange(common) + 0.5) * cells / common - 0.5, 0, cells - 1)
    distance = np.abs(positions[:, None] - np.arange(cells))
    enlarge = np.clip(1 - distance, 0, None)
    return enlarge.reshape(wanted, common // wanted, cells).mean(1)


def _at_centres(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The mask [Y, X] read bilinearly at the centres of the cells of `grid`."""

    def read(pixels: int, cells: int) -> np.ndarray:
        positions = np.clip((np.arange(cells) + 0.5) * pixels / cells - 0.5, 0, pixels - 1)
        return np.clip(1 - np.abs(positions[:, None] - np.arange(pixels)), 0, None)

    return read(mask.shape[0], grid[0]) @ mask @ read(mask.shape[1], grid[1]).T
