"""What text encoder and U-Net are trained for: the velocity, and two lessons in what lies where."""

from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from toushi.experiments.scene_world.objects import COLOURS, KINDS
from toushi.experiments.training.scene_batches import Batch
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.models.prompt_batch import PromptBatch, pad_ids
from toushi.probe.models.text_encoder import FeedForward


@contextmanager
def attention_in_fp32():
    """In bf16 the backward pass of attention takes ten times as long on a CPU (torch 2.13)."""
    original = F.scaled_dot_product_attention

    def attention(query, key, value, attn_mask=None, scale=None):
        return original(query.float(), key.float(), value.float(), attn_mask, scale=scale).to(query.dtype)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def read_captions(model: MiniUNet, captions: list[str], group: int = 32) -> PromptBatch:
    """The captions' states. Read in groups of like length: padded to the longest, half of the work would be pads."""
    encodings = [model.tokenizer.encode(caption) for caption in captions]
    ids, mask = pad_ids(encodings, model.tokenizer.pad)
    lengths = mask.sum(1)
    order = lengths.argsort()
    parts = []
    for rows in order.split(group):
        longest = int(lengths[rows[-1]])
        states = model.encoder(ids[rows, :longest], mask[rows, :longest])
        parts.append(F.pad(states, (0, 0, 0, ids.shape[1] - longest)))
    return PromptBatch(torch.cat(parts)[order.argsort()], mask, tuple(encodings))


class Namer(nn.Module):
    """Names the kind of object at each cell, and its colour, from the features of the U-Net's way up. Used in training
    only.

    Naming asks for the right word at the right place, where the velocity of a noisy cell asks first for its colour;
    features that were made to mean something sooner make pictures sooner (Yu et al. 2024, REPA, in spirit). Where all
    is noise, the text alone can tell what belongs where: so sides are learnt. The attention itself is never
    supervised: heat maps stay what the model found by itself.
    """

    def __init__(self, unet: nn.Module):
        super().__init__()
        fine, middle, _ = unet.config.widths
        self.heads = nn.ModuleList([nn.Linear(middle, len(KINDS) + 1), nn.Linear(fine, len(KINDS) + 1)])
        self.colours = nn.ModuleList([nn.Linear(middle, len(COLOURS) + 1), nn.Linear(fine, len(COLOURS) + 1)])
        for head in (*self.heads, *self.colours):  # so that a new head says nothing yet, and disturbs nothing
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.features: list[Tensor] = []
        for stage in unet.up:
            stage.register_forward_hook(lambda module, args, output: self.features.append(output))

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


class Reader(nn.Module):
    """Says from the text alone which kind of object lies where. Used in training only.

    64 learned places ask the encoder's states by one attention of their own and name what lies there. The U-Net alone
    taught the encoder what things are in 500 thousand samples and not once which of two stood on the left.
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
    """What a batch is drowned in, and how deep."""

    time: Tensor  # [b]
    noise: Tensor  # [b, c, h, w]

    @classmethod
    def like(cls, latents: Tensor, early: float = 0.0, generator: torch.Generator | None = None) -> "Noise":
        """Logit-normal times of mean 0.5 (Esser et al. 2024, section 3.1), and for the share `early` of the pictures
        times from 0.85 to 1, where it is decided what goes where."""
        time = torch.sigmoid(torch.randn(len(latents), generator=generator) + 0.5)
        if early:
            near = 1 - 0.15 * torch.rand(len(time), generator=generator)
            time = torch.where(torch.rand(len(time), generator=generator) < early, near, time)
        return cls(time, torch.randn(latents.shape, generator=generator))


def velocity_loss(
    model: MiniUNet,
    batch: Batch,
    object_weight: float = 0.0,
    noise: Noise | None = None,
    text: PromptBatch | None = None,
) -> Tensor:
    """Mean squared error of the velocity, under the given noise or fresh one.

    Cells that objects cover count 1 + object_weight times as much: words mostly speak of objects, pixels mostly of
    backgrounds.
    """
    text = text or read_captions(model, batch.captions)
    noise = noise or Noise.like(batch.latents)
    t = noise.time[:, None, None, None]
    noisy = ((1 - t) * batch.latents + t * noise.noise).to(model.dtype, memory_format=torch.channels_last)
    velocity = model.unet(noisy, noise.time, text)
    error = (velocity.float() - (noise.noise - batch.latents)).square().mean(1, keepdim=True)
    weight = 1 + object_weight * batch.covered
    return (weight * error).sum() / weight.sum()
