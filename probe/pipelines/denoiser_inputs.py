"""Denoiser inputs that several families share: latents in patches, and cross-attention to text with a mask."""

from typing import Protocol

from torch import Tensor

from toushi.probe.pipelines.family import Arguments, DenoiserInputs, JointSequence
from toushi.probe.pipelines.tensor_values import real_columns


class PatchConfig(Protocol):
    patch_size: int


class PatchTransformer(Protocol):
    config: PatchConfig


class PatchPipeline(Protocol):
    """A pipeline whose denoiser cuts the latents into patches."""

    transformer: PatchTransformer
    vae_scale_factor: int


def patch_grid(pipeline: PatchPipeline, latents: Tensor) -> tuple[int, int]:
    """Rows and columns of the image cells if latents [row, channel, y, x] are cut into patches."""
    patch = pipeline.transformer.config.patch_size
    return latents.shape[-2] // patch, latents.shape[-1] // patch


def patch_pixels(pipeline: PatchPipeline) -> int:
    """Pixels along one side of a patch."""
    return pipeline.vae_scale_factor * pipeline.transformer.config.patch_size


def masked_cross_attention(pipeline: PatchPipeline, inputs: Arguments) -> DenoiserInputs:
    """Patches attend to `encoder_hidden_states`; `encoder_attention_mask` is 0 at padding, which is last."""
    text, mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
    text_tensors = (text,) if mask is None else (text, mask)
    return DenoiserInputs(patch_grid(pipeline, inputs["hidden_states"]), text_tensors, lambda: real_columns(text, mask))


def patches_behind_text(pipeline: PatchPipeline, inputs: Arguments, start: int = 0) -> DenoiserInputs:
    """One sequence: `start` positions that are neither, all of `encoder_hidden_states`, then the patches."""
    text = inputs["encoder_hidden_states"]
    layout = JointSequence(image=start + text.shape[1], text=start, columns=text.shape[1])
    grid = patch_grid(pipeline, inputs["hidden_states"])
    return DenoiserInputs(grid, (text,), lambda: list(text.unbind()), (layout,) * len(text))
