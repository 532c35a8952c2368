"""Small pictures of latents at almost no cost, to look at while a run goes on.

The VAE's decoder takes about a quarter of a step of mini-unet, too much to run at every step. Locally it is close to
linear: one 3x3 convolution from latent cells to the pixels of each cell, fitted by least squares to what the VAE's
own encoder makes of made-up pictures, shows the same at a hundredth of the cost. The exact decoding of any step is
`vae.decode` of the latent that the trace keeps.
"""

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

LARGEST = 128  # pixels; larger pictures get smaller previews
RIDGE = 1e-2
_fitted: WeakKeyDictionary[nn.Module, dict[int, tuple[Tensor, Tensor]]] = WeakKeyDictionary()


@torch.no_grad()
def preview(vae: nn.Module, factor: int, latents: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b y x 3"]:
    """About what `vae.decode(latents)` shows, at most LARGEST pixels wide and high. Fits on the first call."""
    height, width = latents.shape[-2:]
    fitting = (n for n in range(factor, 1, -1) if factor % n == 0 and n * max(height, width) <= LARGEST)
    pixels = next(fitting, 1)
    fits = _fitted.setdefault(vae, {})
    if pixels not in fits:
        fits[pixels] = fit(vae, factor, pixels)
    weight, bias = (w.to(latents) for w in fits[pixels])
    levels = F.conv2d(F.pad(latents, (1, 1, 1, 1), mode="replicate"), weight, bias)
    return F.pixel_shuffle(levels.clamp_(0, 255).round_().byte(), pixels).permute(0, 2, 3, 1).contiguous()


def fit(vae: nn.Module, factor: int, pixels: int, count: int = 3) -> tuple[Tensor, Tensor]:
    """Weight [3*pixels*pixels, c, 3, 3] and bias of the convolution: ridge regression from latents to levels 0..255."""
    about = next(vae.parameters())
    pictures = made_up(count, 16 * factor)
    latents = vae.encode(pictures.to(about.device, about.dtype)).cpu().double()
    cells = F.unfold(F.pad(latents, (1, 1, 1, 1), mode="replicate"), 3).transpose(1, 2).flatten(0, 1)
    x = torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1)
    small = F.avg_pool2d(pictures.double(), factor // pixels)
    y = F.pixel_unshuffle(small, pixels).flatten(2).transpose(1, 2).flatten(0, 1)
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    solution = torch.linalg.solve(gram, x.T @ y).T * 127.5
    solution[:, -1] += 127.5
    solution = solution.float()
    return solution[:, :-1].unflatten(1, (latents.shape[1], 3, 3)), solution[:, -1]


def made_up(count: int, size: int) -> Float[Tensor, "b 3 size size"]:
    """Pictures in -1..1 of soft colours with flat shapes before them; a generator of its own, so always the same."""
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
