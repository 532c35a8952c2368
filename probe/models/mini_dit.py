"""mini-dit: mini-unet with the denoiser of the released Z-Image in small, a single-stream diffusion Transformer.

Text encoder, tokenizer and VAE are mini-unet's, unchanged, so the two models differ in the denoiser alone. Weights are
trained by `python -m toushi.experiments.training.train_mini_dit`.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from toushi.probe.models.dit import PATCH, DiT, DiTConfig
from toushi.probe.models.mini_unet import MiniUNet, MiniUNetConfig
from toushi.probe.models.prompt_batch import PromptBatch

MINI_DIT = DiTConfig(
    in_channels=8, dim=160, n_layers=7, n_refiner_layers=1, n_heads=5, cap_feat_dim=128, axes_dims=(8, 12, 12),
    axes_lens=(256, 64, 64),
)  # fmt: skip


class MiniDiT(MiniUNet):
    """Sites are `transformer.layers.*.attention`: image and text in one sequence, the image first."""

    name = "mini-dit"

    def add_denoiser(self) -> None:
        assert self.config.dit is not None
        self.transformer = DiT(self.config.dit)
        for final_layer in self.transformer.all_final_layer.values():  # a new model predicts 0, as a new U-Net does
            nn.init.zeros_(final_layer.get_parameter("linear.weight"))
            nn.init.zeros_(final_layer.get_parameter("linear.bias"))

    @property
    def denoiser(self) -> nn.Module:
        return self.transformer

    @property
    def cell_pixels(self) -> int:
        """Pixels of an image token, each way."""
        return self.vae.factor * PATCH

    def read_text(self, text: PromptBatch) -> PromptBatch:
        return text

    def velocity(
        self, latents: Float[Tensor, "b c h w"], times: Float[Tensor, " b"], text: PromptBatch
    ) -> Float[Tensor, "b c h w"]:
        """As `MiniUNet.velocity`. The DiT counts time from noise to picture, and its velocity has the opposite sign."""
        return -self.transformer(latents, 1 - times, [states[mask] for states, mask in zip(text.states, text.mask)])

    @classmethod
    def tiny(cls, seed: int = 0, layers: int = 12) -> "MiniDiT":
        """The same design, narrow and untrained, for tests; layers counts the encoder's."""
        small = MiniUNet.tiny(seed, layers)
        dit = replace(
            MINI_DIT, dim=32, n_layers=2, n_heads=2, cap_feat_dim=small.config.text.width, axes_dims=(4, 6, 6)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(replace(small.config, dit=dit), small.tokenizer)
            for parameter in model.parameters():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.1)
        return model.eval().requires_grad_(False)


def new_mini_dit(base: MiniUNet) -> MiniDiT:
    """An untrained mini-dit around the text encoder, the tokenizer and the VAE of `base`."""
    config: MiniUNetConfig = replace(base.config, dit=MINI_DIT, heat_map=None, shares=None)
    model = MiniDiT(config, base.tokenizer)
    model.encoder.load_state_dict(base.encoder.state_dict())
    model.vae.load_state_dict(base.vae.state_dict())
    return model
