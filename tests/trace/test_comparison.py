"""Two traces side by side: `compare`."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.trace.runs import SITES, Run
from toushi.probe.analysis.maps import correlation, resample, total_variation
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import UnknownWord, word_labels
from toushi.probe.trace.comparison import compare
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.writer import TraceWriter

FINE = "unet.down.0.cross_attention"
PICTURE = np.full((32, 16, 3), 100, np.uint8)


def write(folder, picture=PICTURE, seed=0, prompt="左边是猫，右边是月亮", stop_after=None, sites=SITES, **fields):
    """The folder of a made-up trace with this picture."""
    run = Run(seed=seed, prompt=prompt, sites=sites)
    with TraceWriter(folder, run.manifest(**fields)) as writer:
        for step in range(run.steps if stop_after is None else stop_after):
            writer.write_step(step, run.tensors(step))
        if picture is not None:
            writer.write_image(Image.fromarray(picture))
        if stop_after is not None:
            writer.close(complete=False)
    return folder


@pytest.fixture
def a(tmp_path):
    return write(tmp_path / "a")


def test_a_trace_does_not_differ_from_itself(a):
    same = compare(a, open_trace(a))
    assert same.mean_difference == same.changed_pixels == 0 and not same.notes and same.facts.empty
    words = open_trace(a).words()
    assert list(same.words.index) == word_labels(words, words)
    assert np.allclose(same.words.correlation, 1) and np.allclose(same.words.total_variation, 0, atol=1e-6)
    assert (same.words.share_a == same.words.share_b).all()


def test_pictures_maps_and_facts(a, tmp_path):
    other = PICTURE.copy()
    other[:8, :, 1] += 17  # a quarter of the pixels
    other[8:, :, 0] += 16
    b = write(tmp_path / "b", other, seed=1, guidance=2.0, versions={"torch": "2"}, edits=[{"kind": "zero"}])
    result = compare(a, b)
    assert result.changed_pixels == 0.25
    assert result.mean_difference == pytest.approx((0.25 * 17 + 0.75 * 16) / 3)
    assert set(result.facts.index) == {"seed", "guidance", "versions.torch", "edits"}
    assert list(result.facts.loc["seed"]) == [0, 1] and list(result.facts.loc["guidance"]) == [None, 2.0]
    heats = [open_trace(folder).heat_map("月亮").values.astype(float) for folder in (a, b)]
    row = result.words.loc["月亮"]
    assert row.share_a == pytest.approx(heats[0].mean()) and row.share_b == pytest.approx(heats[1].mean())
    assert row.correlation == pytest.approx(np.corrcoef(heats[0].ravel(), heats[1].ravel())[0, 1])
    p, q = (heat / heat.sum() for heat in heats)
    assert row.total_variation == pytest.approx(np.abs(p - q).sum() / 2)
    assert result.notes == ("The maps of B show the attention before each edit at its site, so an edit may not show.",)
    assert isinstance(result.words, pd.DataFrame) and result.maps["月亮"][0].dims == ("y", "x")


def test_a_default_that_one_call_names_is_no_difference(tmp_path):
    a = write(tmp_path / "a", guidance=3.0, arguments={"steps": 3})
    b = write(tmp_path / "b", guidance=3.0, arguments={"steps": 3, "guidance": 3.0})
    assert compare(a, b).facts.empty
    c = write(tmp_path / "c", guidance=3.0, arguments={"steps": 3, "guidance": 4.0})
    assert list(compare(a, c).facts.index) == ["arguments.guidance"]
    d = write(tmp_path / "d", guidance=4.0, arguments={"steps": 3, "guidance": 4.0})
    assert list(compare(a, d).facts.index) == ["guidance", "arguments.guidance"]


def test_words_can_be_chosen(a, tmp_path):
    b = write(tmp_path / "b", prompt="月亮和猫")
    assert list(compare(a, b, words=["猫"]).words.index) == ["猫"]
    with pytest.raises(UnknownWord, match="右边"):
        compare(a, b, words=["右边"])


def test_different_words_and_grids(a, tmp_path):
    sites = {FINE: {"kind": "cross", "grid": [16, 8], "heads": 2}}
    b = write(tmp_path / "b", prompt="猫和月亮，猫", sites=sites)
    result = compare(a, b)
    assert list(result.words.index) == ["猫#1", "月亮"]
    notes = " ".join(result.notes)
    assert "Only A has a map of:" in notes and "左边" in notes
    assert any(note.startswith("Only B has a map of: ") and "猫#2" in note for note in result.notes)
    assert "(8x4 and 16x8 cells)" in notes and "different sites" in notes
    first, second = result.maps["月亮"]
    assert first.shape == second.shape == (16, 8)
    np.testing.assert_allclose(first, resample(open_trace(a).heat_map("月亮").values, (16, 8)), rtol=1e-6)


def test_no_common_word(a, tmp_path):
    result = compare(a, write(tmp_path / "b", prompt="a red dog"))
    assert result.words.empty and result.maps == {} and result.mean_difference == 0
    assert "No map is compared: the traces have no common word." in result.notes


def test_incomplete_traces_and_missing_pictures(a, tmp_path):
    b = write(tmp_path / "b", None, stop_after=2)
    result = compare(a, b)
    assert result.mean_difference is None and result.changed_pixels is None and len(result.words)
    assert result.notes == (
        "B is not complete: it has 2 of 3 steps.",
        "The pictures are not compared: B has none, because the run ended before.",
    )
    empty = compare(write(tmp_path / "c", None, stop_after=0), b)
    assert empty.words.empty and any("no step is finished" in note for note in empty.notes)


def test_pictures_of_different_sizes_and_branches_that_are_missing(a, tmp_path):
    result = compare(a, write(tmp_path / "b", PICTURE[:16]), branch="other")
    assert result.mean_difference is None
    assert any("different sizes, 32x16 and 16x16 pixels" in note for note in result.notes)
    assert any("There is no branch 'other'" in note for note in result.notes)


def test_measures_of_two_maps():
    random = np.random.default_rng(0)
    one, other = random.random((2, 3, 8, 4))
    assert correlation(one, 2 * one + 3) == pytest.approx(1) and correlation(one, -one) == pytest.approx(-1)
    np.testing.assert_allclose(total_variation(one, 5 * one), 0, atol=1e-12)
    np.testing.assert_allclose(total_variation(one, other), total_variation(other, one))
    halves = np.zeros((2, 4, 4))
    halves[0, :2], halves[1, 2:] = 1, 3
    assert total_variation(*halves) == 1
    assert np.isnan(correlation(np.ones((4, 4)), one[0, :4])) and np.isnan(total_variation(0 * halves[0], halves[0]))
    with pytest.raises(ToushiError, match="one grid"):
        correlation(one, other[..., :2])
