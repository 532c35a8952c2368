"""Recording changes nothing: the picture, the noise, the latents are those of the unrecorded run."""

import subprocess
import sys

import jaxtyping
import numpy as np
import pytest
import torch

from tests.recording.tiny_runs import draw, recorded
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace


@pytest.mark.parametrize("keep", ["heads", "mean", "sum"])
@pytest.mark.parametrize("how", [{}, {"guidance": 1.0}, {"sampler": "heun"}, {"size": (48, 80)}, {"negative": "夜晚"}])
def test_the_picture_is_the_same_bit_for_bit(model, tmp_path, keep, how):
    plain = draw(model, **how)
    generator = torch.get_rng_state()
    picture, trace = recorded(model, tmp_path / "run", keeping={"keep": keep}, **how)
    assert np.array_equal(picture, plain)
    assert torch.equal(torch.get_rng_state(), generator)
    assert np.array_equal(trace.image(), plain)
    assert np.array_equal(draw(model, **how), plain)
    assert trace.complete and not trace.verify()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_same_too(tmp_path, dtype):
    model = MiniUNet.tiny().to(dtype)
    plain = draw(model)
    picture, trace = recorded(model, tmp_path / "run")
    assert np.array_equal(picture, plain) and not trace.verify()
    assert trace.manifest.dtype == str(dtype).removeprefix("torch.")


def test_latents_and_noise_are_the_same(model, tmp_path):
    after = [[], []]
    draw(model, callback=lambda index, latents: after[0].append(latents))
    with record(model, tmp_path / "run"):
        draw(model, callback=lambda index, latents: after[1].append(latents))
    trace = open_trace(tmp_path / "run")
    for index, (one, two) in enumerate(zip(*after)):
        assert torch.equal(one, two)
        assert np.array_equal(trace.latent(index).values, two[0].numpy())


def test_an_encoded_prompt_from_the_cache_is_recorded_all_the_same(model, tmp_path):
    plain = draw(model)
    cache = dict(model.embedding_cache)
    assert cache
    picture, trace = recorded(model, tmp_path / "run")
    assert np.array_equal(picture, plain)
    assert trace.encoder_states().shape[0] == 13
    for key, text in cache.items():
        assert model.embedding_cache[key] is text


@pytest.mark.slow
def test_a_compiled_model_is_covered(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the compiler cannot trace its checks
    model = MiniUNet.tiny(layers=2)
    plain = draw(model)
    model.unet = torch.compile(model.unet, backend="eager")
    model.encoder = torch.compile(model.encoder, backend="eager")
    draw(model)
    picture, trace = recorded(model, tmp_path / "run")
    assert np.array_equal(picture, plain) and not trace.verify()
    assert "unet.middle.cross_attention" in trace.sites and trace.encoder_attention(0).size


def test_recording_waits_for_no_import_that_only_reading_needs():
    code = "import sys, toushi.probe.recording.record; print({'xarray', 'pandas', 'matplotlib', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
