import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from toushi.probe.analysis import maps
from toushi.probe.base.errors import ToushiError

RANDOM = np.random.default_rng(0)
sides = st.integers(1, 12)
grids = st.tuples(sides, sides)


@given(grids, grids, st.integers(0, 99))
def test_resampling_keeps_the_mean_constants_and_bounds(source, target, seed):
    values = np.random.default_rng(seed).random((2, *source))
    fine = maps.resample(values, target)
    assert fine.shape == (2, *target)
    np.testing.assert_allclose(fine.mean((-2, -1)), values.mean((-2, -1)), rtol=1e-12)
    np.testing.assert_allclose(maps.resample(np.full(source, 0.3), target), 0.3)
    assert fine.min() >= values.min() - 1e-12 and fine.max() <= values.max() + 1e-12


@pytest.mark.parametrize("source, factor", [((4, 4), 4), ((8, 6), 2), ((5, 3), 3), ((16, 16), 1)])
def test_enlarging_by_a_whole_factor_is_torchs_bilinear(source, factor):
    torch = pytest.importorskip("torch")
    values = RANDOM.random((2, 3, *source)).astype(np.float32)
    size = (source[0] * factor, source[1] * factor)
    expected = torch.nn.functional.interpolate(torch.tensor(values), size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(maps.resample(values, size), expected.numpy(), atol=1e-6)


def test_shrinking_by_a_whole_factor_is_the_mean_of_blocks():
    values = RANDOM.random((6, 8))
    np.testing.assert_allclose(maps.resample(values, (3, 2)), values.reshape(3, 2, 2, 4).mean((1, 3)))


def test_half_precision_is_computed_in_single():
    fine = maps.resample(np.full((4, 4), 1e-7, np.float16), (16, 16))
    assert fine.dtype == np.float32 and np.ptp(fine) < 1e-12


def test_labels_survive():
    native = xr.DataArray(
        RANDOM.random((2, 3, 4, 4)),
        dims=("step", "layer", "y", "x"),
        coords={"step": [0, 1], "layer": list("abc"), "y": range(4), "x": range(4)},
        name="attention",
        attrs={"units": "probability"},
    )
    fine = maps.resample(native, (8, 8))
    assert fine.dims == native.dims and fine.shape == (2, 3, 8, 8) and fine.name == "attention"
    assert fine.attrs == native.attrs and list(fine.layer.values) == list("abc")
    assert maps.mass(native).dims == ("step", "layer")
    y, x = maps.centre_of_mass(native)
    np.testing.assert_allclose(y.values, maps.centre_of_mass(native.values)[0])
    assert x.dims == ("step", "layer")


@given(grids.filter(lambda g: g[0] * g[1] > 1), st.data())
def test_one_cell_is_where_it_is(grid, data):
    y, x = data.draw(st.integers(0, grid[0] - 1)), data.draw(st.integers(0, grid[1] - 1))
    single = np.zeros(grid)
    single[y, x] = 0.25
    where = ((y + 0.5) / grid[0], (x + 0.5) / grid[1])
    assert maps.centre_of_mass(single) == pytest.approx(where)
    assert maps.peak(single) == pytest.approx(where)
    assert maps.spread(single) == pytest.approx(0)
    assert maps.entropy(single) == pytest.approx(0)
    assert maps.mass(single) == pytest.approx(0.25 / single.size)


def test_a_flat_map_is_everywhere():
    flat = np.full((40, 60), 0.1)
    assert maps.centre_of_mass(flat) == pytest.approx((0.5, 0.5))
    assert maps.spread(flat) == pytest.approx(np.sqrt(1 / 6), rel=1e-3)
    assert maps.entropy(flat) == pytest.approx(1)
    assert maps.mass_inside(flat, np.eye(40, 60)) == pytest.approx(40 / 2400)


def test_what_stands_out_is_found_over_any_background():
    heat = np.full((16, 16), 0.4)
    heat[2:4, 12:14] += 0.1
    assert maps.centre_of_mass(maps.above_mean(heat)) == pytest.approx((3 / 16, 13 / 16))
    assert maps.centre_of_mass(heat) != pytest.approx((3 / 16, 13 / 16), abs=0.2)
    labelled = xr.DataArray(heat, dims=("y", "x"), attrs={"unit": "probability"})
    np.testing.assert_allclose(maps.above_mean(labelled).values, maps.above_mean(heat))
    assert maps.above_mean(labelled).attrs == labelled.attrs
    assert not maps.above_mean(np.ones((4, 4))).any()


def test_a_map_of_zeros_has_no_place():
    nothing = np.zeros((2, 4, 4))
    assert np.isnan(maps.centre_of_mass(nothing)).all() and np.isnan(maps.entropy(nothing)).all()
    assert np.isnan(maps.mass_inside(nothing, np.ones((8, 8)))).all()
    assert (maps.mass(nothing) == 0).all()


def test_inside_counts_covered_shares_of_cells():
    heat = np.array([[1.0, 3.0], [0.0, 0.0]])
    mask = np.zeros((4, 4), bool)
    mask[:2, 2:] = True
    assert maps.mass_inside(heat, mask) == pytest.approx(0.75)
    mask[:, 3] = mask[1] = False  # one pixel of the four is left
    assert maps.mass_inside(heat, mask) == pytest.approx(0.75 / 4)


class TestPointingGame:
    mask = np.zeros((64, 64), bool)
    mask[8:24, 40:56] = True  # cells 2..5 and 10..13 of a 16 x 16 grid

    @pytest.mark.parametrize("cell, hit", [((2, 10), True), ((5, 13), True), ((6, 12), False), ((3, 9), False)])
    def test_known_peaks(self, cell, hit):
        heat = RANDOM.random((16, 16))
        heat[cell] = 2
        assert bool(maps.pointing_game(heat, self.mask)) is hit

    def test_ties_all_have_to_hit(self):
        heat = np.zeros((3, 16, 16))
        heat[:, 3, 12] = heat[0, 4, 11] = heat[1, 12, 3] = 1
        assert maps.pointing_game(heat, self.mask).tolist() == [True, False, True]
        assert not maps.pointing_game(np.ones((16, 16)), self.mask)
        assert maps.pointing_game(np.ones((16, 16)), np.ones((64, 64)))

    def test_the_centre_between_pixels_is_judged_by_all_its_neighbours(self):
        heat = np.eye(1, 256, 17).reshape(16, 16)  # cell (1, 1), its centre between the pixels 5 and 6
        mask = np.zeros((64, 64))
        mask[5, 5] = 1
        assert not maps.pointing_game(heat, mask)
        mask[5, 6] = 1
        assert maps.pointing_game(heat, mask)

    def test_nan_is_refused(self):
        with pytest.raises(ToushiError, match="NaN"):
            maps.pointing_game(np.full((4, 4), np.nan), self.mask)


class TestAuc:
    mask = np.zeros((8, 8), bool)
    mask[2:5, 1:7] = True

    def test_known_answers(self):
        assert maps.auc(self.mask.astype(float), self.mask) == 1
        assert maps.auc(1 - self.mask, self.mask) == 0
        assert maps.auc(np.full((8, 8), 0.7), self.mask) == 0.5
        assert maps.auc(RANDOM.random((400, 8, 8)), self.mask).mean() == pytest.approx(0.5, abs=0.02)

    def test_it_is_the_chance_that_a_pixel_inside_beats_one_outside(self):
        heat = RANDOM.integers(0, 5, (8, 8)).astype(float)
        a, b = heat[self.mask], heat[~self.mask]
        wins = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
        assert maps.auc(heat, self.mask) == pytest.approx(wins)

    def test_coarse_maps_and_empty_masks(self):
        assert maps.auc(maps.resample(self.mask.astype(float), (4, 4)), self.mask) > 0.9
        assert np.isnan(maps.auc(np.ones((4, 4)), np.zeros((8, 8))))


@given(arrays(np.float64, (2, 3, 4, 5, 5), elements=st.floats(0, 1)))
def test_timeline_weighs_layers_equally_however_many_heads(values):
    attention = xr.DataArray(values, dims=("step", "layer", "head", "y", "x"))
    attention[:, 0, 1:] = np.nan  # the first layer has one head
    expected = [(v[0, 0].mean() + v[1].mean() + v[2].mean()) / 3 for v in attention.values]
    result = maps.timeline(attention)
    assert result.dims == ("step",)
    np.testing.assert_allclose(result.values, expected)
    native = {i: attention.isel(layer=i, head=slice(0, 1 if i == 0 else None)) for i in range(3)}
    np.testing.assert_allclose(maps.timeline(native).values, expected)


def test_a_step_that_lacks_a_layer_is_the_mean_of_the_others():
    attention = xr.DataArray(RANDOM.random((3, 2, 4, 5, 5)), dims=("step", "layer", "head", "y", "x"))
    attention[1, 0] = np.nan
    native = {i: attention.isel(layer=i) for i in range(2)}
    expected = [attention[0].mean(), attention[1, 1].mean(), attention[2].mean()]
    np.testing.assert_allclose(maps.timeline(native).values, expected)
    np.testing.assert_allclose(maps.timeline(attention).values, expected)


@given(arrays(np.float64, (3, 2, 4, 6), elements=st.floats(0, 1)), st.integers(0, 2))
def test_the_heat_map_weighs_sites_equally_and_leaves_out_what_is_missing(values, missing):
    many_heads = np.repeat(values[:, :1], 5, 1)
    many_heads[missing] = np.nan  # a step at which this site was not kept
    one_head = values[:, 1]
    there = np.delete(values[:, 0], missing, 0)
    expected = (there.mean(0) + one_head.mean(0)) / 2
    np.testing.assert_allclose(maps.heat_map([many_heads, one_head]), expected)
    coarse = maps.resample(one_head, (2, 3))
    expected = (there.mean(0) + maps.resample(coarse.mean(0), (4, 6))) / 2
    np.testing.assert_allclose(maps.heat_map(iter([many_heads, coarse])), expected)


def test_the_mean_of_nothing_but_missing_values_is_missing():
    found = maps.nan_mean(np.array([[np.nan, 1.0], [np.nan, 3.0]], np.float32))
    assert found.dtype == np.float32 and np.isnan(found[0]) and found[1] == 2


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 4))])
def test_wrong_shapes_are_named(bad):
    with pytest.raises(ToushiError, match="expected maps"):
        maps.mass(bad)
