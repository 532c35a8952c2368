"""The words of a rectangle of the picture."""

import re

import numpy as np
import pytest

from tests.trace.runs import Run
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import word_labels
from toushi.probe.trace.open import open_trace

COARSE = "unet.middle.cross_attention"
BOX = (2, 1, 7, 3)


@pytest.fixture(scope="module", params=["heads", "mean", "sum"])
def trace(request, tmp_path_factory):
    return open_trace(Run(rest=True, keep=request.param).write(tmp_path_factory.mktemp("box") / "run"))


@pytest.mark.parametrize("box", [BOX, (0, 0, 8, 4), (7, 3, 8, 4)])
def test_each_word_has_the_mean_of_its_heat_map(trace, box):
    y0, x0, y1, x1 = box
    shares = trace.box(*box)
    for word, label in zip(trace.words(), word_labels(trace.words(), trace.words())):
        expected = float(trace.heat_map(word)[y0:y1, x0:x1].mean())
        assert shares[label] == pytest.approx(expected, abs=1e-6)


def test_all_entries_sum_to_one_and_are_sorted(trace):
    shares = trace.box(*BOX)
    assert shares.sum() == pytest.approx(1, abs=2e-3)
    assert list(shares) == sorted(shares, reverse=True)
    assert {"<bos>", "(punctuation)", "(no text)"} <= set(shares.index) and shares.index.is_unique
    assert shares.attrs["grid"] == [8, 4] and shares.attrs["box"] == list(BOX)


def test_the_whole_picture_is_the_mass(trace):
    shares, mass = trace.box(0, 0, 8, 4), trace.mass()
    assert shares["(no text)"] == pytest.approx(mass.attrs["rest"], abs=1e-6)
    assert shares["<bos>"] == pytest.approx(float(mass.sel(token=0)), abs=1e-6)


def test_numbered_words_sites_branches_and_steps(tmp_path):
    trace = open_trace(Run(prompt="左边是猫，右边是猫", negative="狗").write(tmp_path / "run"))
    shares = trace.box(*BOX, steps=[1])
    assert {"猫#1", "猫#2"} <= set(shares.index) and "(no text)" not in shares
    expected = float(trace.heat_map("猫#2", steps=[1])[2:7, 1:3].mean())
    assert shares["猫#2"] == pytest.approx(expected, abs=1e-6)
    assert "狗" in trace.box(*BOX, branch="uncond")
    coarse = trace.box(0, 0, 4, 2, sites=COARSE)  # the grid is that of the finest selected site, as in heat_map
    assert coarse["猫#1"] == pytest.approx(float(trace.heat_map("猫#1", sites=COARSE).mean()), abs=1e-6)


def test_an_unknown_prompt_has_an_entry_for_each_text_token(tmp_path):
    run = Run()
    manifest = run.manifest()
    tokens = [{**vars(token), "span": None} for token in manifest["branches"]["cond"]["tokens"]]
    branches = {**manifest["branches"], "cond": {"tokens": tokens, "words": []}}
    trace = open_trace(run.write(tmp_path / "run", prompt=None, branches=branches))
    shares = trace.box(*BOX)
    assert any(re.fullmatch(r".+\[\d+\]", name) for name in shares.index)
    assert shares.sum() == pytest.approx(1, abs=2e-3)


def test_without_some_words_the_sum_is_smaller(tmp_path):
    trace = open_trace(Run(columns=[3, 4]).write(tmp_path / "run"))
    assert 0 < trace.box(*BOX).sum() < 1


@pytest.mark.parametrize("box", [(0, 0, 9, 4), (-1, 0, 4, 4), (3, 0, 3, 4), (5, 0, 2, 4), (0, 0, 8, 5), (0, 0, 0.5, 4)])
def test_a_box_outside_the_picture_or_empty_is_refused(trace, box):
    with pytest.raises(ToushiError, match="8x4 cells") as error:
        trace.box(*box)
    assert "\n" not in str(error.value)


def test_numpy_integers_are_cells_too(trace):
    assert trace.box(*np.array(BOX)).equals(trace.box(*BOX))
