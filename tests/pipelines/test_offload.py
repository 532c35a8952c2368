"""Recording while the weights are elsewhere: q and k are read, never weights, so the maps are those of the plain run."""

import numpy as np
import pytest
import torch

from tests.pipelines.test_recording import cross
from tests.pipelines.tiny import NEGATIVE, PROMPT, draw, made
from toushi.probe.models.z_image import ZImage
from toushi.probe.pipelines.load import enable_offload
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_collection, open_trace

SITES = {"stable-diffusion": 4, "flux": 5, "z-image": 2}  # of image-to-text attention
CPU = torch.device("cpu")
ways = pytest.mark.parametrize("way", ["model", "sequential", "group"])


@ways
@pytest.mark.parametrize("name", ["stable-diffusion", "flux"])
def test_offload_changes_neither_picture_nor_maps(name, way, tmp_path):
    with record(made(name), tmp_path / "plain", keep="mean") as recording:
        plain = draw(recording.model, negative=NEGATIVE)[0]
    pipeline = made(name)
    enable_offload(pipeline, family_of(pipeline).denoiser, CPU, way)
    bare = draw(pipeline, negative=NEGATIVE)[0]
    if way == "sequential":
        denoiser = getattr(pipeline, family_of(pipeline).denoiser)
        assert {str(weight.device) for weight in denoiser.parameters()} == {"meta"}
    with record(pipeline, tmp_path / "run", keep="mean"):
        picture = draw(pipeline, negative=NEGATIVE)[0]
    trace, truth = open_trace(tmp_path / "run"), open_trace(tmp_path / "plain")
    assert np.array_equal(bare, plain) and np.array_equal(picture, plain)
    assert trace.manifest.device == "cpu" and trace.manifest.dtype == "float32" and trace.verify() == []
    assert len(cross(trace)) == SITES[name] and trace.sites == truth.sites
    for step in trace.steps:
        one, other = (t.files.step(step) for t in (trace, truth))
        assert one.keys == other.keys
        assert all(np.array_equal(one.read(key), other.read(key)) for key in one.keys)
    assert np.array_equal(draw(pipeline, negative=NEGATIVE)[0], plain)


@ways
def test_a_batch_of_prompts_under_offload(way, tmp_path):
    prompts = [PROMPT, "the moon"]
    plain = draw(made("z-image"), list(prompts))
    pipeline = made("z-image")
    enable_offload(pipeline, "transformer", CPU, way)
    with record(pipeline, tmp_path / "run", keep="mean"):
        pictures = draw(pipeline, list(prompts))
    for trace, picture, before in zip(open_collection(tmp_path / "run"), pictures, plain):
        assert np.array_equal(picture, before) and trace.verify() == []


@ways
def test_our_own_z_image_is_recorded_under_offload(way, tmp_path):
    made("z-image").save_pretrained(tmp_path / "model")
    how = {"steps": 2, "size": (32, 48), "guidance": 2.0, "seed": 1}
    model = ZImage.from_folder(tmp_path / "model", torch.float32)
    plain = model.sample(PROMPT, NEGATIVE, **how)
    enable_offload(model, "transformer", CPU, way)
    with record(model, tmp_path / "run"):
        picture = model.sample(PROMPT, NEGATIVE, **how)
    trace = open_trace(tmp_path / "run")
    assert np.array_equal(picture, plain) and trace.verify() == [] and len(cross(trace)) == SITES["z-image"]
    assert trace.encoder_states().shape[0] == 4
