"""Sweeps: everything patched is the clean run bit for bit, nothing the corrupt one; a cell is the same run by hand."""

import zlib

import numpy as np
import pytest

from tests.pipelines.tiny import made
from toushi.probe.attribution.denoising import CannotExplain
from toushi.probe.attribution.sweep import sweep
from toushi.probe.editing.denoiser_states import read_states
from toushi.probe.editing.editing import Edit, edit
from toushi.probe.models.mini_unet import MiniUNet

CLEAN, CORRUPT = "左边是鸟，夜晚", "左边是狗，夜晚"  # of as many tokens


def checksum(picture):
    return float(zlib.crc32(picture.tobytes()))


@pytest.fixture(scope="module")
def model():
    return MiniUNet.tiny(layers=2)


@pytest.mark.parametrize("over", [("site",), ("site", "head"), ("word", "site"), ("step",), ("step", "word", "head")])
def test_everything_is_the_clean_run_and_nothing_the_corrupt_one(model, over):
    scores = sweep(model, CLEAN, CORRUPT, over, score=checksum, steps=3, batch=8, size=32)
    facts = scores.attrs
    assert facts["everything"] == facts["clean"] != facts["corrupt"] == facts["nothing"]
    assert scores.dims == over and len(facts["random"]) == 3
    if "word" in over:
        assert list(scores.word.values) == ["左边", "是", "鸟/狗", "夜晚", "(other)"]
    assert np.isnan(scores.values).any() == ("head" in over and "site" in over)  # sites have 2 or 4 heads


def test_a_cell_is_the_run_with_that_patch(model):
    scores = sweep(model, CLEAN, CORRUPT, ("site", "step"), steps=2, size=32)
    pictures = [np.asarray(model.sample(prompt, steps=2, size=32), float) for prompt in (CLEAN, CORRUPT)]
    site = "unet.middle.cross_attention"
    with read_states(model, f"{site}.heads") as states:
        model.sample(CLEAN, steps=2, size=32)
    with edit(model, Edit(f"{site}.heads", "patch", source=states, steps=0)):
        patched = np.asarray(model.sample(CORRUPT, steps=2, size=32), float)
    clean, corrupt = pictures
    expected = 1 - np.abs(patched - clean).mean() / np.abs(corrupt - clean).mean()
    assert abs(float(scores.sel(site=site, step=0)) - expected) < 0.02  # pixels of a batch may round otherwise
    assert scores.attrs["everything"] == 1 and scores.attrs["nothing"] == 0


def test_a_pipeline_of_diffusers(model):
    pipeline, calls = made("stable-diffusion"), []
    options = {"num_inference_steps": 2, "height": 32, "width": 32}
    scores = sweep(
        pipeline, "a red cat", "a red moon", ("step",), score=checksum,
        progress=lambda done, count: calls.append((done, count)), batch=8, controls=1, **options,
    )  # fmt: skip
    facts = scores.attrs
    assert facts["everything"] == facts["clean"] != facts["corrupt"] == facts["nothing"]
    assert scores.notnull().all() and calls[-1] == (scores.size + 3, scores.size + 3)


def test_mistakes_get_one_line(model):
    for arguments, expected in [
        ((CLEAN, CORRUPT, ("layer",)), "site, word, step, head"),
        ((CLEAN, CORRUPT, ("site", "site")), "each once"),
        ((CLEAN, CLEAN, ("site",)), "same prompt"),
        ((CLEAN, "左边是猫头鹰和月亮，夜晚", ("word",)), "not the same tokens"),
    ]:
        with pytest.raises(CannotExplain, match=expected) as error:
            sweep(model, *arguments, steps=1, size=32)
        assert "\n" not in str(error.value)
