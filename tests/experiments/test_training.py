"""Training can be stopped anywhere and goes on as if it had not been."""

import numpy as np
import pytest
import torch

from toushi.experiments.scene_world.objects import COLOURS, KINDS
from toushi.experiments.scene_world.scenes import draw_scene
from toushi.experiments.training.losses import read_captions, velocity_loss
from toushi.experiments.training.muon import orthogonalize
from toushi.experiments.training.recipe import Training
from toushi.experiments.training.scene_batches import Batch, Pool, caption, cell_kinds, colour_of_kind, garble_caption
from toushi.experiments.training.train_encoder import teach_encoder
from toushi.experiments.training.train_mini_unet import Config
from toushi.probe.models.mini_unet import MiniUNet

CAPTIONS = ["左边是猫，右边是月亮", "", "a red circle", "河边的银行"]


def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(4, 8, 16, 16, generator=generator)
    covered = torch.rand(4, 1, 16, 16, generator=generator)
    kinds, colours = (torch.randint(len(names) + 1, (4, 16, 16), generator=generator) for names in (KINDS, COLOURS))
    return Batch(latents, covered, kinds, colours, CAPTIONS)


def steps(training: Training, seed: int, count: int) -> list[tuple[float, float]]:
    torch.manual_seed(seed)
    return [training.step(batch(), lr=1e-3) for _ in range(count)]


def test_resuming_changes_nothing(tmp_path):
    through = Training(MiniUNet.tiny(), Config())
    steps(through, 1, 3)
    through.save(tmp_path)
    expected = steps(through, 2, 2)

    resumed = Training(MiniUNet.tiny(seed=5), Config())
    # The VAE and the buffers are no part of a checkpoint; here only they tell the two models apart.
    resumed.model.vae.load_state_dict(through.model.vae.state_dict())
    resumed.resume(tmp_path)
    assert resumed.samples == 12
    assert steps(resumed, 2, 2) == expected
    for a, b in zip(through.averaged, resumed.averaged):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_few_steps_lower_both_losses():
    training = Training(MiniUNet.tiny(layers=2), Config(naming_weight=3.0))
    before = steps(training, 0, 1)[0]
    steps(training, 1, 60)
    after = steps(training, 0, 1)[0]
    assert after[0] < 0.9 * before[0]
    assert after[1] < 0.9 * before[1]


@pytest.mark.slow
def test_an_encoder_learns_what_lies_where_from_captions_alone():
    model = MiniUNet.tiny(layers=2)
    scenes = [draw_scene(seed) for seed in range(4)]
    kinds = torch.zeros(4, 16, 16, dtype=torch.uint8)
    for i in range(4):
        kinds[i, :, 8 * (i % 2) :] = 1 + i
    pool = Pool(scenes, torch.zeros(4, 8, 16, 16), torch.ones(4, 1, 16, 16), kinds)
    before = model.encoder.layers[0].attention.to_qkv.weight.clone()
    reader = teach_encoder(model, pool, Config(), samples=16 * 110, batch=16)
    wrong = reader.loss(
        read_captions(model, pool.batch(64, np.random.default_rng(9), 0.0).captions),
        kinds[:1].expand(64, -1, -1).long(),
    )
    batch = pool.batch(64, np.random.default_rng(9), 0.0)
    assert reader.loss(read_captions(model, batch.captions), batch.kinds) < 0.5 * wrong
    assert not torch.equal(before, model.encoder.layers[0].attention.to_qkv.weight)


def test_weights_of_the_loss_count_objects_more():
    model = MiniUNet.tiny()
    half = torch.zeros(4, 1, 16, 16)
    half[..., :8] = 1
    losses = []
    for covered, weight in ((half, 0.0), (half, 1e9), (1 - half, 1e9)):
        torch.manual_seed(0)
        losses.append(velocity_loss(model, batch()._replace(covered=covered), weight).item())
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-3)
    assert losses[1] != pytest.approx(losses[2], rel=1e-3)


def test_captions_are_read_in_groups_as_they_are_alone():
    model = MiniUNet.tiny()
    captions = [*CAPTIONS, "猫" * 30, "一只猫头鹰"] * 3
    text = read_captions(model, captions, group=4)
    for row, text_of_row in enumerate(captions):
        alone = model.encode_text([text_of_row])
        assert torch.allclose(text.states[row][text.mask[row]], alone.states[0], atol=1e-5)


def test_a_model_that_was_trained_has_no_namer():
    training = Training(MiniUNet.tiny(), Config())
    steps(training, 0, 2)
    averaged = training.averaged_model()
    assert averaged.state_dict().keys() == MiniUNet.tiny().state_dict().keys()
    assert not any(module._forward_hooks for module in averaged.modules())


def test_the_kind_of_a_cell_is_the_one_that_covers_most_of_it():
    scene = next(s for s in map(draw_scene, range(100)) if len({o.kind for o in s.objects}) == 2)
    shares = torch.tensor([[[0.9, 0.1, 0.35]], [[0.1, 0.2, 0.5]]])
    first, second = (list(KINDS).index(thing.kind) + 1 for thing in scene.objects)
    assert cell_kinds(scene, shares).tolist() == [[first, 0, second]]


def test_the_colour_of_a_kind_is_the_one_it_was_asked_for_in():
    scene = next(
        s for s in map(draw_scene, range(200)) if [o.colour for o in s.objects].count(None) == 1 < len(s.objects)
    )
    table = colour_of_kind(scene)
    for thing in scene.objects:
        expected = 0 if thing.colour is None else list(COLOURS).index(thing.colour) + 1
        assert table[list(KINDS).index(thing.kind) + 1] == expected
    assert table.count_nonzero() == len(scene.objects) - 1


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 8, 40), (3, 40, 8)])
def test_newton_schulz_flattens_the_singular_values(shape):
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.3 and values.max() < 1.3


@pytest.mark.slow
def test_bf16_learns_what_fp32_does_and_keeps_its_weights_in_fp32():
    losses = {}
    for precision in ("fp32", "bf16"):
        training = Training(MiniUNet.tiny(layers=2), Config(precision=precision))
        steps(training, 1, 20)
        losses[precision] = steps(training, 0, 1)[0]
        assert {w.dtype for w in training.weights} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"]


def test_a_garbled_caption_says_what_it_said():
    rng, changed = np.random.default_rng(0), 0
    for number in range(60):
        said = caption(draw_scene(number), number)
        assert garble_caption(said, 0.0, rng) == said.text
        text, at = garble_caption(said, 0.5, rng), 0
        changed += text != said.text
        for part in sorted(said.parts, key=lambda part: part.start):
            at = text.index(said.text[part.start : part.end], at)  # whole, and in the same order
    assert changed > 40
