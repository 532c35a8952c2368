"""Pipelines as large as real ones, with random weights: time does not depend on what weights say.

They are given ready-made prompt embeddings, so that no text encoder is needed, and stop before the VAE. Of each there
is a small one too, whose steps take a few hundredths of a second.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import NamedTuple

import torch

from toushi.probe.pipelines.family import Model


class Shape(NamedTuple):
    pipeline: Model
    draw: Callable[[], object]
    """Draws one picture, without its VAE."""


def make_component(name: str, **arguments):
    """A component or pipeline of diffusers by the name of its class. Their annotations exclude None, which they take."""
    return getattr(import_module("diffusers"), name)(**arguments)


def small_vae(channels: int, levels: int):
    """A VAE of which only the factor matters."""
    return make_component(
        "AutoencoderKL",
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=[32] * levels,
        latent_channels=channels,
        norm_num_groups=8,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )


def make_shape(pipeline, pixels: int, steps: int, **inputs) -> Shape:
    """The pipeline with a `draw` that returns the latents of one seed."""
    pipeline.set_progress_bar_config(disable=True)
    inputs |= {"height": pixels, "width": pixels, "num_inference_steps": steps, "output_type": "latent"}
    return Shape(pipeline, lambda: pipeline(**inputs, generator=torch.Generator().manual_seed(0)).images)


def stable_diffusion(steps: int, channels=(96, 192, 384, 384), pixels: int = 512) -> Shape:
    """A Stable Diffusion 1.5 of 96 to 384 channels: 512 px, 77 tokens, 16 cross-attentions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = make_component(
            "UNet2DConditionModel",
            sample_size=64,
            block_out_channels=channels,
            cross_attention_dim=768,
            attention_head_dim=8,
        )
        vae = small_vae(4, 4)
        positive, negative = torch.randn(2, 1, 77, 768)
    pipeline = make_component(
        "StableDiffusionPipeline",
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet.eval(),
        scheduler=make_component("DDIMScheduler", steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return make_shape(
        pipeline, pixels, steps, prompt_embeds=positive, negative_prompt_embeds=negative, guidance_scale=5.0
    )


def z_image(steps: int, layers: int = 8, heads: int = 6, pixels: int = 512, tokens=(64, 64)) -> Shape:
    """A Z-Image of 8 joint layers, 768 wide, 6 heads of 128: 512 px, 64 tokens in either prompt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = make_component(
            "ZImageTransformer2DModel",
            dim=128 * heads,
            n_layers=layers,
            n_refiner_layers=2,
            n_heads=heads,
            n_kv_heads=heads,
            cap_feat_dim=768,
        )
        vae = small_vae(16, 4)
        positive, negative = (torch.randn(count, 768) for count in tokens)
    pipeline = make_component(
        "ZImagePipeline",
        scheduler=make_component("FlowMatchEulerDiscreteScheduler", shift=3.0),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
    )
    return make_shape(
        pipeline, pixels, steps, prompt_embeds=[positive], negative_prompt_embeds=[negative], guidance_scale=4.0
    )


SHAPES = {"stable-diffusion shape": stable_diffusion, "z-image shape": z_image}
SMALL = {
    "stable-diffusion, small": partial(stable_diffusion, channels=(32, 64, 64, 64), pixels=256),
    "z-image, small": partial(z_image, layers=3, heads=2, pixels=256),
    "z-image, small, prompts of 40 and 70 tokens": partial(z_image, layers=3, heads=2, pixels=256, tokens=(40, 70)),
}
