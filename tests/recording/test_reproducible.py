"""What is needed to make a picture again, and the warning where the trace alone does not have it."""

import hashlib
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipelines.tiny import PROMPT, draw, made
from tests.pipelines.variants import given, variant
from toushi.probe.pipelines.diffusers_family import source_image_sha256
from toushi.probe.recording.record import NotReproducible, record
from toushi.probe.trace.open import open_collection, open_trace

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


def reasons(caught) -> list[str]:
    return [str(warning.message) for warning in caught if warning.category is NotReproducible]


def test_a_pipeline_without_a_seed_warns_once_in_a_recording(tmp_path):
    pipeline = made("stable-diffusion")
    with warnings.catch_warnings(record=True) as caught, record(pipeline, tmp_path / "run", steps=0):
        warnings.simplefilter("always")
        for _ in range(2):
            pipeline(PROMPT, num_inference_steps=1, height=32, width=32)
    assert len(reasons(caught)) == 1 and "generator=torch.Generator()" in reasons(caught)[0]
    assert [trace.manifest.seed for trace in open_collection(tmp_path / "run")] == [None, None]
    latents = torch.randn(1, 4, 16, 16)
    with pytest.warns(NotReproducible, match="begins from latents="), record(pipeline, tmp_path / "latents", steps=0):
        draw(pipeline, latents=latents, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotReproducible)
        with record(pipeline, tmp_path / "seed", steps=0):
            draw(pipeline, steps=1)
    assert open_trace(tmp_path / "seed").manifest.source_image_sha256 is None


def test_a_source_image_warns_and_its_checksum_is_in_the_manifest(tmp_path):
    pipeline = variant("StableDiffusionImg2ImgPipeline")
    images = given("StableDiffusionImg2ImgPipeline", pipeline, (32, 32))
    with pytest.warns(NotReproducible, match="keep it beside the trace"), record(pipeline, tmp_path / "run"):
        draw(pipeline, steps=2, **images)
    expected = hashlib.sha256(images["image"].tobytes()).hexdigest()
    assert open_trace(tmp_path / "run").manifest.source_image_sha256 == expected


def test_pixels_have_one_checksum_in_every_container():
    image = Image.fromarray(PIXELS)
    digest = source_image_sha256(image)
    assert digest == hashlib.sha256(PIXELS.tobytes()).hexdigest()
    for same in (
        PIXELS,
        torch.from_numpy(PIXELS),
        PIXELS[None],
        [image],
        PIXELS.transpose(1, 0, 2).copy().transpose(1, 0, 2),
    ):
        assert source_image_sha256(same) == digest
    other = source_image_sha256(255 - PIXELS)
    assert source_image_sha256([image, 255 - PIXELS]) == [digest, other]
    assert source_image_sha256(torch.from_numpy(np.stack([PIXELS, 255 - PIXELS]))) == [digest, other]
    assert isinstance(source_image_sha256(torch.zeros(3, 4, 4, dtype=torch.bfloat16)), str)
    assert source_image_sha256(None) is source_image_sha256([]) is source_image_sha256([["picture.png"]]) is None
