"""Two traces on common axes: the maps are still those of each trace, and their difference is a difference."""

import made_trace
import numpy as np
import pytest

from toushi.dashboards.heat_map import trace_pair as pairs
from toushi.dashboards.heat_map.word_maps import read_word_maps
from toushi.dashboards.run_metadata import differences, run_facts
from toushi.probe.base.errors import ToushiError
from toushi.probe.trace.open import open_trace

HALF = {"rtol": 2**-10, "atol": 1e-7}
COARSE = {**made_trace.SITES, "unet.up.1.cross_attention": {"kind": "cross", "grid": [8, 8], "heads": 2}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")

    def make(name, **how):
        return open_trace(made_trace.write(folder / name, **how))

    return make


@pytest.fixture(scope="module")
def first(made):
    return made("first")


def both(*traces):
    return pairs.align_traces(*(read_word_maps(trace, "cond") for trace in traces))


def unit(common, label):
    return [one.label for one in common.units].index(label)


def test_each_side_is_its_trace(first, made):
    second = made("second", prompt="右边是猫，左边是月亮", steps=6)
    common = both(first, second)
    for word in ("猫", "月亮", "左边"):
        for side, trace in enumerate((first, second)):
            maps = common.layers[0].maps[side, :, unit(common, word)]
            np.testing.assert_allclose(maps[0], trace.heat_map(word), **HALF)
            np.testing.assert_allclose(maps[4], trace.heat_map(word, steps=3), **HALF)
    assert "夜晚" not in [one.label for one in common.units]


def test_a_trace_differs_from_itself_nowhere(first):
    common = both(first, first)
    assert len(common.units) == len(read_word_maps(first, "cond").units) and len(common.steps) == len(first.steps)
    for layer in common.layers:
        assert np.array_equal(layer.maps[0], layer.maps[1])


def test_of_unequal_steps_those_equally_far_on_are_compared(first, made):
    short = made("short", steps=3)
    common = both(first, short)
    assert [a for a, _ in common.steps] == first.steps and common.steps[0] == (0, 0) and common.steps[-1] == (5, 2)
    turned = both(short, first)
    assert [(b, a) for a, b in turned.steps] == list(common.steps)
    np.testing.assert_array_equal(turned.layers[0].maps[::-1], common.layers[0].maps)


def test_the_coarser_grid_is_brought_to_the_finer(first, made):
    coarse = made("coarse", sites=COARSE)
    common = both(first, coarse)
    (layer,) = [layer for layer in common.layers if layer.name == "unet.up.1.cross_attention"]
    assert layer.grid == (16, 16)
    kept = coarse.heat_map("猫", sites=layer.name)
    assert layer.maps[1, 0, unit(common, "猫")].mean() == pytest.approx(float(kept.mean()), rel=1e-3)


def test_without_a_common_word_there_is_nothing_to_compare(first, made):
    with pytest.raises(ToushiError, match="no common word"):
        both(first, made("english", prompt="a red dog"))


def test_only_what_differs_is_told(first, made):
    seed = made("seed", steps=9, edits=[{"kind": "zero", "word": "猫", "site": "unet.*"}])
    assert differences(first, first, "en") == ["", ""]
    assert differences(first, seed, "en") == ["6 steps · no edit", "9 steps · zero 猫 @ unet.*"]


def test_the_facts_tell_what_else_went_into_the_picture(made):
    loras = [{"file": "ink.safetensors", "scale": 0.8, "on": True}, {"name": "wash", "scale": 1.0, "on": False}]
    trace = made("blocked", negative="模糊", loras=loras, safety="blocked")
    told = run_facts(trace, "en")
    assert told["negative"] == "negative “模糊”" and told["safety"] == "blocked by the safety checker"
    assert told["loras"] == "LoRA ink.safetensors × 0.8, LoRA wash × 1.0 (off)"
    assert "图像被安全检查器拦下" in run_facts(trace, "zh").values()
    assert run_facts(made("other", safety="something else"), "en").keys().isdisjoint({"negative", "loras", "safety"})
