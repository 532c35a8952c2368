"""The twins stay twins: one beginning, one order, one difference."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from toushi.experiments.training import train_twins
from toushi.experiments.training.checkpoint import read_log
from toushi.experiments.training.recipe import Training
from toushi.experiments.training.scene_batches import Pool, make_pool
from toushi.experiments.training.train_twins import (
    TWINS,
    Config,
    first_training,
    learning_rate,
    make_twin,
    training_steps,
)
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.models.text_encoder import TextEncoderConfig
from toushi.probe.models.unet import UNetConfig
from toushi.probe.pipelines.load import load

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


def taken(training: Training, pool: Pool, count: int) -> list[tuple]:
    left = training_steps(CONFIG, training.samples, pool)
    return [training.step(batch, lr, noise) for _, (batch, noise, lr) in zip(range(count), left)]


def test_twins_begin_alike_and_differ_in_the_mask_alone(family):
    one, other = (make_twin(name, CONFIG, family) for name in TWINS)
    assert (one.config.text.causal, other.config.text.causal) == (False, True)
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["vae.decoder.0.weight"], family.state_dict()["vae.decoder.0.weight"])
    assert one.tokenizer is family.tokenizer


def test_a_resumed_run_goes_on_to_the_bit(family, pool, tmp_path):
    losses = []
    for name in TWINS:
        through = first_training(name, CONFIG, family)
        taken(through, pool, 3)
        through.save(tmp_path)
        losses.append(taken(through, pool, 2))

        resumed = first_training(name, CONFIG, family)
        resumed.resume(tmp_path)
        assert resumed.samples == 12
        assert taken(resumed, pool, 2) == losses[-1]
        assert all(map(torch.equal, through.averaged, resumed.averaged))
    assert losses[0] != losses[1]  # the mask is a difference


def test_the_encoders_lesson_comes_first_and_is_the_same_whenever_it_is_given(family, pool):
    fresh, taught, again = ({n: first_training(n, CONFIG, family, p) for n in TWINS} for p in (None, pool, pool))
    names = fresh["causal"].names
    encoder = [i for i, name in enumerate(names) if name.startswith(("encoder.layers", "reader."))]
    unet = [i for i, name in enumerate(names) if name.startswith("unet.")]

    def same(one: Training, other: Training, which: list[int]) -> bool:
        return all(torch.equal(one.weights[i], other.weights[i]) for i in which)

    assert same(fresh["causal"], fresh["bidirectional"], encoder + unet)  # what names the places, too
    for name in TWINS:
        assert same(fresh[name], taught[name], unet)
        assert not same(fresh[name], taught[name], encoder)
        assert same(taught[name], again[name], encoder)
    assert not same(taught["causal"], taught["bidirectional"], encoder)


def test_a_step_sees_the_same_whenever_it_is_reached(pool):
    whole = list(training_steps(CONFIG, 0, pool))
    assert len(whole) == 6
    for (batch, noise, lr), (again, same, rate_again) in zip(whole[4:], training_steps(CONFIG, 16, pool), strict=True):
        assert batch.captions == again.captions and lr == rate_again
        assert torch.equal(noise.noise, same.noise) and torch.equal(noise.time, same.time)


def test_the_rate_warms_up_and_falls_to_a_tenth_over_the_last_fifth_of_the_samples():
    config = Config(samples=1000, batch=1, lr=1.0)
    rates = [learning_rate(config, step) for step in (0, 99, 200, 800, 900, 999)]
    np.testing.assert_allclose(rates, [1 / 200, 0.5, 1, 1, 0.5, 0.1])


@pytest.mark.slow
def test_a_training_goes_on_in_two_processes_and_ships_two_small_models(tmp_path, monkeypatch):
    monkeypatch.setattr(train_twins, "SHIPPED", tmp_path / "weights")
    small = dict(pool=12, encoder_samples=0, samples=4, checkpoint_minutes=0.0, threads=None)
    config = replace(CONFIG, out=tmp_path / "run", **small)
    train_twins.train(config)
    for number in (0, 1):
        train_twins.train_one(number, replace(config, samples=12))
    train_twins.ship(replace(config, samples=12))
    card = (tmp_path / "weights/twins/README.md").read_text()
    assert "each model saw 12" in card and "(asked for: 12)" in card
    for name in TWINS:
        folder = tmp_path / "weights/twins" / name
        assert sorted(file.name for file in folder.iterdir()) == ["config.json", "log.jsonl", "model.safetensors"]
        rows = read_log(folder / "log.jsonl")
        assert list(rows) == [4, 8, 12] and f"{name} {rows[12]['held_out_loss']}" in card
        twin = load(str(folder), "cpu")
        assert twin.config.text.causal == (name == "causal") and twin.sample("猫", steps=1).size == (64, 64)
        assert (tmp_path / "run" / name / "samples.png").exists()


def test_twins_of_different_age_are_not_shipped(family, tmp_path):
    for name, samples in zip(TWINS, (4, 8)):
        (tmp_path / name).mkdir()
        training = first_training(name, CONFIG, family)
        training.samples = samples
        training.save(tmp_path / name)
    with pytest.raises(SystemExit, match="saw equally much.*'bidirectional': 4, 'causal': 8"):
        train_twins.ship(replace(CONFIG, out=tmp_path))


def test_the_shipped_pair_fits_its_room():
    family = load("mini-unet", "cpu")
    models = [make_twin(name, Config(), family) for name in TWINS]
    sizes = [sum(p.numel() for n, p in m.named_parameters() if not n.startswith("vae.")) * 2 for m in models]
    assert sum(sizes) < 14_900_000  # bytes of fp16; names and shapes take some more


def test_a_causal_twins_attention_reads_nothing_of_what_comes_after(family):
    for name in TWINS:
        model = make_twin(name, CONFIG, family)
        attention = encode_layers(model.eval().requires_grad_(False), ["左边是猫，右边是月亮"])[0].attention.values
        np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
        assert (np.triu(attention, 1) == 0).all() == (name == "causal")
