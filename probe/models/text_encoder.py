"""A Transformer that turns token ids into one state per token; bidirectional, unless it is built causal.

It has twelve narrow layers, because this project tests claims about layers 1-4, 5-8 and deeper ones.
State 0 is the output of `embed`, state i + 1 the output of `layers.{i}`; `norm` is applied after the last.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class TextEncoderConfig:
    vocab_size: int = 2048
    length: int = 77
    width: int = 128
    layers: int = 12
    heads: int = 4
    causal: bool = False
    """Whether a token sees only itself and the tokens before it."""


class Embedding(nn.Module):
    """Token embedding plus learned position embedding."""

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Parameter(torch.randn(config.length, config.width) * 0.02)
        nn.init.normal_(self.token.weight, std=0.02)

    def forward(self, ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l width"]:
        return self.token(ids) + self.position[: ids.shape[1]]


class SelfAttention(nn.Module):
    """Softmax attention of a sequence to itself."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "b 1 q n"] | None = None) -> Float[Tensor, "b n c"]:
        q, k, v = rearrange(self.to_qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(rearrange(x, "b h n d -> b n (h d)"))


class TokenAttention(SelfAttention):
    """Self-attention of a text, with normalised queries and keys (QK norm) and rotary positions (RoPE).

    Without QK norm the scores grew until every head of the first layer looked at one token for any text, and no
    gradient passed (Henry et al. 2020, "Query-Key Normalization"). RoPE makes neighbours easy to find (Su et al. 2021,
    RoFormer).
    """

    QK_SCALE = 4.0  # scores lie within QK_SCALE * sqrt(width of a head)

    def forward(self, x: Float[Tensor, "b n c"], mask: Bool[Tensor, "b 1 q n"] | None = None) -> Float[Tensor, "b n c"]:
        q, k, v = rearrange(self.to_qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q, k = (apply_rope(F.rms_norm(part, part.shape[-1:])) for part in (q, k))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.QK_SCALE * q.shape[-1] ** -0.5)
        return self.to_out(rearrange(x, "b h n d -> b n (h d)"))


def apply_rope(x: Float[Tensor, "... n d"], base: float = 100.0) -> Float[Tensor, "... n d"]:
    """Rotary positions: each pair of features (i, i + d/2) rotated by the angle position / base^(2 i / d)."""
    n, d = x.shape[-2:]
    angles = torch.arange(n, device=x.device)[:, None] * base ** (-torch.arange(d // 2, device=x.device) / (d // 2))
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class FeedForward(nn.Sequential):
    def __init__(self, width: int):
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = TokenAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Float[Tensor, "b l width"], mask: Bool[Tensor, "b 1 q l"]) -> Float[Tensor, "b l width"]:
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.feed_forward(self.feed_forward_norm(x))


class TextEncoder(nn.Module):
    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.config = config
        self.embed = Embedding(config)
        layers = [EncoderLayer(config.width, config.heads) for _ in range(config.layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.width)
        # Residual branches start small, so that twelve layers begin as nearly the identity and train at once.
        for layer in layers:
            for last in (layer.attention.to_out, layer.feed_forward[-1]):
                assert isinstance(last, nn.Linear)
                nn.init.normal_(last.weight, std=0.02 / (2 * config.layers) ** 0.5)

    def forward(self, ids: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l width"]:
        """States of the tokens. `mask` is True at real tokens; the states of pads mean nothing."""
        x = self.embed(ids)
        attention_mask = mask[:, None, None, :]
        if self.config.causal:
            causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
            attention_mask = attention_mask & causal
        for layer in self.layers:
            x = layer(x, attention_mask)
        return self.norm(x)
