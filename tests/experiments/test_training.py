"""Training can be stopped anywhere and goes on as if it had not been."""

import pytest
import torch

from experiments.muon import orthogonal
from experiments.train_mini_unet import Config, Training, velocity_loss
from probe.models.mini_unet import MiniUNet

CAPTIONS = ["左边是猫，右边是月亮", "", "a red circle", "河边的银行"]


def batch() -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(4, 8, 16, 16, generator=generator)
    return latents, torch.rand(4, 1, 16, 16, generator=generator), CAPTIONS


def steps(training: Training, seed: int, count: int) -> list[float]:
    torch.manual_seed(seed)
    return [training.step(*batch(), lr=1e-3) for _ in range(count)]


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


def test_a_few_steps_lower_the_loss():
    training = Training(MiniUNet.tiny(), Config())

    def loss() -> float:
        torch.manual_seed(0)
        with torch.no_grad():
            return velocity_loss(training.model, *batch()).item()

    before = loss()
    steps(training, 1, 30)
    assert loss() < 0.9 * before


def test_weights_of_the_loss_count_objects_more():
    model = MiniUNet.tiny()
    latents, _, captions = batch()
    half = torch.zeros(4, 1, 16, 16)
    half[..., :8] = 1
    losses = []
    for covered, weight in ((half, 0.0), (half, 1e9), (1 - half, 1e9)):
        torch.manual_seed(0)
        losses.append(velocity_loss(model, latents, covered, captions, weight).item())
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-3)
    assert losses[1] != pytest.approx(losses[2], rel=1e-3)


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 8, 40), (3, 40, 8)])
def test_newton_schulz_flattens_the_singular_values(shape):
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.3 and values.max() < 1.3
