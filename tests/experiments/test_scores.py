"""What the scoring experiments count, on answers that are known."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from toushi.experiments.measures.pointing import best_layers, rates, score_words
from toushi.experiments.measures.score_mini_unet import answers
from toushi.experiments.measures.score_mini_unet import rates as score_rates
from toushi.experiments.measures.statistics import share
from toushi.experiments.scene_world.example import example
from toushi.experiments.scene_world.recogniser import judge
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace


def test_an_interval_knows_that_answers_of_one_scene_are_one():
    right = pd.Series([True, False] * 50)
    apart, together = share(right, pd.Series(range(100))), share(right, pd.Series([0, 1] * 50))
    assert apart[0] == together[0] == 0.5
    assert apart[2] - apart[1] == pytest.approx(0.196, abs=0.03)  # 1.96 sqrt(0.25 / 100), twice
    assert together[1:] == (0.0, 1.0)
    assert share(pd.Series([True] * 10), pd.Series(range(10)))[1] == pytest.approx(0.722, abs=0.001)


@pytest.mark.parametrize("scenes", [9, 12, 500])
def test_one_wrong_answer_more_never_raises_an_interval(scenes):
    """Resampling knows no doubt where all agree; taken alone it would make the flawless the less sure one."""
    right = pd.Series([True] * (5 * scenes))
    ends = []
    for wrong in range(6):
        right[:wrong] = False
        ends.append(share(right, pd.Series(range(len(right))) // 5)[1:])
    assert all(b <= a for one, other in pairwise(ends) for a, b in zip(one, other))
    assert ends[0] == (pytest.approx(binomtest(scenes, scenes).proportion_ci(method="wilson").low), 1.0)


@pytest.mark.slow
def test_a_scene_drawn_by_the_world_itself_is_right_and_another_is_not():
    rows = []
    for seed in range(4):
        e, other = example(seed, "test"), example(seed + 50, "test")
        rows += answers(seed, e, judge(e.scene, e.picture, e.caption.language))
        wrong = pd.DataFrame(answers(seed, e, judge(e.scene, other.picture, e.caption.language)))
        assert not wrong[wrong.what == "everything"].right.any()
    table = score_rates(pd.DataFrame(rows)).set_index(["what", "language"])
    assert table.right["object", "all"] == 1 and table.right["everything", "all"] == 1


@pytest.fixture(scope="module")
def two_objects(tmp_path_factory):
    """A recorded look at a scene of two objects, and the scene."""
    e = next(
        e
        for e in (example(seed, "test") for seed in range(200))
        if len(e.scene.objects) == 2 and e.masks.any((1, 2)).all()
    )
    model, folder = MiniUNet.tiny(), tmp_path_factory.mktemp("pointing") / "run"
    with record(model, folder, keep="mean", sites="unet.*cross_attention"):
        model.denoise(model.noise(1, 64, 64, 0), 0.5, e.caption.text)
    return open_trace(folder), e


def test_every_object_is_scored_at_every_layer(two_objects):
    trace, e = two_objects
    table = pd.DataFrame(dict(kind="noised", scene=0, time=0.5) | row for row in score_words(trace, e, list(e.masks)))
    layers = {*trace.sites, "plain mean"}
    assert set(table.layer) == layers and len(table) == 2 * len(layers)
    assert table.found.all() and table.chance.between(0, 1).all()


def test_a_mask_everywhere_is_hit_and_one_without_the_peak_is_not(two_objects):
    trace, e = two_objects
    everywhere = pd.DataFrame(score_words(trace, e, [np.ones((64, 64), bool)] * 2))
    assert everywhere.hit.all() and everywhere.other.all() and (everywhere.chance == 1).all()
    missing = pd.DataFrame(score_words(trace, e, [None, None]))
    assert not missing.found.any() and "hit" not in missing


def test_the_best_layer_is_chosen_and_scored_on_different_scenes():
    rows = [
        dict(kind="noised", time=0.5, scene=scene, word="猫", found=True, layer=layer, other=False, auc=0.5, chance=0.1,
             hit=(layer == "a") if scene % 2 == 0 else (layer == "b"))
        for scene in range(20) for layer in ("a", "b", "plain mean")
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    best = best_layers(table).iloc[0]
    assert best.best_layer == "a" and best.hit == 0 and best.words == 10
    assert rates(table).set_index("layer").hit["a"] == 0.5
