"""Denoiser inputs that several families share: latents in patches, and cross-attention to text with a mask."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from toushi.probe.pipelines.family import DenoiserInputs
from toushi.probe.pipelines.prompt_tokens import real_columns


def patch_grid(pipeline, latents: Tensor) -> tuple[int, int]:
    """Rows and columns of the image cells when latents [row, channel, y, x] are cut into patches."""
    patch = pipeline.transformer.config.patch_size
    return latents.shape[-2] // patch, latents.shape[-1] // patch


def patch_pixels(pipeline) -> int:
    """Pixels along one side of a patch."""
    return pipeline.vae_scale_factor * pipeline.transformer.config.patch_size


def masked_cross_attention(pipeline, inputs: Mapping[str, Any]) -> DenoiserInputs:
    """Patches attend to `encoder_hidden_states`; `encoder_attention_mask` is 0 at padding, which comes last."""
    text, mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
    key = (text,) if mask is None else (text, mask)
    return DenoiserInputs(patch_grid(pipeline, inputs["hidden_states"]), key, lambda: real_columns(text, mask))
