"""The denoiser: a small U-Net on latents, with cross-attention to the text at every resolution.

It has three grids (16, 8 and 4 cells wide for a 64-pixel picture). Self-attention runs on the two coarse grids, where
it is cheap. A learned position embedding tells every cell where it is. The text's keys and values do not depend on the
step, so `read_text` computes them once for a whole run.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from toushi.probe.models.prompt_batch import KeysValues, PromptBatch
from toushi.probe.models.text_encoder import FeedForward, SelfAttention


@dataclass(frozen=True)
class UNetConfig:
    latent_channels: int = 8
    source_channels: int = 0
    """Channels of a source picture's latents, which stand behind the noisy ones in an editing model."""
    widths: tuple[int, int, int] = (64, 128, 192)
    head_width: int = 32
    text_width: int = 128
    time_width: int = 256
    grid: int = 16


def time_features(time: Float[Tensor, " b"], width: int) -> Float[Tensor, "b width"]:
    """Sines and cosines of the time in 0..1 at geometric frequencies (Vaswani et al. 2017, section 3.5)."""
    frequencies = torch.exp(torch.linspace(0, -9.2, width // 2, device=time.device)) * 1000
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResNetBlock(nn.Module):
    """Two convolutions around a residual; the time scales and shifts the features between them."""

    def __init__(self, width_in: int, width: int, time_width: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time = nn.Linear(time_width, 2 * width)
        self.norm2 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b t"]) -> Float[Tensor, "b d h w"]:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))
        return self.skip(x) + y


class CrossAttention(nn.Module):
    """Attention of image cells (queries) to text tokens (keys)."""

    def __init__(self, width: int, heads: int, text_width: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(text_width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def keys_values(self, states: Float[Tensor, "b l text"]) -> KeysValues:
        k, v = rearrange(self.to_kv(states), "b l (two h d) -> two b h l d", two=2, h=self.heads)
        return k, v

    def forward(
        self, x: Float[Tensor, "b n c"], keys_values: KeysValues, mask: Bool[Tensor, "b 1 1 l"]
    ) -> Float[Tensor, "b n c"]:
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
        x = F.scaled_dot_product_attention(q, *keys_values, attn_mask=mask)
        return self.to_out(rearrange(x, "b h n d -> b n (h d)"))


class Stage(nn.Module):
    """One resolution: convolutions, self-attention of the cells (on coarse grids), cross-attention to the text."""

    def __init__(self, width_in: int, width: int, config: UNetConfig, self_attention: bool):
        super().__init__()
        heads = width // config.head_width
        self.resnet = ResNetBlock(width_in, width, config.time_width)
        if self_attention:
            self.self_norm = nn.LayerNorm(width)
            self.self_attention = SelfAttention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, heads, config.text_width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        time: Float[Tensor, "b t"],
        keys_values: KeysValues,
        mask: Bool[Tensor, "b 1 1 l"],
    ) -> Float[Tensor, "b width h w"]:
        x = self.resnet(x, time)
        height = x.shape[2]
        x = rearrange(x, "b c h w -> b (h w) c")
        if hasattr(self, "self_attention"):
            x = x + self.self_attention(self.self_norm(x))
        x = x + self.cross_attention(self.cross_norm(x), keys_values, mask)
        x = x + self.feed_forward(self.feed_forward_norm(x))
        return rearrange(x, "b (h w) c -> b c h w", h=height)


class UNet(nn.Module):
    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        fine, middle, coarse = config.widths
        self.time = nn.Sequential(
            nn.Linear(config.time_width, config.time_width),
            nn.SiLU(),
            nn.Linear(config.time_width, config.time_width),
            nn.SiLU(),
        )
        self.conv_in = nn.Conv2d(config.latent_channels + config.source_channels, fine, 3, padding=1)
        self.positions = nn.ParameterList(
            torch.randn(1, width, config.grid >> level, config.grid >> level) * 0.02
            for level, width in enumerate(config.widths)
        )
        self.down = nn.ModuleList([Stage(fine, fine, config, False), Stage(middle, middle, config, True)])
        self.shrink = nn.ModuleList(
            [nn.Conv2d(fine, middle, 3, stride=2, padding=1), nn.Conv2d(middle, coarse, 3, stride=2, padding=1)]
        )
        self.middle = Stage(coarse, coarse, config, True)
        self.middle_resnet = ResNetBlock(coarse, coarse, config.time_width)
        self.grow = nn.ModuleList([nn.Conv2d(coarse, middle, 1), nn.Conv2d(middle, fine, 1)])
        self.up = nn.ModuleList([Stage(2 * middle, middle, config, True), Stage(2 * fine, fine, config, False)])
        self.up_resnet = ResNetBlock(fine, fine, config.time_width)
        self.norm_out = nn.GroupNorm(8, fine)
        self.conv_out = nn.Conv2d(fine, config.latent_channels, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def read_text(self, text: PromptBatch) -> PromptBatch:
        """The same prompts with the keys and values of every cross-attention, in the order in which they run."""
        return text._replace(keys_values=self._keys_values(text))

    def _keys_values(self, text: PromptBatch) -> tuple[KeysValues, ...]:
        stages = [stage for stage in (*self.down, self.middle, *self.up) if isinstance(stage, Stage)]
        return tuple(stage.cross_attention.keys_values(text.states) for stage in stages)

    def add_positions(self, x: Float[Tensor, "b c h w"], level: int) -> Float[Tensor, "b c h w"]:
        """`x` plus the position embedding of a level, which is interpolated where the picture has not the trained size."""
        position = self.positions[level]
        if position.shape[-2:] != x.shape[-2:]:
            position = F.interpolate(position.float(), x.shape[-2:], mode="bilinear").to(x.dtype)
        return x + position

    def forward(
        self, latents: Float[Tensor, "b c_in h w"], time: Float[Tensor, " b"], text: PromptBatch
    ) -> Float[Tensor, "b c h w"]:
        """Velocity (noise minus picture, latent units) at each cell; `time` is 1 at noise, 0 at the picture."""
        keys_values = text.keys_values or self._keys_values(text)
        mask = text.mask[:, None, None, :]
        time = self.time(time_features(time, self.config.time_width).to(latents.dtype))
        x = self.add_positions(self.conv_in(latents), 0)
        skips = []
        for level, (stage, shrink) in enumerate(zip(self.down, self.shrink)):
            x = stage(x, time, keys_values[level], mask)
            skips.append(x)
            x = self.add_positions(shrink(x), level + 1)
        x = self.middle_resnet(self.middle(x, time, keys_values[2], mask), time)
        for level, (grow, stage) in enumerate(zip(self.grow, self.up)):
            x = F.interpolate(grow(x), scale_factor=2, mode="nearest")
            x = stage(torch.cat([x, skips.pop()], dim=1), time, keys_values[3 + level], mask)
        x = self.up_resnet(x, time)
        return self.conv_out(F.silu(self.norm_out(x)))
