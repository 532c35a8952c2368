"""Small pictures of latents at almost no cost, to watch a run.

The VAE's decoder takes about a quarter of a step of mini-unet, too much to run at every step. Locally it is nearly
linear. So a 3x3 convolution from latent cells to the pixels of each cell shows the same at a hundredth of the cost. It
is fitted by least squares to the VAE's own encodings of synthetic pictures. The exact picture of any step is
`vae.decode` of the latent in the trace.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

MAX_SIDE = 128  # pixels; larger pictures get smaller previews
RIDGE = 1e-2
_convolutions: WeakKeyDictionary["VAE", dict[tuple, tuple[Tensor, Tensor]]] = WeakKeyDictionary()


@runtime_checkable
class VAE(Protocol):
    """A VAE as far as it is used here: pictures in -1..1 to latents, `factor` pixels of a latent cell each way."""

    factor: int

    def encode(self, pictures: Tensor, /) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


@torch.no_grad()
def preview(vae: VAE, latents: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b y x 3"]:
    """An approximation of `vae.decode(latents)`, at most MAX_SIDE pixels wide and high.

    The first call for a VAE fits its convolution.
    """
    factor = vae.factor
    height, width = latents.shape[-2:]
    divisors = (n for n in range(factor, 1, -1) if factor % n == 0 and n * max(height, width) <= MAX_SIDE)
    pixels = next(divisors, 1)
    convolutions = _convolutions.setdefault(vae, {})
    key = (pixels, latents.device, latents.dtype)
    if key not in convolutions:
        weight, bias = fit_convolution(vae, pixels)
        convolutions[key] = weight.to(latents), bias.to(latents)
    weight, bias = convolutions[key]
    levels = F.conv2d(F.pad(latents, (1, 1, 1, 1), mode="replicate"), weight, bias)
    return F.pixel_shuffle(levels.clamp_(0, 255).round_().byte(), pixels).permute(0, 2, 3, 1).contiguous()


def fit_convolution(
    vae: VAE, pixels: int, count: int = 3
) -> tuple[Float[Tensor, "levels c 3 3"], Float[Tensor, " levels"]]:
    """Weight and bias of the convolution: ridge regression from latents to the 3*pixels*pixels levels 0..255 of a cell."""
    weight = next(vae.parameters())
    pictures = synthetic_pictures(count, 16 * vae.factor)
    latents = vae.encode(pictures.to(weight.device, weight.dtype)).cpu().double()
    cells = F.unfold(F.pad(latents, (1, 1, 1, 1), mode="replicate"), 3).transpose(1, 2).flatten(0, 1)
    x = torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1)
    small = F.avg_pool2d(pictures.double(), vae.factor // pixels)
    y = F.pixel_unshuffle(small, pixels).flatten(2).transpose(1, 2).flatten(0, 1)
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    solution = torch.linalg.solve(gram, x.T @ y).T * 127.5
    solution[:, -1] += 127.5
    solution = solution.float()
    return solution[:, :-1].unflatten(1, (latents.shape[1], 3, 3)), solution[:, -1]


def synthetic_pictures(count: int, size: int) -> Float[Tensor, "{count} 3 {size} {size}"]:
    """Pictures in -1..1: flat shapes before soft colours. They are always the same, from a generator of their own."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    pictures = F.interpolate(uniform(count, 3, 3, 3) * 2 - 1, size=(size, size), mode="bilinear")
    axis = (torch.arange(size) + 0.5) / size
    for picture in pictures:
        for _ in range(6):
            (y, x), radius, colour = uniform(2), 0.05 + 0.2 * uniform(1), uniform(3) * 2 - 1
            across, down = (axis[None, :] - x).abs(), (axis[:, None] - y).abs()
            inside = torch.maximum(across, down) if uniform(1) < 0.5 else (across**2 + down**2).sqrt()
            picture[:, inside < radius] = colour[:, None]
    return pictures
