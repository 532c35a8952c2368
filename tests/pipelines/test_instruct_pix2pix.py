"""InstructPix2Pix: three evaluations of a step, of which two have the same text."""

import numpy as np
import pytest

from tests.pipelines.tiny import NEGATIVE, PROMPT, draw
from tests.pipelines.variants import picture, variant
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_collection, open_trace

BRANCHES = ["cond", "image", "uncond"]


@pytest.fixture(scope="module")
def pipeline():
    return variant("StableDiffusionInstructPix2PixPipeline")


def first_maps(pipeline, folder, prompt=PROMPT, negative=NEGATIVE, source=0):
    """Of each branch all maps of the first step."""
    with record(pipeline, folder, dtype="float32", steps=0):
        draw(pipeline, prompt, negative=negative, image=picture((32, 32), source))
    trace = open_trace(folder)
    assert trace.branches == BRANCHES and not trace.verify()
    sites = (trace.attention(branch=branch, grid="native") for branch in BRANCHES)
    return [np.concatenate([maps.values.ravel() for maps in of_branch.values()]) for of_branch in sites]


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"prompt": "the left 猫"}, [True, False, False]),
        ({"negative": "the left 猫"}, [False, True, True]),
        ({"source": 1}, [True, True, False]),
    ],
)
def test_each_branch_depends_on_what_it_is_given_and_on_nothing_else(pipeline, change, changed, tmp_path):
    before = first_maps(pipeline, tmp_path / "before")
    after = first_maps(pipeline, tmp_path / "after", **change)
    assert [not np.array_equal(*pair) for pair in zip(before, after)] == changed


def test_texts_stand_at_their_own_branches(pipeline, tmp_path):
    with record(pipeline, tmp_path / "run"):
        draw(pipeline, [PROMPT, "the moon"], negative=NEGATIVE, image=picture((32, 32)))
    for trace, prompt in zip(open_collection(tmp_path / "run"), (PROMPT, "the moon")):
        assert [trace.manifest.prompt_of(branch) for branch in BRANCHES] == [prompt, NEGATIVE, NEGATIVE]
        assert trace.tokens("image") == trace.tokens("uncond") and trace.heat_map("moon").max() > 0
        assert trace.encoder_states("image").shape == trace.encoder_states("uncond").shape


def test_without_guidance_there_is_one_branch(pipeline, tmp_path):
    plain = draw(pipeline, guidance=False, image=picture((32, 32)))[0]
    with record(pipeline, tmp_path / "run"):
        assert np.array_equal(draw(pipeline, guidance=False, image=picture((32, 32)))[0], plain)
    assert open_trace(tmp_path / "run").branches == ["cond"]
