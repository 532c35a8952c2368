"""The twins stay twins: one beginning, one order, one difference."""

import numpy as np
import pytest
import torch

from experiments.train_twins import TWINS, Config, Twins, twin_models
from experiments.training_data import Pool, make_pool
from probe.models.mini_unet import MiniUNet
from probe.models.text_encoder import TextEncoderConfig
from probe.models.unet import UNetConfig

CONFIG = Config(
    samples=24,
    encoder_samples=96,
    batch=4,
    precision="fp32",
    text=TextEncoderConfig(width=32, heads=2, rotary=True),
    unet=UNetConfig(widths=(32, 32, 64), head_width=16, text_width=32, time_width=32),
)


@pytest.fixture(scope="module")
def family() -> MiniUNet:
    return MiniUNet.tiny()


@pytest.fixture(scope="module")
def pool(family, tmp_path_factory) -> Pool:
    return make_pool(family.vae, 0, 12, tmp_path_factory.mktemp("pool") / "latents.safetensors")


def taken(twins: Twins, pool: Pool, count: int) -> list[dict]:
    return [twins.step(batch, noise) for _, (batch, noise) in zip(range(count), twins.draws(pool))]


def test_twins_begin_alike_and_differ_in_the_mask_alone(family):
    one, other = twin_models(CONFIG, family).values()
    assert (one.config.text.causal, other.config.text.causal) == (False, True)
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["vae.decoder.0.weight"], family.state_dict()["vae.decoder.0.weight"])
    assert one.tokenizer is family.tokenizer


def test_a_resumed_run_goes_on_to_the_bit_and_in_step(family, pool, tmp_path):
    through = Twins(CONFIG, family)
    taken(through, pool, 3)
    through.save(tmp_path)
    expected = taken(through, pool, 2)

    resumed = Twins(CONFIG, family)
    resumed.resume(tmp_path)
    assert {training.samples for training in resumed.trainings.values()} == {12}
    assert taken(resumed, pool, 2) == expected
    for name in TWINS:
        assert all(map(torch.equal, through.trainings[name].averaged, resumed.trainings[name].averaged))
    one, other = expected[0].values()
    assert one != other  # the mask is a difference


def test_the_encoders_lesson_comes_first_and_is_the_same_whenever_it_is_given(family, pool):
    fresh, taught, again = Twins(CONFIG, family), Twins(CONFIG, family, pool), Twins(CONFIG, family, pool)
    names = fresh.trainings["causal"].names
    encoder = [i for i, name in enumerate(names) if name.startswith(("encoder.layers", "reader."))]
    unet = [i for i, name in enumerate(names) if name.startswith("unet.")]

    def same(one: Twins, first: str, other: Twins, second: str, which: list[int]) -> bool:
        a, b = one.trainings[first].weights, other.trainings[second].weights
        return all(torch.equal(a[i], b[i]) for i in which)

    assert same(fresh, "causal", fresh, "bidirectional", encoder + unet)  # what names the places, too
    for name in TWINS:
        assert same(fresh, name, taught, name, unet)
        assert not same(fresh, name, taught, name, encoder)
        assert same(taught, name, again, name, encoder)
    assert not same(taught, "causal", taught, "bidirectional", encoder)


def test_both_see_the_same_and_a_step_sees_the_same_whenever_it_is_reached(family, pool):
    twins = Twins(CONFIG, family)
    whole = list(twins.draws(pool))
    assert len(whole) == 6
    for training in twins.trainings.values():
        training.samples = 16
    for (batch, noise), (again, same) in zip(whole[4:], twins.draws(pool), strict=True):
        assert batch.captions == again.captions
        assert torch.equal(noise.noise, same.noise) and torch.equal(noise.time, same.time)


def test_the_rate_warms_up_and_falls_to_a_tenth_over_the_last_fifth_of_the_samples(family):
    twins = Twins(Config(samples=1000, batch=1, text=CONFIG.text, unet=CONFIG.unet, lr=1.0), family)
    rates = []
    for samples in (0, 99, 200, 800, 900, 999):
        for training in twins.trainings.values():
            training.samples = samples
        rates.append(twins.lr())
    np.testing.assert_allclose(rates, [1 / 200, 0.5, 1, 1, 0.5, 0.1])
