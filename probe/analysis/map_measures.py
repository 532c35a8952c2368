"""Measures of a word's map against the mask of its object, each with the direction in which it is better.

`MEASURES` has all of them, those of `maps.py` too. Maps are numpy arrays [..., y, x] or xarray.DataArrays, masks [Y, X]
are 0..1 or boolean at the picture's size, and a measure returns [...]. Maps are resampled to the grid of the mask, whose
pixels count as inside from one half. Where a mask is empty, a measure that needs pixels inside is NaN. Measures of pixels
raise ToushiError for NaN in a map.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from toushi.probe.analysis.maps import (
    ArrayOrScalar,
    Maps,
    as_mask,
    auc,
    check_numbers,
    entropy,
    map_mean,
    mass_inside,
    measure_maps,
    pointing_game,
    resample,
)
from toushi.probe.base.extras import require


def pixel_accuracy(maps: Maps, mask: ArrayLike) -> Maps:
    """Share of pixels [...] that are on the right side of the map's own mean, 0..1. Higher is better; localisation.

    Chefer et al., "Transformer Interpretability Beyond Attention Visualization", 2021, section 4 (segmentation).
    """
    return _on_pixels(lambda m, inside: (_exceeds_mean(m) == inside).mean(-1), maps, mask)


def iou_at_mean(maps: Maps, mask: ArrayLike) -> Maps:
    """Intersection over union [...] of the mask and of what exceeds the map's mean, 0..1. Higher is better; localisation.

    The threshold of Helbling et al., "ConceptAttention", 2025. Everingham et al. (Pascal VOC), 2010.
    """

    def measure(m: np.ndarray, inside: np.ndarray) -> ArrayOrScalar:
        above = _exceeds_mean(m)
        return _iou((above & inside).sum(-1), above.sum(-1), inside)

    return _on_pixels(measure, maps, mask)


def best_iou(maps: Maps, mask: ArrayLike) -> Maps:
    """The largest intersection over union [...] that any threshold gives, 0..1. Higher is better; localisation.

    It knows the mask, so it is an upper bound: compare it with that of a baseline. A flat map has the mask's share.
    """

    def measure(m: np.ndarray, inside: np.ndarray) -> ArrayOrScalar:
        order = np.argsort(-m, axis=-1)
        values = np.take_along_axis(m, order, -1)
        iou = _iou(inside[order].cumsum(-1), np.arange(1, m.shape[-1] + 1), inside)
        is_threshold = np.diff(values, axis=-1, append=-np.inf) < 0  # equal pixels are above it together
        return np.where(is_threshold, iou, -np.inf).max(-1) if inside.any() else iou[..., 0]

    return _on_pixels(measure, maps, mask)


def average_precision(maps: Maps, mask: ArrayLike) -> Maps:
    """Mean precision [...] over the recalls at which pixels of the mask are reached, 0..1. Higher is better; localisation.

    `sklearn.metrics.average_precision_score`. Chance is the mask's share of the picture.
    """
    require("sklearn")
    from sklearn.metrics import average_precision_score

    def measure(m: np.ndarray, inside: np.ndarray) -> ArrayOrScalar:
        if not inside.any():
            return np.full(m.shape[:-1], np.nan)
        return np.apply_along_axis(lambda pixels: average_precision_score(inside, pixels), -1, m)

    return _on_pixels(measure, maps, mask)


def leak(maps: Maps, other: ArrayLike) -> Maps:
    """Share of the map's mass [...] on the mask of another object that it could be mistaken for, 0..1. Lower is better;
    leakage.

    Of two red objects, how much of the map of the first one lies on the second. The concept leakage of AnchorDiff, 2026.
    """
    return mass_inside(maps, other)


def gini(maps: Maps) -> Maps:
    """Gini index of the cells [...]: 0 for a flat map, almost 1 for a single cell. Higher is better; complexity.

    A map with few large cells reads more easily. It says nothing about truth. Chalasani et al., "Concise Explanations of
    Neural Networks using Adversarial Training", 2020 (sparseness). NaN where a map is 0.
    """

    def measure(m: np.ndarray) -> ArrayOrScalar:
        cells = np.sort(m.reshape(*m.shape[:-2], -1), axis=-1)
        count, total = cells.shape[-1], cells.sum(-1)
        weighted = cells @ (2 * np.arange(1, count + 1) - count - 1)
        return np.where(total == 0, np.nan, weighted / np.where(total == 0, 1, count * total))

    return measure_maps(measure, maps)


class Measure(NamedTuple):
    """A measure and how to read it."""

    function: Callable  # (maps), or (maps, mask), as `mask` says
    better: Literal["higher", "lower"]
    category: Literal["localisation", "leakage", "complexity"]
    mask: Literal["object", "other"] | None  # which mask it is given; None: the map alone


MEASURES: dict[str, Measure] = {
    "pointing_game": Measure(pointing_game, "higher", "localisation", "object"),
    "pixel_accuracy": Measure(pixel_accuracy, "higher", "localisation", "object"),
    "iou_at_mean": Measure(iou_at_mean, "higher", "localisation", "object"),
    "best_iou": Measure(best_iou, "higher", "localisation", "object"),
    "average_precision": Measure(average_precision, "higher", "localisation", "object"),
    "auc": Measure(auc, "higher", "localisation", "object"),
    "mass_inside": Measure(mass_inside, "higher", "localisation", "object"),
    "leak": Measure(leak, "lower", "leakage", "other"),
    "gini": Measure(gini, "higher", "complexity", None),
    "entropy": Measure(entropy, "lower", "complexity", None),
}


def score_maps(maps: Maps, mask: ArrayLike, other: ArrayLike | None = None) -> dict[str, Maps]:
    """Every measure of MEASURES [...] by name. `leak` is there only if the mask of the `other` object is given."""
    masks = {"object": (mask,), "other": (other,), None: ()}
    kept = {name: measure for name, measure in MEASURES.items() if measure.mask != "other" or other is not None}
    return {name: measure.function(maps, *masks[measure.mask]) for name, measure in kept.items()}


def _on_pixels(
    function: Callable[[Float[np.ndarray, "... pixel"], Bool[np.ndarray, " pixel"]], ArrayOrScalar],
    maps: Maps,
    mask: ArrayLike,
) -> Maps:
    """`function` of the maps' values at the pixels of the mask, and of which pixels are inside."""
    mask = as_mask(mask)
    inside = mask.ravel() >= 0.5

    def measure(m: np.ndarray) -> ArrayOrScalar:
        check_numbers(m)
        return function(resample(m, mask.shape).reshape(*m.shape[:-2], -1), inside)

    return measure_maps(measure, maps)


def _exceeds_mean(maps: Float[np.ndarray, "... pixel"]) -> Bool[np.ndarray, "... pixel"]:
    return maps > map_mean(maps[..., None])[..., 0]


def _iou(intersection: ArrayOrScalar, size: ArrayOrScalar, inside: np.ndarray) -> np.ndarray:
    """NaN for an empty mask."""
    total = inside.sum()
    return np.where(total == 0, np.nan, intersection / np.maximum(size + total - intersection, 1))
