"""The twins stay twins: one beginning, one order, one difference."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments import train_twins
from experiments.train_twins import TWINS, Config, Twins, twin_models
from experiments.training import logged
from experiments.training_data import Pool, make_pool
from probe.lens.encoders import lens
from probe.models.load import load
from probe.models.mini_unet import MiniUNet
from probe.models.text_encoder import TextEncoderConfig
from probe.models.unet import UNetConfig

CONFIG = Config(
    samples=24,
    encoder_samples=96,
    batch=4,
    precision="fp32",
    text=TextEncoderConfig(width=32, heads=2),
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


def test_a_training_goes_on_and_ships_two_small_models(family, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(train_twins, "make_pool", lambda *_: pool)
    monkeypatch.setattr(train_twins, "sheet", lambda *_: None)
    monkeypatch.setattr(train_twins, "held_out_loss", lambda *_: 0.5)
    monkeypatch.setattr(train_twins, "SHIPPED", tmp_path / "weights")
    config = replace(CONFIG, out=tmp_path / "run", samples=4, checkpoint_minutes=0.0, threads=None)
    train_twins.train(config)
    train_twins.train(replace(config, samples=12))
    train_twins.ship(replace(config, samples=12))
    assert list(logged(tmp_path / "weights/twins/log.jsonl")) == [4, 8, 12]
    card = (tmp_path / "weights/twins/README.md").read_text()
    assert "each model saw 12" in card and "(asked for: 4)" in card and "bidirectional 0.5, causal 0.5" in card
    for name in TWINS:
        folder = tmp_path / "weights/twins" / name
        assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
        twin = load(str(folder), "cpu")
        assert twin.config.text.causal == (name == "causal") and twin.sample("猫", steps=1).size == (64, 64)


def test_the_shipped_pair_fits_its_room():
    family = load("mini-unet", "cpu")
    models = twin_models(Config(), family).values()
    sizes = [sum(p.numel() for n, p in m.named_parameters() if not n.startswith("vae.")) * 2 for m in models]
    assert sum(sizes) < 14_900_000  # bytes of fp16; names and shapes take some more


def test_a_causal_twins_attention_reads_nothing_of_what_comes_after(family):
    for name, model in twin_models(CONFIG, family).items():
        attention = lens(model.eval().requires_grad_(False), ["左边是猫，右边是月亮"])[0].attention.values
        np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
        assert (np.triu(attention, 1) == 0).all() == (name == "causal")
