"""Pictures to latents and back: 4x smaller in each direction, 8 channels.

Convolutions at full resolution make a VAE slow on a CPU. So nearly all of them run on the latent grid and twice that:
the first one folds 4x4 pixels into channels, and pixel shuffles unfold them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class VAEConfig:
    latent_channels: int = 8
    encoder_width: int = 64
    width: int = 96
    fine_width: int = 48


class ConvBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class VAE(nn.Module):
    factor = 4  # pixels per latent cell, each way
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        encoder, width, fine = config.encoder_width, config.width, config.fine_width
        self.encoder = nn.Sequential(
            nn.Conv2d(3, encoder, 6, stride=4, padding=1), ConvBlock(encoder), ConvBlock(encoder),
            nn.Conv2d(encoder, 2 * config.latent_channels, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(config.latent_channels, width, 3, padding=1), ConvBlock(width), ConvBlock(width),
            nn.Conv2d(width, 4 * fine, 1), nn.PixelShuffle(2), ConvBlock(fine),
            nn.GroupNorm(8, fine), nn.SiLU(), nn.Conv2d(fine, 4 * 12, 3, padding=1), nn.PixelShuffle(2),
            nn.SiLU(), nn.Conv2d(12, 3, 3, padding=1),
        )  # fmt: skip
        # Set after training, so that the denoiser sees latents of zero mean and unit deviation in each channel.
        self.register_buffer("mean", torch.zeros(config.latent_channels, 1, 1))
        self.register_buffer("deviation", torch.ones(config.latent_channels, 1, 1))

    def posterior(
        self, pictures: Float[Tensor, "b 3 H W"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Mean and log-variance of q(latent | picture), before normalisation; pictures in -1..1."""
        mean, log_variance = self.encoder(pictures).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def encode(self, pictures: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The posterior mean, normalised; pictures in -1..1."""
        return (self.posterior(pictures)[0] - self.mean) / self.deviation

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures in -1..1 (not clamped) from normalised latents."""
        return self.decoder(latents * self.deviation + self.mean)
