"""Z-Image's denoiser as released: a single-stream diffusion Transformer (Z-Image team 2025).

The latents are cut into patches of 2x2 cells. Image and text tokens are first refined apart, then joined into one
sequence, image first, in which every token attends to every token. There is no cross-attention: the image reads the
text in the columns of this joint attention. Parameters have the released names, so released weights load as they are.

Each part is padded to a multiple of 32 with learned pad tokens, which are attended to like any other. Padding up to the
longest caption of a batch is masked. So a row of the joint sequence is [image | image pads | text | text pads | masked].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from math import log
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from toushi.probe.base.errors import ToushiError

PATCH = 2  # latent cells of a token, each way
PAD_MULTIPLE = 32  # tokens; each part of the sequence is padded to a multiple of them
TIME_FEATURES = 256


@dataclass(frozen=True)
class DiTConfig:
    """Names and numbers of the released config.json. `axes_lens` are the numbers of positions of each axis."""

    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    norm_eps: float = 1e-5
    cap_feat_dim: int = 2560
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: tuple[int, int, int] = (32, 48, 48)
    axes_lens: tuple[int, int, int] = (1536, 512, 512)

    @property
    def time_width(self) -> int:
        return min(self.dim, 256)

    @classmethod
    def from_released(cls, values: Mapping[str, object]) -> "DiTConfig":
        """The config of a released config.json. Raises ToushiError for a design that this file does not have."""
        heads = values.get("n_heads", cls.n_heads)
        expected = {
            "all_patch_size": [PATCH],
            "all_f_patch_size": [1],
            "n_kv_heads": heads,
            "qk_norm": True,
            "siglip_feat_dim": None,
        }
        for name, value in expected.items():
            came = values.get(name, value)
            if (list(came) if isinstance(came, tuple) else came) != value:
                raise ToushiError(f"this DiT is written for {name} = {value}, but the config says {came}")
        known = {field.name for field in fields(cls)}
        chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return replace(cls(), **chosen)


def padded_length(count: int) -> int:
    """Tokens of a part of the sequence with its pads."""
    return count + -count % PAD_MULTIPLE


# --- positions of tokens: (text order, y, x) ---


def text_positions(length: int) -> Int[Tensor, "1 {length} 3"]:
    """Positions of text tokens and of their pads: along the first axis, from 1."""
    return F.pad(torch.arange(1, length + 1)[None, :, None], (0, 2))


def image_positions(rows: int, columns: int, text_lengths: Sequence[int]) -> Int[Tensor, "b n 3"]:
    """Positions of image tokens in reading order. On the first axis all stand behind the caption and its pads.

    The pads of the image are at (0, 0, 0).
    """
    grid = torch.cartesian_prod(torch.tensor([0]), torch.arange(rows), torch.arange(columns))
    starts = torch.tensor([[length + 1, 0, 0] for length in text_lengths])
    return F.pad(starts[:, None] + grid, (0, 0, 0, -len(grid) % PAD_MULTIPLE))


def rope_cos_sin(positions: Int[Tensor, "b n 3"], config: DiTConfig) -> Float[Tensor, "2 b 1 n d"]:
    """Cosine and sine of the angle of each pair of a head's channels (RoPE, Su et al. 2021). Each axis has its own pairs.

    Computed in double precision on the CPU and rounded, as in the released code. At position 1000 an angle in single
    precision would have a larger error than the kernels.
    """
    angles = []
    for axis, width in enumerate(config.axes_dims):
        frequencies = config.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(positions[..., axis, None] * frequencies)
    angle = torch.cat(angles, dim=-1).float()[:, None]
    return torch.stack([angle.cos(), angle.sin()])


def apply_rope(x: Float[Tensor, "b h n c"], cos_sin: Float[Tensor, "2 #b 1 n c//2"]) -> Float[Tensor, "b h n c"]:
    """Each pair of neighbouring channels rotated as a point of the plane."""
    cos, sin = cos_sin
    left, right = rearrange(x.float(), "b h n (d two) -> two b h n d", two=2)
    rotated = torch.stack([left * cos - right * sin, left * sin + right * cos], dim=-1)
    return rearrange(rotated, "b h n d two -> b h n (d two)").to(x.dtype)


# --- modules ---


class TimeEmbedding(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, 1024), nn.SiLU(), nn.Linear(1024, width))

    def forward(self, time: Float[Tensor, " b"]) -> Float[Tensor, "b width"]:
        half = TIME_FEATURES // 2
        frequencies = torch.exp(-log(10000) * torch.arange(half, dtype=torch.float32, device=time.device) / half)
        angles = time.float()[:, None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(next(self.mlp.parameters()).dtype))


class Attention(nn.Module):
    """Every token of the sequence attends to every token, text to image as well as image to text."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.norm_q = nn.RMSNorm(dim // heads, eps=1e-5)  # not norm_eps: the released code fixes it
        self.norm_k = nn.RMSNorm(dim // heads, eps=1e-5)
        self.to_out = nn.Sequential(nn.Linear(dim, dim, bias=False))

    def forward(
        self, x: Float[Tensor, "b n c"], cos_sin: Float[Tensor, "2 #b 1 n d"], mask: Bool[Tensor, "b 1 1 n"] | None
    ) -> Float[Tensor, "b n c"]:
        q, k, v = (rearrange(to(x), "b n (h d) -> b h n d", h=self.heads) for to in (self.to_q, self.to_k, self.to_v))
        q, k = apply_rope(self.norm_q(q), cos_sin), apply_rope(self.norm_k(k), cos_sin)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(rearrange(x, "b h n d -> b n (h d)"))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = 8 * dim // 3
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Attention, then feed-forward, each normalised before and after. The time scales the inputs and gates the outputs."""

    def __init__(self, config: DiTConfig, *, timed: bool):
        super().__init__()
        dim = config.dim
        self.attention = Attention(dim, config.n_heads)
        self.feed_forward = FeedForward(dim)
        self.attention_norm1 = nn.RMSNorm(dim, eps=config.norm_eps)
        self.attention_norm2 = nn.RMSNorm(dim, eps=config.norm_eps)
        self.ffn_norm1 = nn.RMSNorm(dim, eps=config.norm_eps)
        self.ffn_norm2 = nn.RMSNorm(dim, eps=config.norm_eps)
        if timed:
            self.adaLN_modulation = nn.Sequential(nn.Linear(config.time_width, 4 * dim))

    def modulation(self, time: Float[Tensor, "b t"] | None) -> tuple[Tensor | float, ...]:
        """Scale and gate of the attention, scale and gate of the feed-forward."""
        if time is None:
            return 1.0, 1.0, 1.0, 1.0
        scale, gate, ffn_scale, ffn_gate = self.adaLN_modulation(time)[:, None].chunk(4, dim=-1)
        return 1 + scale, gate.tanh(), 1 + ffn_scale, ffn_gate.tanh()

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        cos_sin: Float[Tensor, "2 #b 1 n d"],
        mask: Bool[Tensor, "b 1 1 n"] | None,
        time: Float[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        scale, gate, ffn_scale, ffn_gate = self.modulation(time)
        x = x + gate * self.attention_norm2(self.attention(self.attention_norm1(x) * scale, cos_sin, mask))
        return x + ffn_gate * self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * ffn_scale))


class FinalLayer(nn.Module):
    def __init__(self, config: DiTConfig):
        super().__init__()
        self.norm_final = nn.LayerNorm(config.dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(config.dim, PATCH * PATCH * config.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.time_width, config.dim))

    def forward(self, x: Float[Tensor, "b n c"], time: Float[Tensor, "b t"]) -> Float[Tensor, "b n out"]:
        return self.linear(self.norm_final(x) * (1 + self.adaLN_modulation(time)[:, None]))


class DiT(nn.Module):
    def __init__(self, config: DiTConfig):
        super().__init__()
        if sum(config.axes_dims) * config.n_heads != config.dim:
            raise ToushiError(
                f"the axes' channels {config.axes_dims} must add up to a head's, {config.dim} / {config.n_heads}"
            )
        self.config = config
        patch = f"{PATCH}-1"  # the released file could hold several patch sizes, named space-time
        self.all_x_embedder = nn.ModuleDict({patch: nn.Linear(PATCH * PATCH * config.in_channels, config.dim)})
        self.all_final_layer = nn.ModuleDict({patch: FinalLayer(config)})
        self.t_embedder = TimeEmbedding(config.time_width)
        self.cap_embedder = nn.Sequential(
            nn.RMSNorm(config.cap_feat_dim, eps=config.norm_eps), nn.Linear(config.cap_feat_dim, config.dim)
        )
        refiners = range(config.n_refiner_layers)
        self.noise_refiner = nn.ModuleList(Block(config, timed=True) for _ in refiners)
        self.context_refiner = nn.ModuleList(Block(config, timed=False) for _ in refiners)
        self.layers = nn.ModuleList(Block(config, timed=True) for _ in range(config.n_layers))
        self.x_pad_token = nn.Parameter(torch.randn(1, config.dim) * 0.02)
        self.cap_pad_token = nn.Parameter(torch.randn(1, config.dim) * 0.02)

    def embed_image(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n dim"]:
        """The image tokens, then their pads."""
        patches = rearrange(latents, "b c (y dy) (x dx) -> b (y x) (dy dx c)", dy=PATCH, dx=PATCH)
        (embedder,) = self.all_x_embedder.values()
        pads = self.x_pad_token.expand(len(patches), -patches.shape[1] % PAD_MULTIPLE, -1)
        return torch.cat([embedder(patches), pads], dim=1)

    def embed_text(self, texts: Sequence[Float[Tensor, "_token width"]]) -> Float[Tensor, "b n dim"]:
        """Each caption with its pads. Zeros, which are to be masked, follow the shorter ones."""
        pads = [self.cap_pad_token.expand(-len(text) % PAD_MULTIPLE, -1) for text in texts]
        return pad_sequence([torch.cat([self.cap_embedder(text), pad]) for text, pad in zip(texts, pads)], True)

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        time: Float[Tensor, " _b"],
        texts: Sequence[Float[Tensor, "_token width"]],
    ) -> Float[Tensor, "b c h w"]:
        """Velocity at each cell: picture minus noise, in latent units.

        `time` has one value for each row: 0 at noise and 1 at the picture, the reverse of this project's U-Net. `texts`
        are the encoder's states of each row's prompt without padding; their lengths may differ. Raises ToushiError
        where their numbers or sizes do not fit.
        """
        rows, columns = latents.shape[2] // PATCH, latents.shape[3] // PATCH
        lengths = [padded_length(len(text)) for text in texts]
        self._check(latents, time, texts, max(lengths, default=0))
        (final_layer,) = self.all_final_layer.values()
        time = self.t_embedder(time * self.config.t_scale)

        layout = sequence_layout(rows, columns, tuple(lengths), self.config, latents.device)
        image = self.embed_image(latents)
        for block in self.noise_refiner:
            image = block(image, layout.image_cos_sin, None, time)

        text = self.embed_text(texts)
        for block in self.context_refiner:
            text = block(text, layout.text_cos_sin, layout.text_mask)

        x = torch.cat([image, text], dim=1)
        for block in self.layers:
            x = block(x, layout.cos_sin, layout.mask, time)
        patches = final_layer(x[:, : rows * columns], time)
        return rearrange(patches, "b (y x) (dy dx c) -> b c (y dy) (x dx)", y=rows, dy=PATCH, dx=PATCH)

    def _check(self, latents: Tensor, time: Tensor, texts: Sequence[Tensor], longest: int) -> None:
        """Refuses inputs of which torch would report a shape somewhere inside, or which it would broadcast."""
        if not len(latents) == len(time) == len(texts):
            raise ToushiError(
                f"each picture needs a time and a text, but {len(latents)} latents, {len(time)} times and "
                f"{len(texts)} texts came"
            )
        height, width = latents.shape[2:]
        if height % PATCH or width % PATCH:
            raise ToushiError(f"latents must be an even number of cells high and wide, but {height}x{width} came")
        if not all(len(text) for text in texts):
            raise ToushiError(
                "expected texts with tokens, but one has no tokens; an empty prompt has those of the chat template"
            )
        needed = (longest + 2, height // PATCH, width // PATCH)
        if any(count > limit for count, limit in zip(needed, self.config.axes_lens)):
            raise ToushiError(
                f"positions reach {self.config.axes_lens} (text, rows, columns of tokens), but {needed} are needed"
            )


def text_mask(lengths: Sequence[int], device: torch.device) -> Bool[Tensor, "b 1 1 n"] | None:
    """True at each caption and its pads. None where all have one length: fused kernels are faster without a mask."""
    if len(set(lengths)) == 1:
        return None
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None, None].to(device)


class SequenceLayout(NamedTuple):
    """Rotations and masks of image tokens, text tokens, and both."""

    image_cos_sin: Float[Tensor, "2 b 1 n d"]
    text_cos_sin: Float[Tensor, "2 1 1 n d"]
    text_mask: Bool[Tensor, "b 1 1 n"] | None
    cos_sin: Float[Tensor, "2 b 1 n d"]
    mask: Bool[Tensor, "b 1 1 n"] | None


@lru_cache(4)
def sequence_layout(
    rows: int, columns: int, lengths: tuple[int, ...], config: DiTConfig, device: torch.device
) -> SequenceLayout:
    """Remembered, because all evaluations of a run have the same, and a GPU waits for each copy of it.

    `rows` and `columns` of image tokens; `lengths` of each caption with its pads.
    """
    with torch.inference_mode(False):  # training may come next, with the same layout
        image = rope_cos_sin(image_positions(rows, columns, lengths), config).to(device)
        text = rope_cos_sin(text_positions(max(lengths)), config).to(device)
        both = torch.cat([image, text.expand(-1, len(lengths), -1, -1, -1)], dim=3)
        part = text_mask(lengths, device)
        whole = None if part is None else F.pad(part, (image.shape[3], 0), value=True)
        return SequenceLayout(image, text, part, both, whole)
