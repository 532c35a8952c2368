"""mini-dit: mini-unet with a single-stream Transformer as its denoiser."""

import numpy as np
import pytest
import torch

from toushi import open_trace, record
from toushi.experiments.training.train_mini_dit import Config, first_training
from toushi.probe.models.dit import DiT
from toushi.probe.models.mini_dit import MiniDiT
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.load import load

PROMPT = "左边是猫，右边是月亮"


@pytest.fixture(scope="module")
def model():
    return MiniDiT.tiny()


@pytest.mark.parametrize("guidance", [1.0, 3.0])  # 1 is none
def test_recording_changes_no_pixel_and_the_columns_sum_to_one(model, tmp_path, guidance):
    prompts = [PROMPT, "一只猫头鹰" * 8]  # one is padded to 32 columns, the other to 64
    plain = model.sample(prompts, "红色", steps=2, guidance=guidance, seed=1)
    with record(model, tmp_path / "run", keep="heads", pads=True, dtype="float32"):
        recorded = model.sample(prompts, "红色", steps=2, guidance=guidance, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(plain, recorded))
    trace = open_trace(tmp_path / "run" / "000")
    for branch in ("cond", "uncond")[: 1 + (guidance != 1)]:
        mass = trace.mass(branch)
        assert float(mass.sum()) + mass.attrs["rest"] == pytest.approx(1, abs=1e-5)
    maps = trace.attention("猫", grid="native")
    assert list(maps) == ["transformer.layers.0.attention", "transformer.layers.1.attention"]
    assert all(one.sizes["y"] == one.sizes["x"] == 8 for one in maps.values())


def test_the_velocity_is_the_transformers_with_time_and_sign_turned(model):
    latents, times = model.noise(1, 64, 64, 0), torch.tensor([0.3])
    text = model.encode_text([PROMPT])
    transformer = model.transformer
    assert isinstance(transformer, DiT)
    expected = -transformer(latents, 1 - times, [text.states[0][text.mask[0]]])
    assert torch.equal(model.velocity(latents, times, text), expected)
    assert torch.equal(model.denoise(latents, 0.3, PROMPT), expected)


def test_saved_and_loaded_it_is_the_same_model(model, tmp_path):
    model.save(tmp_path / "saved", torch.float32)
    loaded = load(str(tmp_path / "saved"), "cpu")
    assert type(loaded) is MiniDiT and loaded.config == model.config
    assert np.array_equal(loaded.sample(PROMPT, steps=2), model.sample(PROMPT, steps=2))


def test_training_moves_the_denoiser_alone(tmp_path):
    training = first_training(Config(out=tmp_path))
    assert all(name.startswith(("transformer.", "namer.")) for name in training.names)
    base = load("mini-unet", "cpu")
    assert isinstance(base, MiniUNet)
    text = base.encode_text([PROMPT]).states
    assert torch.equal(training.averaged_model().encode_text([PROMPT]).states, text)
