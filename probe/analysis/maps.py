"""Measures of attention maps: where a map lies, how much it holds, how well it finds an object.

The measures take a numpy array [..., y, x] or an xarray.DataArray with the dimensions y and x, and return the same
kind without y and x (`resample` and `above_mean` keep them). Positions are shares of the picture: (0, 0) is its top left
corner, (1, 1) its bottom right one. The position of a cell is its centre. So grids of different sizes can be compared.
Arrays of wrong shape raise ToushiError.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import require

if TYPE_CHECKING:
    import xarray

Maps = TypeVar("Maps", np.ndarray, "xarray.DataArray")
ArrayOrScalar = np.ndarray | np.generic  # what numpy reduces arrays to: a scalar if no axis is left

PLAIN_MEAN = "mean over heads within a site, then over steps, then over sites, each equally"  # what `heat_map` does


def resample(maps: Maps, size: Sequence[int]) -> Maps:
    """Maps [..., y, x] on the grid `size` (rows, columns). Constants stay, and so does each map's mean.

    Enlarging by a whole factor is bilinear interpolation between cell centres (`align_corners=False`, edges clamped, as
    in torch.nn.functional.interpolate). Shrinking by a whole factor is the mean of each block. For any other ratio the
    maps are enlarged to the least common multiple and then shrunk, for plain bilinear sampling would change the mean.
    The unit stays; the result is float32 unless the maps are float64.
    """
    rows, columns = (int(n) for n in size)
    if rows < 1 or columns < 1:
        raise ToushiError(f"resample expected a grid of at least 1x1 cells, but {rows}x{columns} came")
    array: Any = maps
    if _is_labelled(array):
        import xarray as xr

        fine = xr.apply_ufunc(
            lambda m: resample(m, size),
            array.drop_vars(["y", "x"], errors="ignore"),
            input_core_dims=[["y", "x"]],
            output_core_dims=[["y", "x"]],
            exclude_dims={"y", "x"},
            keep_attrs=True,
        )
        return fine.rename(array.name)
    array = _as_maps(array)
    row_weights, column_weights = _weights(array.shape[-2], rows), _weights(array.shape[-1], columns)
    if column_weights is not None:
        array = array @ column_weights.T.astype(array.dtype)
    if row_weights is not None:
        array = row_weights.astype(array.dtype) @ array
    return array


def mass(maps: Maps) -> Maps:
    """Mean over the cells [...]: for attention maps, the share of the attention that the token or word got.

    Attention over all keys sums to 1 in each cell, so the means of all tokens and of `rest` sum to 1 too.
    """
    return measure_maps(lambda m: m.mean((-2, -1)), maps)


def centre_of_mass(maps: Maps) -> tuple[Maps, Maps]:
    """Centre of mass (y, x), each [...], in shares of the picture's sides. NaN where a map is 0."""

    def along(axis: int, m: np.ndarray) -> np.ndarray:
        profile = m.sum(-1 if axis == -2 else -2)
        positions = (np.arange(m.shape[axis]) + 0.5) / m.shape[axis]
        return _ratio(profile @ positions, profile.sum(-1))

    return measure_maps(lambda m: along(-2, m), maps), measure_maps(lambda m: along(-1, m), maps)


def peak(maps: Maps) -> tuple[Maps, Maps]:
    """Centre (y, x) of the cell with the largest value, each [...]. Of equal cells, the first one in reading order."""

    def flat(m: np.ndarray) -> ArrayOrScalar:
        return m.reshape(*m.shape[:-2], -1).argmax(-1)

    y = measure_maps(lambda m: (flat(m) // m.shape[-1] + 0.5) / m.shape[-2], maps)
    return y, measure_maps(lambda m: (flat(m) % m.shape[-1] + 0.5) / m.shape[-1], maps)


def above_mean(maps: Maps) -> Maps:
    """Maps [..., y, x] of what exceeds each map's own mean, 0 elsewhere, in the unit of the maps.

    Every cell has a little attention, which moves every centre of mass to the middle. The centre of mass of the
    result is where the word has more than its mean.
    """
    array: Any = maps
    if _is_labelled(array):
        return (array - array.mean(["y", "x"])).clip(0).assign_attrs(array.attrs)
    array = _as_maps(array)
    return np.maximum(array - array.mean((-2, -1), keepdims=True), 0)


def spread(maps: Maps) -> Maps:
    """Root mean square distance from the centre of mass [...], in shares of the sides: 0.41 for flat maps."""

    def measure(m: np.ndarray) -> ArrayOrScalar:
        variance = np.zeros(m.shape[:-2])
        for axis, position in zip((-2, -1), centre_of_mass(m)):
            cells = (np.arange(m.shape[axis]) + 0.5) / m.shape[axis]
            profile = m.sum(-1 if axis == -2 else -2)
            variance += _ratio((profile * (cells - position[..., None]) ** 2).sum(-1), profile.sum(-1))
        return np.sqrt(variance)

    return measure_maps(measure, maps)


def entropy(maps: Maps) -> Maps:
    """Shannon entropy of the map as a distribution over its cells, divided by log(cells): [...] in 0..1.

    0: all in one cell; 1: equal in all cells; NaN: the map is 0 everywhere. Shannon, "A Mathematical Theory of
    Communication", 1948.
    """

    def measure(m: np.ndarray) -> ArrayOrScalar:
        cells = m.shape[-2] * m.shape[-1]
        p = _ratio(m, m.sum((-2, -1), keepdims=True))
        terms = -p * np.log(np.where(p > 0, p, 1))
        return terms.sum((-2, -1)) / (math.log(cells) if cells > 1 else 1)

    return measure_maps(measure, maps)


def mass_inside(maps: Maps, mask: ArrayLike) -> Maps:
    """Share of each map's mass that lies in the mask [...], 0..1. NaN where a map is 0.

    `mask` [Y, X] has 0..1 (or booleans) on any grid, usually the picture's. Each cell of the map counts with the share
    of it that the mask covers.
    """
    mask = as_mask(mask)
    return measure_maps(lambda m: _ratio((m * resample(mask, m.shape[-2:])).sum((-2, -1)), m.sum((-2, -1))), maps)


def pointing_game(maps: Maps, mask: ArrayLike) -> Maps:
    """Whether the peak of each map lies in the mask: booleans [...].

    `mask` [Y, X] is boolean (or 0..1) at the picture's size, in pixels. The peak is the centre of the map's largest
    cell. It is a hit when the mask, interpolated bilinearly at that point, is at least one half. When several cells
    have the largest value, all of them have to hit. So a constant map hits only if the mask covers every cell. NaN in a
    map raises ToushiError. Zhang et al., "Top-down Neural Attention by Excitation Backprop", 2016, without their
    tolerance of 15 pixels.
    """
    mask = as_mask(mask)

    def measure(m: np.ndarray) -> ArrayOrScalar:
        check_numbers(m)
        hits = _at_centres(mask, m.shape[-2:]) >= 0.5
        largest = m == m.max((-2, -1), keepdims=True)
        return (hits | ~largest).all((-2, -1))

    return measure_maps(measure, maps)


def auc(maps: Maps, mask: ArrayLike) -> Maps:
    """Area under the ROC curve [...] of the map as a detector of the mask's pixels: 0.5 is chance, 1 is perfect.

    The map is resampled to the mask's grid [Y, X]. Equal values count half (Hanley and McNeil, "The Meaning and Use of
    the Area under a ROC Curve", 1982). NaN where the mask is empty or full. A mask of shares is cut at one half.
    """
    require("scipy")
    from scipy.stats import rankdata

    mask = as_mask(mask)
    positive = mask.ravel() >= 0.5
    n_in, n_out = int(positive.sum()), int((~positive).sum())

    def measure(m: np.ndarray) -> ArrayOrScalar:
        if not n_in or not n_out:
            return np.full(m.shape[:-2], np.nan)
        ranks = rankdata(resample(m, mask.shape).reshape(*m.shape[:-2], -1), axis=-1)
        return (ranks[..., positive].sum(-1) - n_in * (n_in + 1) / 2) / (n_in * n_out)

    return measure_maps(measure, maps)


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the cells of two arrays of maps [..., y, x] of one shape: [...] in -1..1.

    NaN where a map is constant.
    """
    a, b = (m - map_mean(m) for m in _same_shape(first, second))
    return _ratio((a * b).sum((-2, -1)), np.sqrt((a * a).sum((-2, -1)) * (b * b).sum((-2, -1))))


def total_variation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Total-variation distance of two arrays of maps [..., y, x] of one shape, as distributions over cells: [...] in 0..1.

    Each map is divided by its sum: 0 means equal maps, 1 maps that do not overlap. NaN where a map is 0.
    """
    p, q = (_ratio(m, m.sum((-2, -1), keepdims=True)) for m in _same_shape(first, second))
    return np.asarray(np.abs(p - q).sum((-2, -1)) / 2)


# --- the heat map: heads, then steps, then sites --------------------------------------------------------


def heat_map(sites: Iterable[Float[np.ndarray, "_step ... _y _x"]]) -> Float[np.ndarray, "finest_y finest_x"]:
    """One map for the maps [step, head?, y, x] of all sites, on the grid of the finest site.

    Heads are averaged within a site, then steps, then sites, each equally (PLAIN_MEAN), so a site with many heads weighs
    no more than another. NaN means missing and is left out. A generator is consumed site by site.
    """
    return mean_of_sites([nan_mean(mean_of_heads(maps) if maps.ndim == 4 else maps) for maps in sites])


def mean_of_heads(maps: Float[np.ndarray, "step head y x"]) -> Float[np.ndarray, "step y x"]:
    """The mean over heads."""
    return nan_mean(np.moveaxis(maps, 1, 0))


def mean_of_sites(
    maps: Sequence[Float[np.ndarray, "*rows _y _x"]],
) -> Float[np.ndarray, "*rows finest_y finest_x"]:
    """The mean over sites, whose grids may differ, on the finest grid."""
    finest = finest_grid([site.shape[-2:] for site in maps])
    return nan_mean(resample(site, finest) for site in maps)


def finest_grid(grids: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """The grid with the most cells. Raises ToushiError where `resample` would need a huge common multiple for it."""
    rows, columns = max(grids, key=math.prod)
    for grid in grids:
        if any(a != b and math.lcm(a, b) * a > 2**24 for a, b in zip(grid, (rows, columns))):
            raise ToushiError(f'The grids {sorted(set(grids))} have no common refinement; ask with grid="native".')
    return rows, columns


def nan_mean(arrays: Iterable[Float[np.ndarray, "*axes"]]) -> Float[np.ndarray, "*axes"]:
    """The mean of arrays of one shape, NaN left out; NaN where all are NaN. One array at a time is in memory."""
    total, count = 0.0, 0
    for array in arrays:
        present = ~np.isnan(array)
        complete = present.all()
        total = total + (array if complete else np.where(present, array, 0))
        count = count + (1 if complete else present)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count, np.asarray(total).dtype)


def average(attention: "xarray.DataArray", over: Sequence[str] = ("head", "layer")) -> "xarray.DataArray":
    """The mean over the dimensions `over`, one after the other, without missing values.

    By default heads within a layer come first, then layers, as in `heat_map`.
    """
    for dimension in over:
        if dimension in attention.dims:
            attention = attention.reduce(_along, dimension, keep_attrs=True)
    return attention


def timeline(attention: "xarray.DataArray | Mapping[str, xarray.DataArray]") -> "xarray.DataArray":
    """Attention mass of each step [step], also [step, token], a share in 0..1.

    `attention` is [step, layer, head?, token?, y, x], as `trace.attention` gives it, or its dict of native grids.
    """
    if not isinstance(attention, Mapping):
        return average(mass(attention))
    layers = [average(mass(layer), ("head",)) for layer in attention.values()]
    return layers[0].copy(data=nan_mean(layer.values for layer in layers))


def _along(values: np.ndarray, axis: int) -> np.ndarray:
    return nan_mean(np.moveaxis(values, axis, 0))


def _is_labelled(maps: object) -> bool:
    return hasattr(maps, "dims")  # so that plain arrays need no import of xarray


def _as_maps(maps: ArrayLike) -> Float[np.ndarray, "*axes"]:
    maps = np.asarray(maps)
    if maps.ndim < 2 or 0 in maps.shape[-2:]:
        raise ToushiError(f"expected maps [..., y, x] with at least one cell, but an array of shape {maps.shape} came")
    return maps if maps.dtype == np.float64 else maps.astype(np.float32)


def _same_shape(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64."""
    a, b = _as_maps(first).astype(np.float64), _as_maps(second).astype(np.float64)
    if a.shape != b.shape:
        raise ToushiError(
            f"expected maps on one grid, but arrays of shape {a.shape} and {b.shape} came; resample one first"
        )
    return a, b


def as_mask(mask: ArrayLike) -> Float[np.ndarray, "Y X"]:
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ToushiError(f"expected one mask [y, x], but an array of shape {mask.shape} came")
    return mask.astype(np.float64)


def measure_maps(function: Callable[[np.ndarray], ArrayOrScalar], maps: Any) -> Any:
    """`function`, from [..., y, x] in float64 to [...], of an array or of a DataArray."""
    if not _is_labelled(maps):
        return np.asarray(function(_as_maps(maps).astype(np.float64)))  # an array also for one map
    import xarray as xr

    return xr.apply_ufunc(lambda m: function(m.astype(np.float64)), maps, input_core_dims=[["y", "x"]])


def map_mean(maps: Float[np.ndarray, "*rows _y _x"]) -> Float[np.ndarray, "*rows 1 1"]:
    """The mean of each map [..., 1, 1], that of a constant map without rounding."""
    mean, least, most = (f(maps, (-2, -1), keepdims=True) for f in (np.mean, np.min, np.max))
    return np.clip(mean, least, most)


def check_numbers(maps: np.ndarray) -> None:
    """Raises ToushiError for NaN."""
    if np.isnan(maps).any():
        raise ToushiError("expected maps of numbers, but NaN came; average over heads with skipna first")


def _ratio(part: ArrayOrScalar, whole: ArrayOrScalar) -> np.ndarray:
    """part / whole, NaN where the whole is 0."""
    return np.where(whole == 0, np.nan, part / np.where(whole == 0, 1, whole))


def _weights(cells: int, size: int) -> Float[np.ndarray, "{size} {cells}"] | None:
    """The matrix that resamples one axis from `cells` to `size`. None where they are equal."""
    if cells == size:
        return None
    common = math.lcm(cells, size)
    positions = np.clip((np.arange(common) + 0.5) * cells / common - 0.5, 0, cells - 1)
    distance = np.abs(positions[:, None] - np.arange(cells))
    enlarge = np.clip(1 - distance, 0, None)
    return enlarge.reshape(size, common // size, cells).mean(1)


def _at_centres(mask: Float[np.ndarray, "Y X"], grid: tuple[int, int]) -> Float[np.ndarray, "y x"]:
    """The mask interpolated bilinearly at the centres of the cells of `grid`."""

    def weights(pixels: int, cells: int) -> np.ndarray:
        positions = np.clip((np.arange(cells) + 0.5) * pixels / cells - 0.5, 0, pixels - 1)
        return np.clip(1 - np.abs(positions[:, None] - np.arange(pixels)), 0, None)

    return weights(mask.shape[0], grid[0]) @ mask @ weights(mask.shape[1], grid[1]).T
