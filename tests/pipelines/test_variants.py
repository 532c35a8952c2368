"""Drawing from an image, into a hole, along a control image: the same maps, under the right numbers of steps."""

import numpy as np
import pytest

from tests.pipelines.tiny import NEGATIVE, PROMPT, draw, families
from tests.pipelines.variants import VARIANTS, given, variant
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace

# Those that `make test` draws: one of each kind.
QUICK = {
    "StableDiffusionImg2ImgPipeline", "StableDiffusionControlNetPipeline", "StableDiffusionXLInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline", "FluxImg2ImgPipeline", "FluxFillPipeline", "FluxKontextPipeline",
    "ZImageImg2ImgPipeline", "QwenImageEditPipeline",
}  # fmt: skip


def test_the_quick_ones_exist():
    assert set(VARIANTS) >= QUICK


@pytest.mark.parametrize("name", families(QUICK, VARIANTS))
def test_the_picture_is_the_same_and_the_steps_have_their_own_numbers(name, tmp_path):
    pipeline = variant(name)
    images = given(name, pipeline, (32, 48))
    again = {"size": (32, 48), "steps": 4, "negative": NEGATIVE, **images}
    plain = draw(pipeline, **again)[0]
    with record(pipeline, tmp_path / "run"):
        assert np.array_equal(draw(pipeline, **again)[0], plain)
    trace = open_trace(tmp_path / "run")
    # An LCM shortens the schedule that it was distilled on, and makes all the steps that are asked for.
    begins = 2 if "strength" in images and not name.startswith("LatentConsistency") else 0
    assert trace.steps == list(range(begins, 4)) and trace.complete and trace.verify() == []
    assert trace.times == pipeline.scheduler.timesteps.tolist()[begins:] and trace.manifest.steps.count == 4
    assert trace.prompt == PROMPT and trace.manifest.seed == 0 and trace.manifest.strength == images.get("strength")
    assert trace.heat_map("cat").max() > 0 and trace.image().shape == np.asarray(plain).shape
    other = [glob for glob in trace.manifest.not_recorded if glob.startswith("controlnet")]
    assert bool(other) == hasattr(pipeline, "controlnet")


@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "FluxImg2ImgPipeline"])
def test_steps_can_be_chosen_by_their_own_numbers(name, tmp_path):
    pipeline = variant(name)
    images = given(name, pipeline, (32, 32))
    with record(pipeline, tmp_path / "run", steps=[1, 3]):
        draw(pipeline, steps=4, **images)
    assert open_trace(tmp_path / "run").steps == [3]
