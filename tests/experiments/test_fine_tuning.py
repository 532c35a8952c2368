"""Fine-tuning by low-rank updates: it begins where the model is, goes on to the bit, and loads as what was trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ImageChops

from toushi.experiments.scene_world.instructions import ACTIONS, draw_instruction
from toushi.experiments.training.distill_turbo import Config as TurboConfig
from toushi.experiments.training.distill_turbo import Distillation, draw_trajectories
from toushi.experiments.training.fine_tuning import FineTuning, FineTuningConfig, train_for_minutes
from toushi.experiments.training.low_rank_updates import add_low_rank_updates, updates_of
from toushi.experiments.training.train_edit import Config as EditConfig
from toushi.experiments.training.train_edit import EditTraining, first_model, make_pairs
from toushi.probe.models.low_rank import merge_updates
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.load import load

PROMPTS = ["左边是猫，右边是月亮，夜晚", "a red circle"]


def trained(steps: int, config: TurboConfig) -> Distillation:
    training = Distillation(load("mini-unet", "cpu"), config)
    for number in range(steps):
        trajectories = torch.randn(2, 9, 8, 16, 16, generator=torch.Generator().manual_seed(number))
        training.step(training.loss(trajectories, PROMPTS, np.random.default_rng(number)), 2)
    return training


def test_updates_begin_at_nothing_and_merge_into_the_weights():
    model = MiniUNet.tiny()
    plain = {name: weight.clone() for name, weight in model.unet.state_dict().items()}
    add_low_rank_updates(model.unet, 2, whole=["conv_in"])
    updates = updates_of(model.unet, "unet")
    assert "unet.conv_in.weight" in updates and "unet.conv_out.weight.lora_A" in updates
    merged = merge_updates({f"unet.{name}": weight for name, weight in plain.items()}, updates)
    assert merged.keys() == {f"unet.{name}" for name in plain}
    assert all(torch.equal(merged[f"unet.{name}"], weight) for name, weight in plain.items())
    with torch.no_grad():
        model.unet.conv_out.parametrizations.weight[0].B.fill_(0.5)
    merged = merge_updates({f"unet.{name}": weight for name, weight in plain.items()}, updates_of(model.unet, "unet"))
    assert torch.allclose(merged["unet.conv_out.weight"], model.unet.conv_out.weight)
    assert not torch.allclose(merged["unet.conv_out.weight"], plain["conv_out.weight"])


def test_what_is_shipped_loads_as_what_was_trained(tmp_path):
    config = TurboConfig(rank=4, batch=2)
    training = trained(3, config)
    training.ship(tmp_path / "turbo", steps=2, guidance=1.0)
    assert (tmp_path / "turbo/model.safetensors").stat().st_size < 1_000_000
    loaded = load(str(tmp_path / "turbo"), "cpu")
    assert (loaded.default_steps, loaded.default_guidance) == (2, 1.0)
    with training.average_in_place() as model:
        expected = model.sample(PROMPTS[0], steps=2, guidance=1.0)
    picture = loaded.sample(PROMPTS[0])
    assert np.abs(np.asarray(picture, int) - np.asarray(expected, int)).max() <= 3  # it is stored in fp16
    assert ImageChops.difference(picture, load("mini-unet", "cpu").sample(PROMPTS[0], steps=2, guidance=1.0)).getbbox()
    loaded.save(tmp_path / "again")  # another U-Net than that of mini-unet by now: written whole
    assert load(str(tmp_path / "again"), "cpu").sample(PROMPTS[0]) == loaded.half().float().sample(PROMPTS[0])


def test_training_goes_on_from_a_checkpoint(tmp_path):
    config = TurboConfig(rank=4, batch=2)
    whole, first = trained(3, config), trained(2, config)
    first.save(tmp_path)
    again = Distillation(load("mini-unet", "cpu"), config)
    again.resume(tmp_path)
    trajectories = torch.randn(2, 9, 8, 16, 16, generator=torch.Generator().manual_seed(2))
    again.step(again.loss(trajectories, PROMPTS, np.random.default_rng(2)), 2)
    assert again.samples == whole.samples == 6
    for name, one, other, begun in zip(whole.names, whole.weights, again.weights, first.weights):
        moved = (one - begun).abs().max()  # the moments are kept in bf16
        assert (one - other).abs().max() <= 0.05 * moved + 1e-7, name


def test_the_loop_writes_a_row_a_checkpoint_and_ends_at_the_plan(tmp_path):
    config = FineTuningConfig(planned=12, batch=4, minutes=5)
    training = FineTuning(MiniUNet.tiny(), ["unet"], config)
    weight = training.model.unet.conv_out.bias
    train_for_minutes(
        training, tmp_path, lambda rng: (weight - float(rng.normal())).square().sum(), lambda: {"held": 1}
    )
    assert training.samples == 12 and (tmp_path / "log.jsonl").read_text().count("\n") >= 1
    begun = FineTuning(MiniUNet.tiny(), ["unet"], replace(config, planned=16))
    train_for_minutes(begun, tmp_path, lambda rng: begun.model.unet.conv_out.bias.square().sum(), lambda: {"held": 1})
    assert begun.samples == 16


def test_trajectories_are_the_teachers(tmp_path, monkeypatch):
    monkeypatch.setattr("toushi.experiments.training.distill_turbo.CHUNK", 25)
    teacher, config = MiniUNet.tiny(), TurboConfig(out=tmp_path, prompts=25, steps=2, teacher_steps=4)
    draw_trajectories(teacher, config)
    from safetensors.torch import load_file

    from toushi.experiments.training.distill_turbo import prompt_of

    latents = load_file(tmp_path / "trajectories/0000.safetensors")["latents"]
    assert latents.shape == (25, 3, 8, 16, 16)
    visited: list[torch.Tensor] = []
    prompts = [prompt_of(number) for number in range(25)]
    teacher.sample(prompts, steps=4, seed=list(range(25)), callback=lambda index, x: visited.append(x.half()))
    assert torch.equal(latents[:, 1], visited[1]) and torch.equal(latents[:, 2], visited[3])


# --- editing ---


def test_instructions_change_what_they_name_and_nothing_else():
    seen = set()
    for seed in range(60):
        one = draw_instruction(seed)
        seen.add(one.action)
        assert not one.held_out and one.text
        if one.action in ("time", "place", "style"):
            assert one.object is None and one.before.objects == one.after.objects
            continue
        before, after = one.pictures()
        assert (before != after).any()
        touched = np.zeros((64, 64), bool)
        things = set(one.before.objects) ^ set(one.after.objects)
        for left, top, right, bottom in (thing.box for thing in things):
            touched[max(top, 0) : bottom, max(left, 0) : right] = True
        assert things and np.array_equal(before[~touched], after[~touched]), one.text
    assert seen == set(ACTIONS)
    assert all(draw_instruction(seed, "held_out").held_out for seed in range(20))
    assert draw_instruction(3) == draw_instruction(3) != draw_instruction(4)


def test_the_editing_model_begins_as_mini_unet_whatever_the_source():
    base, model = load("mini-unet", "cpu"), first_model()
    text = base.encode_text(["一只猫"])
    latents, source = torch.randn(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([0.5])
    with torch.no_grad():
        plain = base.unet(latents, time, text)
        assert torch.allclose(model.unet(torch.cat([latents, source], 1), time, text), plain, atol=1e-5)


@pytest.mark.slow
def test_an_overfitted_editing_model_edits(tmp_path):
    """On two pairs alone the loss falls to a third."""
    training = EditTraining(first_model(), EditConfig(batch=8, dropped=(0, 0, 0)))
    pairs = make_pairs(training.model, range(2), "train", tmp_path / "pairs.safetensors")
    again = make_pairs(training.model, range(2), "train", tmp_path / "pairs.safetensors")
    assert torch.equal(pairs.after, again.after) and pairs.instructions == again.instructions
    rows, losses = np.arange(8) % 2, []
    for number in range(60):
        losses.append(training.step(training.loss(pairs, rows, np.random.default_rng(number)), 8))
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 3
