"""Previews: a linear glance at latents."""

import pytest
import torch
import torch.nn.functional as F

from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.models.preview import preview


@pytest.fixture(scope="module")
def model():
    return MiniUNet.tiny()


def test_a_preview_is_the_same_each_time_and_draws_no_random_numbers(model):
    latents = model.noise(2, 64, 48, 0)
    generator = torch.get_rng_state()
    one = preview(model.vae, latents)
    assert one.shape == (2, 64, 48, 3) and one.dtype == torch.uint8
    assert torch.equal(one, preview(model.vae, latents))
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_preview_is_what_a_linear_decoder_would_show():
    """A VAE that is linear is followed exactly, up to the ridge and the rounding to bytes."""

    class Linear(torch.nn.Module):
        factor = 4

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(48, 48, generator=torch.Generator().manual_seed(0)) / 7)

        def encode(self, pictures):
            return F.conv2d(F.pixel_unshuffle(pictures, 4), self.weight[:, :, None, None])

        def decode(self, latents):
            return F.pixel_shuffle(F.conv2d(latents, self.weight.inverse()[:, :, None, None]), 4)

    vae = Linear()
    picture = F.interpolate(torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)), size=(32, 32)) * 2 - 1
    with torch.no_grad():
        shown = preview(vae, vae.encode(picture)).permute(0, 3, 1, 2) / 127.5 - 1
    assert (shown - picture).abs().mean() < 0.15


def test_large_pictures_get_small_previews(model):
    assert preview(model.vae, torch.zeros(1, 8, 64, 40)).shape == (1, 128, 80, 3)
