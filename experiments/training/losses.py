"""The losses of text encoder and U-Net: the velocity, and two auxiliary losses on where objects are."""

from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from toushi.experiments.scene_world.objects import COLOURS, KINDS
from toushi.experiments.training.scene_batches import Batch
from toushi.probe.models.dit import PATCH
from toushi.probe.models.mini_dit import MiniDiT
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.models.prompt_batch import PromptBatch, pad_ids
from toushi.probe.models.text_encoder import FeedForward

GRID = 16  # latent cells of a training picture, each way


@contextmanager
def attention_in_fp32():
    """Inside it CPUs compute attention in fp32: in bf16 its backward pass takes ten times as long there (torch 2.13)."""
    original = F.scaled_dot_product_attention

    def attention(query, key, value, attn_mask=None, scale=None):
        if query.device.type != "cpu":
            return original(query, key, value, attn_mask, scale=scale)
        return original(query.float(), key.float(), value.float(), attn_mask, scale=scale).to(query.dtype)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def read_captions(model: MiniUNet, captions: list[str], group: int = 32) -> PromptBatch:
    """The states of the captions. They are encoded in groups of similar length, or half of the work would be pads."""
    encodings = [model.tokenizer.encode(caption) for caption in captions]
    ids, mask = pad_ids(encodings, model.tokenizer.pad)
    order = mask.sum(1).argsort()
    longest_of_group = [int(mask[rows[-1]].sum()) for rows in order.split(group)]  # before they go to the device
    ids, mask, order = (tensor.to(model.device) for tensor in (ids, mask, order))
    parts = []
    for rows, longest in zip(order.split(group), longest_of_group):
        states = model.encoder(ids[rows, :longest], mask[rows, :longest])
        parts.append(F.pad(states, (0, 0, 0, ids.shape[1] - longest)))
    return PromptBatch(torch.cat(parts)[order.argsort()], mask, tuple(encodings))


class Namer(nn.Module):
    """Names the kind and colour of the object at each cell, from features of the denoiser: of the U-Net's up path, or of
    two blocks of the DiT. For training only.

    Naming needs the right word at the right place, while the velocity of a noisy cell needs its colour first. Features
    that mean something sooner make pictures sooner (Yu et al. 2024, REPA, in spirit). Where all is noise, only the text
    tells what belongs where, so sides are learnt. The attention itself is never supervised: heat maps are what the
    model found by itself.
    """

    def __init__(self, model: MiniUNet):
        super().__init__()
        modules, widths = _named_modules(model)
        heads = [nn.Linear(width, len(KINDS) + 1) for width in widths]
        colours = [nn.Linear(width, len(COLOURS) + 1) for width in widths]
        for head in (*heads, *colours):  # a new head names nothing, and disturbs nothing
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.heads, self.colours = nn.ModuleList(heads), nn.ModuleList(colours)
        self.features: list[Tensor] = []

        def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
            self.features.append(output if output.ndim == 4 else _image_tokens(output))

        for module in modules:
            module.register_forward_hook(keep)

    def loss(self, kinds: Tensor, colours: Tensor) -> Tensor:
        """Mean cross-entropy of kinds and colours [b, h, w] over both grids; bare cells count a tenth."""
        weight = torch.where(kinds == 0, 0.1, 1.0)
        total = kinds.new_zeros((), dtype=torch.float32)
        for head, colour, features in zip(self.heads, self.colours, self.features):
            for linear, wanted in ((head, kinds), (colour, colours)):
                logs = linear(features.permute(0, 2, 3, 1)).float().log_softmax(-1)
                # A cell of a coarse grid answers for several of the fine one.
                fine = kinds.shape[-1] // logs.shape[2]
                names, weights = (
                    rearrange(x, "b (h i) (w j) -> b h w (i j)", i=fine, j=fine) for x in (wanted, weight)
                )
                total = total - (weights * logs.gather(-1, names)).sum() / weights.sum()
        return total / len(self.heads)


def _named_modules(model: MiniUNet) -> tuple[list[nn.Module], list[int]]:
    """Whose outputs the `Namer` reads, and their widths."""
    if isinstance(model, MiniDiT):
        blocks = list(model.transformer.layers)
        return [blocks[len(blocks) // 2], blocks[-2]], [model.transformer.config.dim] * 2
    fine, middle, _ = model.config.unet.widths
    return list(model.unet.up), [middle, fine]


def _image_tokens(sequence: Tensor) -> Tensor:
    """Features [b, c, h, w] of the image tokens, which are the first of a joint sequence [b, n, c] of the DiT."""
    side = GRID // PATCH
    return rearrange(sequence[:, : side * side], "b (h w) c -> b c h w", h=side)


class Reader(nn.Module):
    """Names from the text alone which kind of object lies where. For training only.

    64 learned places attend to the encoder's states and name what lies there. In 500 thousand samples the U-Net alone
    taught the encoder what things are, but not which of two stood on the left.
    """

    def __init__(self, width: int):
        super().__init__()
        self.place = nn.Parameter(torch.randn(64, width) * 0.2)
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.o, self.ff = nn.Linear(width, width), FeedForward(width)
        self.n, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.out = nn.Linear(width, len(KINDS) + 1)

    def loss(self, text: PromptBatch, kinds: Tensor) -> Tensor:
        """Mean cross-entropy of the kinds [b, h, w] on a grid of 8x8; bare cells count a tenth."""
        wanted = kinds[:, :: kinds.shape[1] // 8, :: kinds.shape[2] // 8].flatten(1)
        x = self.place.expand(len(wanted), -1, -1)
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", d=32)
            for part in (self.q(self.n(x)), *self.kv(text.states).chunk(2, -1))
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=text.mask[:, None, None])
        x = x + self.o(rearrange(seen, "b h n d -> b n (h d)"))
        logits = self.out(x + self.ff(self.n2(x))).float()
        weight = torch.where(wanted == 0, 0.1, 1.0)
        loss = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
        return (weight * loss).sum() / weight.sum()


class Noise(NamedTuple):
    """The noise of a batch, and its times."""

    time: Tensor  # [b]
    noise: Tensor  # [b, c, h, w]

    @classmethod
    def like(cls, latents: Tensor, early: float = 0.0, generator: torch.Generator | None = None) -> "Noise":
        """Logit-normal times of mean 0.5 (Esser et al. 2024, section 3.1), and for the share `early` of the pictures
        times from 0.85 to 1, which decide what goes where. Made on the CPU: a seed gives the same on every device."""
        time = torch.sigmoid(torch.randn(len(latents), generator=generator) + 0.5)
        if early:
            near = 1 - 0.15 * torch.rand(len(time), generator=generator)
            time = torch.where(torch.rand(len(time), generator=generator) < early, near, time)
        noise = torch.randn(latents.shape, generator=generator)
        return cls(time.to(latents.device), noise.to(latents.device))


def velocity_loss(
    model: MiniUNet,
    batch: Batch,
    object_weight: float = 0.0,
    noise: Noise | None = None,
    text: PromptBatch | None = None,
) -> Tensor:
    """Mean squared error of the velocity, under the given noise or a new one.

    Cells that objects cover count 1 + object_weight times: words are mostly about objects, pixels mostly background.
    """
    text = text or read_captions(model, batch.captions)
    noise = noise or Noise.like(batch.latents)
    t = noise.time[:, None, None, None]
    noisy = ((1 - t) * batch.latents + t * noise.noise).to(model.dtype, memory_format=torch.channels_last)
    velocity = model.velocity(noisy, noise.time, text)
    error = (velocity.float() - (noise.noise - batch.latents)).square().mean(1, keepdim=True)
    weight = 1 + object_weight * batch.covered
    return (weight * error).sum() / weight.sum()
