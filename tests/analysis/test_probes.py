"""Probes find what was planted where it was planted, and do not take memory for knowledge."""

import numpy as np
import pytest

from toushi.probe.analysis.probes import code_length, linear_probe, onset_layer
from toushi.probe.base.errors import ToushiError

LAYERS, UNITS, WIDE, TEMPLATES = 4, 240, 40, 12


@pytest.fixture(scope="module")
def made():
    """Units of 60 types and 4 labels in 12 templates; noise of types and templates at every layer, labels from 2 on."""
    random = np.random.default_rng(0)
    label, kind, group = (random.integers(n, size=UNITS) for n in (4, 60, TEMPLATES))
    states = random.normal(size=(LAYERS, UNITS, WIDE))
    states += random.normal(size=(60, WIDE))[kind] + 2 * random.normal(size=(TEMPLATES, WIDE))[group]
    states[2:] += 3 * random.normal(size=(4, WIDE))[label]
    return states, label, kind, group


def test_a_planted_label_is_found_at_its_layer_and_nowhere_before(made):
    found = linear_probe(*made, seed=1)
    assert (found.accuracy[2:] > 0.95).all() and (found.selectivity[2:] > 0.5).all()
    assert (abs(found.accuracy[:2] - 0.25) < 0.12).all() and (abs(found.selectivity[:2]) < 0.15).all()
    assert onset_layer(found.selectivity.values, 0.8) == 2
    assert found.right.shape == found.control.shape == (LAYERS, UNITS)
    np.testing.assert_allclose(found.right.mean("unit"), found.accuracy)
    assert 0.25 <= found.attrs["chance"] < 0.35


def test_what_is_only_memorised_has_a_selectivity_near_zero():
    """The label is a random function of the type, as in the control task itself."""
    random = np.random.default_rng(1)
    kind, group = random.integers(20, size=UNITS), random.integers(TEMPLATES, size=UNITS)
    label = random.integers(4, size=20)[kind]
    states = random.normal(size=(2, 20, WIDE))[:, kind] + 0.1 * random.normal(size=(2, UNITS, WIDE))
    found = linear_probe(states, label, kind, group, controls=8)
    assert (found.accuracy > 0.7).all() and (abs(found.selectivity) < 0.1).all()


def test_a_template_that_gives_the_label_away_is_no_help(made):
    states, _, kind, group = made
    found = linear_probe(states[:1], group % 3, kind, group)
    assert found.accuracy[0] < 0.55


def test_the_same_seed_gives_the_same_numbers_and_scale_does_not_matter(made):
    states, *about = made
    first, again = linear_probe(states[1:3], *about), linear_probe(states[1:3], *about)
    assert first.identical(again)
    far = linear_probe(states[1:3] * 1000 + 5, *about)
    np.testing.assert_allclose(first.right, far.right)


def test_the_code_is_short_where_the_label_is_and_not_elsewhere(made):
    states, label, _, group = made
    found = code_length(states, label, group)
    assert found.attrs["uniform"] == UNITS * 2
    assert (found.compression[2:] > 2).all() and (found.compression[:2] < 1.1).all()
    assert code_length(states, label, group).identical(found)


def test_states_of_noise_cost_no_more_than_the_labels_alone():
    """A classifier that has learnt noise is surely wrong; its code is then not taken."""
    random = np.random.default_rng(0)
    label, group = random.integers(4, size=240), np.repeat(np.arange(12), 20)
    found = code_length(random.normal(size=(3, 240, 64)), label, group)
    assert (found.compression > 0.95).all() and (found.compression < 1.05).all()


def test_states_without_any_difference_say_nothing():
    label, group = np.tile([0, 1], 30), np.repeat(np.arange(6), 10)
    same = np.ones((1, 60, 5))
    assert linear_probe(same, label, label, group).accuracy[0] == pytest.approx(0.5, abs=0.01)
    assert 0.9 < code_length(same, label, group).compression[0] <= 1.01


@pytest.mark.parametrize(
    "curve, layer", [([0, 0.1, 0.5, 0.6], 2), ([0.6, 0.5, 0.1, 0], 0), ([0, 0, 0, 0], -1), ([-1, -0.5, -0.2, 0.1], 3)]
)
def test_the_first_layer_that_reaches_a_share_of_the_most(curve, layer):
    assert onset_layer(curve, 0.8) == layer
    assert onset_layer([curve, curve], 0.8).tolist() == [layer, layer]


def test_bad_input_is_told_apart():
    states = np.zeros((1, 4, 2))
    with pytest.raises(ToushiError, match="at least two labels"):
        linear_probe(states, [*"aaaa"], [*"aaaa"], [*"abab"])
    with pytest.raises(ToushiError, match="'b' occurs in 1 group"):
        linear_probe(states, [*"aabb"], [*"aabb"], [*"xyzz"])
    with pytest.raises(ToushiError, match=r"each of 4 units, but \[3, 4, 4\]"):
        linear_probe(states, [*"aab"], [*"aabb"], [*"xyzz"])
    with pytest.raises(ToushiError, match="finite states"):
        linear_probe(np.full((1, 4, 2), np.nan), [*"abab"], [*"abab"], [*"xyxy"])


def test_two_groups_are_too_few_to_choose_a_probe():
    label, group = [0, 1] * 6, [0] * 6 + [1] * 6
    with pytest.raises(ToushiError, match="give more groups"):
        linear_probe(np.random.default_rng(0).normal(size=(1, 12, 4)), label, label, group)


def test_a_few_units_of_each_label_are_split_into_fewer_parts():
    label, group = np.tile([0, 1, 2], 4), np.repeat(np.arange(4), 3)
    found = linear_probe(np.eye(3)[label][None] * 10, label, label, group, controls=0)
    assert found.accuracy[0] == 1
