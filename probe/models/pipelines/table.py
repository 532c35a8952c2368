"""The table: a row for each family of diffusers' text-to-image pipelines, as diffusers 0.42 runs them.

Nothing here imports diffusers: a pipeline is known by the name of its class. A row says which modules attend, where
the text lies (`scenes`), whose tokens it is made of (`texts`), and in which processors it can be read (`readable`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from probe.models.families import Family
from probe.models.pipelines import drawn, scenes
from probe.models.pipelines.readable import readable
from probe.models.pipelines.texts import (
    BLOCK,
    Part,
    chat_template,
    in_one_call,
    in_two_calls,
    masked,
    pixart_states,
    qwen_image_template,
    unbound,
    z_image_given,
    z_image_states,
)


def _class_is(*names: str) -> Callable[[Any], bool]:
    def knows(model) -> bool:
        return any(one.__name__ in names and one.__module__.startswith("diffusers.") for one in type(model).__mro__)

    return knows


def _row(name: str, *classes: str, **own) -> Family:
    """What all pipelines have in common, and a family's own."""
    common: dict[str, Any] = {
        "encode_prompt": "encode_prompt",
        "sample": "__call__",
        "evaluate": None,
        "scheduler": "scheduler",
        "denoiser": "transformer",
        "inputs": ("hidden_states", "encoder_hidden_states"),
        "text": "encoder_hidden_states",
        "self_sites": (),
        "rows": ("uncond", "cond"),
        "encoder": "text_encoder",
        "ids": "input_ids",
        "embeddings": "",
        "layers": None,
        "attention": "self_attn",
        "text_rows": lambda text: list(text.unbind()),
        "step": drawn.step,
        "times": lambda scheduler: [*scheduler.timesteps.tolist(), 0.0],
        "evaluated": None,
        "factor": lambda pipeline: pipeline.vae_scale_factor * 2,
        "blank": None,
        "pictures": drawn.pictures,
        "about": drawn.about,
        "read": ("text_encoder",),
    }
    return Family(name=name, knows=_class_is(*classes), **{**common, **own})


CLIP = {"embeddings": "text_encoder.embeddings", "layers": "text_encoder.encoder.layers"}
UNET: dict[str, Any] = {
    "denoiser": "unet",
    "inputs": ("sample", "encoder_hidden_states"),
    "cross_sites": ("unet.*.attn2",),
    "self_sites": ("unet.*.attn1",),
    "scene": scenes.unet,
    "check": readable("AttnProcessor2_0", "FusedAttnProcessor2_0"),
    "factor": lambda pipeline: pipeline.vae_scale_factor,
}

STABLE_DIFFUSION = _row(
    "stable-diffusion",
    "StableDiffusionPipeline",
    texts=in_one_call([Part()], unbound),
    **UNET,
    **CLIP,
)

SDXL = _row(
    "stable-diffusion-xl",
    "StableDiffusionXLPipeline",
    read=("text_encoder", "text_encoder_2"),
    texts=in_one_call([Part(("text_encoder", "text_encoder_2"))], unbound),
    **UNET,
    **CLIP,
)

SD3 = _row(
    "stable-diffusion-3",
    "StableDiffusion3Pipeline",
    read=("text_encoder", "text_encoder_2", "text_encoder_3"),
    texts=in_one_call(
        [Part(("text_encoder", "text_encoder_2")), Part(("text_encoder_3",), ("prompt_3", "prompt"))], unbound
    ),
    cross_sites=("transformer.transformer_blocks.*.attn",),
    scene=scenes.sd3,
    check=readable("JointAttnProcessor2_0", "FusedJointAttnProcessor2_0"),
    factor=lambda pipeline: pipeline.vae_scale_factor * pipeline.patch_size,
    **CLIP,
)

FLUX = _row(
    "flux",
    "FluxPipeline",
    inputs=("hidden_states", "encoder_hidden_states", "img_ids"),
    rows=("cond", "uncond"),
    read=("text_encoder_2",),
    encoder="text_encoder_2",
    texts=in_two_calls([Part(("text_encoder_2",), ("prompt_2", "prompt"))], lambda said: said.result[0].unbind()),
    cross_sites=("transformer.transformer_blocks.*.attn", "transformer.single_transformer_blocks.*.attn"),
    scene=scenes.flux,
    check=readable("FluxAttnProcessor"),
    picture=drawn.unpacked,
)


FLUX2_KLEIN = _row(
    "flux-2-klein",
    "Flux2KleinPipeline",
    inputs=("hidden_states", "encoder_hidden_states", "img_ids"),
    rows=("cond", "uncond"),
    texts=in_two_calls([Part(template=chat_template(thinking=False))], lambda said: said.result[0].unbind()),
    cross_sites=("transformer.transformer_blocks.*.attn", "transformer.single_transformer_blocks.*.attn"),
    scene=scenes.flux,
    check=readable("Flux2AttnProcessor", "Flux2ParallelSelfAttnProcessor"),
    picture=drawn.unpacked,
    embeddings="text_encoder.model.embed_tokens",
    layers="text_encoder.model.layers",
)


Z_IMAGE = _row(
    "z-image",
    "ZImagePipeline",
    inputs=("x", "cap_feats"),
    text="cap_feats",
    rows=("cond", "uncond"),
    texts=in_one_call([Part(kept="real", template=chat_template(thinking=True))], z_image_states, BLOCK),
    cross_sites=("transformer.layers.*.attention",),
    scene=scenes.z_image,
    given=z_image_given,
    check=readable("ZSingleStreamAttnProcessor"),
    embeddings="text_encoder.embed_tokens",
    layers="text_encoder.layers",
)


OWN_Z_IMAGE = replace(
    Z_IMAGE,
    name="z-image, our own",
    knows=lambda model: getattr(model, "name", None) == "z-image",
    sample="sample",
    evaluate="denoise",
    inputs=("latents", "texts"),
    text="texts",
    text_rows=list,
    texts=in_one_call(
        [Part(kept="real", template=chat_template(thinking=True))],
        lambda said: tuple(None if one is None else list(one.states) for one in said.result),
        BLOCK,
    ),
    scene=scenes.own,
    step=drawn.own_step,
    times=lambda scheduler: scheduler.times.tolist(),
    evaluated=drawn.own_evaluated,
    factor=lambda model: model.factor * 2,
    pictures=lambda result: result if isinstance(result, list) else [result],
    check=lambda model, sites: None,
    about=lambda model, arguments: {
        **{name: arguments.get(name) for name in ("guidance", "seed")},
        "sampler": type(model.scheduler).__name__,
    },
)


PIXART = _row(
    "pixart",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    inputs=("hidden_states", "encoder_hidden_states", "encoder_attention_mask"),
    texts=in_one_call([Part(kept="real")], pixart_states),
    cross_sites=("transformer.transformer_blocks.*.attn2",),
    self_sites=("transformer.transformer_blocks.*.attn1",),
    scene=scenes.patched,
    check=readable("AttnProcessor2_0", "FusedAttnProcessor2_0"),
    factor=lambda pipeline: pipeline.vae_scale_factor * pipeline.transformer.config.patch_size,
)


QWEN_IMAGE = _row(
    "qwen-image",
    "QwenImagePipeline",
    inputs=("hidden_states", "encoder_hidden_states", "encoder_hidden_states_mask", "img_shapes"),
    rows=("cond", "uncond"),
    texts=in_two_calls(
        [
            Part(
                kept="real",
                dropped=lambda pipeline: pipeline.prompt_template_encode_start_idx,
                template=qwen_image_template,
            )
        ],
        lambda said: masked(*said.result),
    ),
    cross_sites=("transformer.transformer_blocks.*.attn",),
    scene=scenes.qwen_image,
    check=readable("QwenDoubleStreamAttnProcessor2_0"),
    picture=drawn.unpacked,
)

PIPELINES = (STABLE_DIFFUSION, SDXL, SD3, FLUX, Z_IMAGE, OWN_Z_IMAGE, PIXART, QWEN_IMAGE, FLUX2_KLEIN)
