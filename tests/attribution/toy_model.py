"""mini-unet with attention that is built by hand: each word looks at a place of its own, and draws only there.

The text encoder gives the tokens of a word the one-hot state of its quadrant, <bos> a state of its own, and all others 0.
One cross-attention is left: a cell attends to the word of its quadrant or, if the prompt has it not, to <bos>, which
adds nothing. The output goes into the latents. So a word adds its strength in its quadrant, and nothing elsewhere.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.models.prompt_batch import PromptBatch
from toushi.probe.models.unet import CrossAttention

WORDS = ("猫", "月亮", "树", "狗")  # of the quadrants: top left, top right, bottom left, bottom right
PROMPT = "，".join(WORDS)
GRID = 8


def quadrant_masks(size: int = GRID) -> Tensor:
    """bool [quadrant, y, x]."""
    top = torch.arange(size)[:, None] < size // 2
    left = torch.arange(size)[None] < size // 2
    return torch.stack([top & left, top & ~left, ~top & left, ~top & ~left])


class QuadrantEncoder(nn.Module):
    """States [row, token, 5]: 1 at the quadrant of the token's word, or at 4 for <bos>, else all 0."""

    def __init__(self, ids: Sequence[Sequence[int]], vocabulary: int):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 5)
        self.layers = nn.ModuleList()
        nn.init.zeros_(self.embed.weight)
        with torch.no_grad():
            for place, of_text in enumerate(ids):
                self.embed.weight[list(of_text), place] = 1

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.embed(ids)


class QuadrantDenoiser(nn.Module):
    """The velocity at a cell is minus what the cell gets: the sum of the values of the tokens that it attends to."""

    def __init__(self, strength: Sequence[float]):
        super().__init__()
        self.cross_attention = CrossAttention(5, 1, 5)
        attention = self.cross_attention
        with torch.no_grad():
            attention.to_q.weight.copy_(40 * torch.eye(5))
            attention.to_kv.weight.copy_(torch.cat([torch.eye(5), torch.diag(torch.tensor([*strength, 0.0]))]))
            attention.to_out.weight.copy_(torch.eye(5))
            attention.to_out.bias.zero_()
        self.conv_in = nn.Conv2d(8, 8, 1)

    def read_text(self, text: PromptBatch) -> PromptBatch:
        return text

    def forward(self, latents: Tensor, time: Tensor, text: PromptBatch) -> Tensor:
        quadrants = quadrant_masks(latents.shape[-1]).flatten(1).T.to(latents)
        cells = F.pad(quadrants, (0, 1), value=0.5).expand(len(latents), -1, -1)
        keys_values = self.cross_attention.keys_values(text.states)
        output = self.cross_attention(cells, keys_values, text.mask[:, None, None, :])
        amount = output.sum(-1).unflatten(-1, latents.shape[-2:])[:, None]
        return latents - amount.expand_as(latents)


def toy_model(strength: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> MiniUNet:
    """`strength`: how much the word of each quadrant adds to the latents there."""
    model = MiniUNet.tiny(layers=1)
    ids = [model.tokenizer.encode(word).ids[1:-1] for word in WORDS]
    ids.append(model.tokenizer.encode("").ids[:1])
    model.encoder = QuadrantEncoder(ids, model.config.text.vocab_size)
    model.unet = QuadrantDenoiser(strength)
    return model.eval().requires_grad_(False)
