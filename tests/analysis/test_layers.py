import itertools

import numpy as np
import pytest

from toushi.probe.analysis import layer_measures as layers
from toushi.probe.base.errors import ToushiError

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before():
    RANDOM.bit_generator.state = np.random.default_rng(0).bit_generator.state


def rotation(width: int) -> np.ndarray:
    return np.linalg.qr(RANDOM.normal(size=(width, width)))[0]


# --- similarity ---


def test_cosine_is_that_of_each_pair_and_nan_for_nothing():
    a, b = RANDOM.normal(size=(2, 3, 8)), RANDOM.normal(size=(2, 5, 8))
    found = layers.cosine(a, b)
    for layer, i, j in itertools.product(range(2), range(3), range(5)):
        expected = a[layer, i] @ b[layer, j] / np.linalg.norm(a[layer, i]) / np.linalg.norm(b[layer, j])
        assert found[layer, i, j] == pytest.approx(expected)
    assert np.isnan(layers.cosine(np.zeros((1, 8)), b[0])).all()
    with pytest.raises(ToushiError, match="width"):
        layers.cosine(a, b[..., :4])


def test_what_all_words_share_is_measured():
    states = RANDOM.normal(size=(2, 50, 400))
    states[1] += 3  # one direction common to all
    alone, common = layers.mean_pairwise_cosine(states)
    assert abs(alone) < 0.02 and common == pytest.approx(0.9, abs=0.02)
    assert np.isnan(layers.mean_pairwise_cosine(states[:, :1])).all()


# --- senses ---


def planted(strengths, sentences=12, senses=2, width=24):
    """States in which senses lie `strength` apart at each layer, beside a direction that all share."""
    names = np.repeat(np.arange(senses), sentences)
    directions = rotation(width)[:senses]
    noise = RANDOM.normal(size=(len(strengths), len(names), width)) + 1.0
    return noise + np.array(strengths)[:, None, None] * directions[names] * width**0.5, names


def test_a_planted_separation_is_found_at_the_planted_layer():
    states, senses = planted([0, 0, 2, 0])
    found = layers.sense_separation(states, senses)
    assert found.separation.values.argmax() == 2
    assert found.separation[2] > 0.3 and found.separation_low[2] > 0.2 and found.accuracy[2] == 1
    assert found.separation_p[2] < 0.01 and found.accuracy_p[2] < 0.01
    others = found.isel(layer=[0, 1, 3])
    assert (abs(others.separation) < 0.08).all() and (others.accuracy < 0.8).all()
    assert (found.separation_low <= found.separation).all() and (found.separation <= found.separation_high).all()


def test_separation_is_the_difference_of_mean_cosines():
    states, senses = planted([1.0], sentences=4, senses=3)
    alike = layers.cosine(states, states)[0]
    pairs = list(itertools.combinations(range(12), 2))
    by_sense = [np.mean([alike[i, j] for i, j in pairs if senses[i] == senses[j] == s]) for s in range(3)]
    across = np.mean([alike[i, j] for i, j in pairs if senses[i] != senses[j]])
    found = layers.sense_separation(states, senses, resamples=10, shuffles=0)
    assert found.within[0] == pytest.approx(np.mean(by_sense))
    assert found.separation[0] == pytest.approx(np.mean(by_sense) - across)
    assert "separation_p" not in found


@pytest.mark.slow
def test_separation_of_shuffled_senses_is_zero_on_average():
    states, senses = planted([2.0])
    found = layers.sense_separation(states, senses, shuffles=400)
    assert abs(float(found.separation_shuffled[0])) < 0.02 < float(found.separation[0]) / 10
    # Mixed by hand the whole measure finds nothing, in no more than one case of twenty or so.
    chances = [
        float(layers.sense_separation(states, RANDOM.permutation(senses), resamples=2, shuffles=100).separation_p[0])
        for _ in range(40)
    ]
    assert np.mean(np.array(chances) <= 0.05) <= 0.15


def test_turning_and_scaling_all_states_changes_nothing():
    states, senses = planted([0.5, 1.0])
    turned = 7 * states @ rotation(24)
    one, other = (layers.sense_separation(x, senses, resamples=50, shuffles=20) for x in (states, turned))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-9)


def test_the_interval_covers_the_truth():
    """True separation from many sentences; the intervals from few cover it nearly as often as they claim."""
    width, strength = 24, np.array([0.7])
    directions = rotation(width)[:2]

    def draw(sentences):
        senses = np.repeat([0, 1], sentences)
        noise = RANDOM.normal(size=(1, len(senses), width))
        return noise + strength[:, None, None] * directions[senses] * width**0.5, senses

    truth = float(layers.sense_separation(*draw(400), resamples=2, shuffles=0).separation[0])
    hits = 0
    for _ in range(60):
        found = layers.sense_separation(*draw(12), resamples=200, shuffles=0)
        hits += float(found.separation_low[0]) <= truth <= float(found.separation_high[0])
    assert hits >= 48


def test_sentences_of_one_template_are_not_evidence_for_each_other():
    # Each template has a direction of its own and one sense; nothing else is in the states.
    templates = np.repeat(np.arange(8), 4)
    senses = templates % 2
    states = (RANDOM.normal(size=(8, 64))[templates] + 0.1 * RANDOM.normal(size=(32, 64)))[None]
    blind = layers.sense_separation(states, senses, resamples=20, shuffles=50)
    grouped = layers.sense_separation(states, senses, templates, resamples=200, shuffles=50)
    assert blind.accuracy[0] == 1 and blind.separation[0] > 0.15
    assert grouped.accuracy[0] < 0.8 and abs(grouped.separation[0]) < 0.1
    assert grouped.separation_low[0] < 0 < grouped.separation_high[0] and grouped.attrs["groups"] == 8


def test_templates_with_both_senses_are_shuffled_inside():
    frames = np.tile(np.arange(10), 2)
    senses = np.repeat(["bank", "shore"], 10)
    mixed = layers._shuffle_senses(np.random.default_rng(0), np.repeat([0, 1], 10), frames)
    assert all(set(mixed[frames == frame]) == {0, 1} for frame in range(10))
    meaning = np.stack([np.full(40, -1.0), np.full(40, 1.0)])[np.repeat([0, 1], 10)]
    states = (3 * RANDOM.normal(size=(10, 40))[frames] + meaning)[None]  # frames matter more than the sense
    found = layers.sense_separation(states, senses, frames)
    assert found.accuracy[0] > 0.9 and found.separation_p[0] < 0.05 and found.attrs["senses"] == ["bank", "shore"]


def test_states_that_are_all_the_same_are_guessed_at():
    same = np.tile(RANDOM.normal(size=(1, 1, 16)), (1, 12, 1)) + 1e-8 * RANDOM.normal(size=(1, 12, 16))
    found = layers.sense_separation(same, np.repeat([0, 1], 6))
    assert found.accuracy[0] == 0.5 and found.separation[0] == pytest.approx(0, abs=1e-9)


def test_the_same_seed_gives_the_same_numbers():
    states, senses = planted([0.5, 0.2])
    one, same, other = (layers.sense_separation(states, senses, seed=seed) for seed in (1, 1, 2))
    assert one.identical(same) and not one.equals(other)


@pytest.mark.parametrize(
    "senses, groups, said",
    [
        ([0, 0, 0, 0, 0, 1], None, "1 sentence"),
        ([0] * 6, None, "two senses"),
        ([0, 1], None, "each of 6"),
        ([0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 3, 3], "in 1 group"),
    ],
)
def test_senses_that_cannot_be_told_apart_are_refused(senses, groups, said):
    with pytest.raises(ToushiError, match=said):
        layers.sense_separation(RANDOM.normal(size=(2, 6, 4)), senses, groups)
    with pytest.raises(ToushiError, match="zero"):
        layers.sense_separation(np.zeros((2, 4, 4)), [0, 0, 1, 1])


# --- CKA ---


def test_cka_of_layers_with_themselves_is_one_and_with_noise_about_zero():
    x, y = RANDOM.normal(size=(8, 40, 200)), RANDOM.normal(size=(6, 40, 300))
    np.testing.assert_allclose(np.diagonal(layers.cka(x, x)), 1)
    unrelated = layers.cka(x, y)
    assert unrelated.shape == (8, 6) and abs(unrelated.mean()) < 0.02 and abs(unrelated).max() < 0.15
    # The plain estimate calls the same noise alike.
    k, l = (z[0] - z[0].mean(0) for z in (x, y))
    plain = np.linalg.norm(k.T @ l) ** 2 / np.linalg.norm(k.T @ k) / np.linalg.norm(l.T @ l)
    assert plain > 0.8


def test_cka_does_not_see_rotation_scale_and_shift_but_sees_a_stretch():
    x = RANDOM.normal(size=(1, 30, 12))
    same = 5 * x @ rotation(12) - 3
    stretched = x * np.array([100] + [1] * 11)
    assert layers.cka(x, same)[0, 0] == pytest.approx(1)
    assert layers.cka(x, stretched)[0, 0] < 0.9


def test_cka_is_the_published_formula():
    x, y = RANDOM.normal(size=(1, 9, 4)), RANDOM.normal(size=(1, 9, 6))
    y[0, :, :2] += x[0, :, :2]

    def hsic(k, l):  # Song et al. 2012, equation 5
        n, one = len(k), np.ones(len(k))
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
        middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ l) + middle - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))

    k, l = x[0] @ x[0].T, y[0] @ y[0].T
    assert layers.cka(x, y)[0, 0] == pytest.approx(hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l)))


def test_cka_of_what_does_not_vary_is_unknown():
    x = RANDOM.normal(size=(1, 6, 4))
    assert np.isnan(layers.cka(x, np.ones((1, 6, 3)))).all()
    with pytest.raises(ToushiError, match="at least 4"):
        layers.cka(x[:, :3], x[:, :3])
    with pytest.raises(ToushiError, match="same rows"):
        layers.cka(x, x[:, :5])


# --- attention ---


def test_heads_that_look_at_one_place_at_all_and_at_specials():
    tokens = 8
    special = np.array([True] + [False] * 6 + [True])
    one_back = np.eye(tokens, k=-1)
    one_back[0, 0] = 1
    everywhere = np.full((tokens, tokens), 1 / tokens)
    to_first = np.zeros((tokens, tokens))
    to_first[:, 0] = 1
    found = layers.head_statistics(np.stack([one_back, everywhere, to_first])[None], special)
    assert found.entropy.values[0] == pytest.approx([0, 3, 0])
    assert found.special.values[0] == pytest.approx([1 / 6, 2 / 8, 1])
    distances = abs(np.arange(6)[:, None] - np.arange(6)).mean()
    assert found.distance.values[0, :2] == pytest.approx([1, distances]) and np.isnan(found.distance.values[0, 2])
    assert np.isnan(layers.head_statistics(everywhere[None, None], np.ones(8, bool)).entropy).all()
    with pytest.raises(ToushiError, match="mark"):
        layers.head_statistics(everywhere[None, None], special[:3])


def test_rollout_mixes_and_keeps_sums():
    attention = RANDOM.random((5, 2, 7, 7))
    attention /= attention.sum(-1, keepdims=True)
    found = layers.rollout(attention)
    assert found.shape == (5, 7, 7)
    np.testing.assert_allclose(found.sum(-1), 1)
    step = [0.5 * layer.mean(0) + 0.5 * np.eye(7) for layer in attention]
    np.testing.assert_allclose(found[2], step[2] @ step[1] @ step[0])


def test_rollout_of_a_causal_encoder_never_looks_ahead_and_of_selfish_heads_stays():
    attention = np.tril(RANDOM.random((4, 3, 6, 6)))
    attention /= attention.sum(-1, keepdims=True)
    assert not np.triu(layers.rollout(attention), 1).any()
    np.testing.assert_array_equal(layers.rollout(np.broadcast_to(np.eye(6), (4, 3, 6, 6)))[-1], np.eye(6))
    with pytest.raises(ToushiError, match="query"):
        layers.rollout(attention[..., :3])
