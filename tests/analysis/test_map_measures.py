"""Measures of maps on answers that are known: the mask itself, its complement, a flat map, noise, a single cell."""

import numpy as np
import pytest
import xarray as xr

from toushi.probe.analysis.map_measures import MEASURES, best_iou, gini, iou_at_mean, pixel_accuracy, score_maps
from toushi.probe.analysis.maps import auc, correlation, mass_inside
from toushi.probe.base.errors import ToushiError

MASK = np.zeros((16, 16), bool)
MASK[4:8, 4:12] = True  # an eighth of the picture
OTHER = np.roll(MASK, 6, axis=0)
PERFECT, WRONG, FLAT = MASK.astype(float), OTHER.astype(float), np.full((16, 16), 0.5)
NOISE = np.random.default_rng(0).random((400, 16, 16))


def scores(maps: np.ndarray) -> dict[str, np.ndarray]:
    return score_maps(maps, MASK, OTHER)


def test_the_mask_itself_gets_the_best_score_of_each_measure():
    best = {"leak": 0.0}
    for name, measure in MEASURES.items():
        if measure.category != "complexity":
            assert scores(PERFECT)[name] == best.get(name, 1.0), name


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if measure.category != "complexity"])
def test_the_declared_direction_holds(name):
    """The object's map, half of it, and the map of the other object come in the order that `better` says."""
    values = [float(scores(m)[name]) for m in (PERFECT, (PERFECT + WRONG + 0.4 * FLAT) / 2, WRONG)]
    signs = values if MEASURES[name].better == "higher" else [-value for value in values]
    assert signs[0] >= signs[1] >= signs[2] and signs[0] > signs[2]


def test_a_flat_map_and_noise_are_at_chance():
    share, flat, noise = MASK.mean(), scores(FLAT), scores(NOISE)
    assert flat["auc"] == 0.5 and not flat["pointing_game"] and flat["gini"] == 0 and flat["entropy"] == 1
    for name in ("best_iou", "average_precision", "mass_inside", "leak"):
        assert flat[name] == pytest.approx(share), name
    assert noise["auc"].mean() == pytest.approx(0.5, abs=0.01)
    assert noise["pointing_game"].mean() == pytest.approx(share, abs=0.04)
    assert noise["average_precision"].mean() == pytest.approx(share, abs=0.05)


def test_iou_and_accuracy_by_hand():
    map = np.zeros((16, 16))
    map[4:8, 4:8], map[0:2, 0:8] = 1, 1  # 16 of 32 pixels, and 16 others
    assert iou_at_mean(map, MASK) == best_iou(map, MASK) == pytest.approx(16 / 48)
    assert pixel_accuracy(map, MASK) == pytest.approx(1 - 32 / 256)
    assert best_iou(map + 0.1 * PERFECT, MASK) == pytest.approx(32 / 48)  # the best threshold is above no others


def test_best_iou_is_that_of_the_best_of_all_thresholds():
    map = NOISE[0].round(1)  # with many equal values
    by_hand = max(((map >= t) & MASK).sum() / ((map >= t) | MASK).sum() for t in np.unique(map))
    assert best_iou(map, MASK) == pytest.approx(by_hand)


def test_gini_of_a_single_cell_and_of_two_values():
    single = np.zeros((4, 4))
    single[1, 2] = 3
    assert gini(single) == pytest.approx(1 - 1 / 16) and np.isnan(gini(np.zeros((4, 4))))
    assert gini(np.array([[0.0, 1.0], [0.0, 1.0]])) == pytest.approx(0.5)


def test_labels_stay_and_grids_may_differ():
    maps = xr.DataArray(NOISE[:3, :8, :8], dims=("word", "y", "x"), coords={"word": list("abc")})
    for name, values in score_maps(maps, MASK).items():
        assert values.dims == ("word",) and list(values.word.values) == list("abc"), name
        assert values.values == pytest.approx(np.stack([score_maps(m, MASK)[name] for m in maps.values]))
    assert "leak" not in score_maps(maps, MASK)


def test_an_empty_mask_has_no_score():
    empty = score_maps(NOISE[0], np.zeros((16, 16)))
    assert all(np.isnan(empty[name]) for name in ("iou_at_mean", "best_iou", "average_precision", "auc"))


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7])
def test_no_pixel_of_a_flat_map_exceeds_its_mean_however_that_is_rounded(value):
    for side in range(5, 15):
        flat, mask = np.full((side, side), value), np.zeros((side, side))
        assert pixel_accuracy(flat, mask) == 1 and np.isnan(correlation(flat, NOISE[0, :side, :side]))


def test_nan_in_a_map_is_refused():
    holed = np.where(MASK, np.nan, 1.0)
    for measure in MEASURES.values():
        if measure.category == "localisation" and measure.function not in (auc, mass_inside):
            with pytest.raises(ToushiError, match="NaN came"):
                measure.function(holed, MASK)


def test_each_docstring_says_direction_and_category():
    for name, measure in MEASURES.items():
        if measure.function.__module__.endswith("map_measures"):
            doc = " ".join(measure.function.__doc__.split())
            assert f"{measure.better.title()} is better; {measure.category}" in doc, name
