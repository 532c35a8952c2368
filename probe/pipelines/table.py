"""The table: a row for each family of diffusers' text-to-image pipelines, as diffusers 0.42 runs them.

Nothing here imports diffusers: a pipeline is known by the name of its class. A row says which modules attend, where
the text lies (`scenes`), whose tokens it is made of (`texts`), and in which processors it can be read (`readable`).
To add a family, add a row, and a tiny pipeline to tests/pipelines/tiny.py.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from toushi.probe.pipelines import denoiser_inputs as scenes
from toushi.probe.pipelines import outputs as drawn
from toushi.probe.pipelines import prompt_tokens as texts
from toushi.probe.pipelines.attention_processors import readable
from toushi.probe.pipelines.family import Family
from toushi.probe.pipelines.prompt_tokens import BLOCK, Part, in_one_call, in_two_calls, masked, unbound, with_masks


def _class_is(*names: str) -> Callable[[Any], bool]:
    def matches(model) -> bool:
        return any(one.__name__ in names and one.__module__.startswith("diffusers.") for one in type(model).__mro__)

    return matches


def _row(name: str, *classes: str, **own) -> Family:
    """What all pipelines have in common, and a family's own."""
    common: dict[str, Any] = {
        "encode_prompt": "encode_prompt",
        "sample": "__call__",
        "evaluate": None,
        "scheduler": "scheduler",
        "denoiser": "transformer",
        "denoiser_inputs": ("hidden_states", "encoder_hidden_states"),
        "self_attention": (),
        "branch_order": ("uncond", "cond"),
        "text_encoder": "text_encoder",
        "input_ids": "input_ids",
        "embeddings": "",
        "layers": None,
        "layer_attention": "self_attn",
        "step": drawn.step,
        "timesteps": lambda scheduler: [*scheduler.timesteps.tolist(), 0.0],
        "evaluation_step": None,
        "cell_pixels": lambda pipeline: pipeline.vae_scale_factor * 2,
        "blank_latents": None,
        "images": drawn.pictures,
        "metadata": drawn.about,
        "text_encoders": ("text_encoder",),
        "timesteps_method": "get_timesteps",
        "step_index": drawn.place,
    }
    own["unrecorded"] = {**OUTSIDE, **own.get("unrecorded", {})}
    return Family(name=name, matches=_class_is(*classes), **{**common, **own})


PICTURE = "looks at the finished picture"
OUTSIDE = {  # attention that no row records
    "vae.*": "draws the picture from the latents; no text is there",
    "controlnet.*": "the control network looks at the text, too, but only the denoiser is recorded",
    "safety_checker.*": PICTURE,
    "image_encoder.*": PICTURE,
}
SECOND = "a trace holds the attention of one text encoder; of this one it has the tokens alone"

CLIP = {"embeddings": "text_encoder.embeddings", "layers": "text_encoder.encoder.layers"}
QWEN = {"embeddings": "text_encoder.embed_tokens", "layers": "text_encoder.layers"}


def _t5(encoder: str) -> dict[str, str]:
    layers = f"{encoder}.encoder.block"
    return {
        "embeddings": f"{encoder}.encoder.embed_tokens",
        "layers": layers,
        "layer_attention": "layer.0.SelfAttention",
    }


# --- U-Nets: cross-attention, all keys are text ---

UNET: dict[str, Any] = {
    "denoiser": "unet",
    "denoiser_inputs": ("sample", "encoder_hidden_states"),
    "cross_attention": ("unet.*.attn2",),
    "self_attention": ("unet.*.attn1",),
    "read_inputs": scenes.unet,
    "check": readable("AttnProcessor2_0", "FusedAttnProcessor2_0"),
    "cell_pixels": lambda pipeline: pipeline.vae_scale_factor,
}

STABLE_DIFFUSION = _row(
    "stable-diffusion",
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    **in_one_call([Part()], unbound),
    **UNET,
    **CLIP,
)

SDXL = _row(
    "stable-diffusion-xl",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
    text_encoders=("text_encoder", "text_encoder_2"),
    **in_one_call([Part(("text_encoder", "text_encoder_2"))], unbound),
    unrecorded={"text_encoder_2.*": SECOND},
    **UNET,
    **CLIP,
)

KOLORS = _row(
    "kolors",
    "KolorsPipeline",
    "KolorsImg2ImgPipeline",
    **in_one_call([Part()], unbound),
    embeddings="text_encoder.embedding",
    layers="text_encoder.encoder.layers",
    layer_attention="self_attention.core_attention",
    sequence_first=True,
    **UNET,
)

# --- transformers with cross-attention ---

CROSS: dict[str, Any] = {
    "denoiser_inputs": ("hidden_states", "encoder_hidden_states", "encoder_attention_mask"),
    "cross_attention": ("transformer.transformer_blocks.*.attn2",),
    "read_inputs": scenes.patched,
    "cell_pixels": lambda pipeline: pipeline.vae_scale_factor * pipeline.transformer.config.patch_size,
}

PIXART = _row(
    "pixart",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    **in_one_call([Part(kept="real")], with_masks),
    self_attention=("transformer.transformer_blocks.*.attn1",),
    check=readable("AttnProcessor2_0", "FusedAttnProcessor2_0"),
    **CROSS,
    **_t5("text_encoder"),
)

SANA = _row(
    "sana",
    "SanaPipeline",
    "SanaControlNetPipeline",
    **in_one_call([Part(chosen=texts.sana_chosen, kept="real", template=texts.sana_template)], with_masks),
    check=readable("SanaAttnProcessor2_0"),
    unrecorded={"transformer.*.attn1": "linear attention: it has no softmax, so there are no probabilities"},
    **CROSS,
    **QWEN,
)

HUNYUAN_DIT = _row(
    "hunyuan-dit",
    "HunyuanDiTPipeline",
    "HunyuanDiTControlNetPipeline",
    text_encoders=("text_encoder", "text_encoder_2"),
    encoded_prompts=texts.hunyuan,
    tokens_of_run=texts.FIRST["tokens_of_run"],
    unrecorded={
        "text_encoder_2.*": SECOND,
        "transformer.time_extra_emb.*": "makes one vector of a text; no image is there",
    },
    embeddings="text_encoder.embeddings",
    layers="text_encoder.encoder.layer",
    layer_attention="attention.self",
    **{
        **CROSS,
        "denoiser_inputs": ("hidden_states", "encoder_hidden_states", "encoder_hidden_states_t5"),
        "cross_attention": ("transformer.blocks.*.attn2",),
        "self_attention": ("transformer.blocks.*.attn1",),
        "read_inputs": scenes.hunyuan,
        "check": readable("HunyuanAttnProcessor2_0", "FusedHunyuanAttnProcessor2_0"),
    },
)

# --- transformers with text and image in one sequence: image first ---

SD3 = _row(
    "stable-diffusion-3",
    "StableDiffusion3Pipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3InpaintPipeline",
    "StableDiffusion3ControlNetPipeline",
    "StableDiffusion3ControlNetInpaintingPipeline",
    text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
    **in_one_call(
        [Part(("text_encoder", "text_encoder_2")), Part(("text_encoder_3",), ("prompt_3", "prompt"))], unbound
    ),
    cross_attention=("transformer.transformer_blocks.*.attn",),
    self_attention=("transformer.transformer_blocks.*.attn2",),  # of SD 3.5 medium
    read_inputs=scenes.sd3,
    check=readable("JointAttnProcessor2_0", "FusedJointAttnProcessor2_0"),
    cell_pixels=lambda pipeline: pipeline.vae_scale_factor * pipeline.transformer.config.patch_size,
    unrecorded={"text_encoder_2.*": SECOND, "text_encoder_3.*": SECOND},
    embeddings="text_encoder.text_model.embeddings",
    layers="text_encoder.text_model.encoder.layers",
)

REFINERS = {
    "transformer.noise_refiner.*": "the image among itself, before it meets the text",
    "transformer.context_refiner.*": "the text among itself, before it meets the image",
}

Z_IMAGE = _row(
    "z-image",
    "ZImagePipeline",
    "ZImageImg2ImgPipeline",
    "ZImageInpaintPipeline",
    "ZImageControlNetPipeline",
    "ZImageControlNetInpaintPipeline",
    denoiser_inputs=("x", "cap_feats"),
    branch_order=("cond", "uncond"),
    **in_one_call([Part(kept="real", template=texts.chat_template(thinking=True))], texts.z_image_states, BLOCK),
    cross_attention=("transformer.layers.*.attention",),
    read_inputs=scenes.z_image,
    given_prompts=texts.z_image_given,
    check=readable("ZSingleStreamAttnProcessor"),
    unrecorded=REFINERS,
    **QWEN,
)

OWN_Z_IMAGE = replace(
    Z_IMAGE,
    name="z-image, our own",
    matches=lambda model: getattr(model, "name", None) == "z-image",
    sample="sample",
    evaluate="denoise",
    denoiser_inputs=("latents", "texts"),
    **in_one_call(
        [Part(kept="real", template=texts.chat_template(thinking=True))],
        lambda call: tuple(None if one is None else list(one.states) for one in call.result),
        BLOCK,
    ),
    read_inputs=scenes.own,
    step=drawn.own_step,
    step_index=lambda scheduler, arguments, next: arguments.get("index"),
    timesteps=lambda scheduler: scheduler.times.tolist(),
    evaluation_step=drawn.own_evaluated,
    cell_pixels=lambda model: model.factor * 2,
    images=lambda result: result if isinstance(result, list) else [result],
    check=lambda model, sites: None,
    metadata=lambda model, arguments: {
        **{name: arguments.get(name) for name in ("guidance", "seed")},
        "sampler": type(model.scheduler).__name__,
    },
)

# --- text first ---

LUMINA_2 = _row(
    "lumina-2",
    "Lumina2Pipeline",
    "Lumina2Text2ImgPipeline",
    denoiser_inputs=("hidden_states", "encoder_hidden_states", "encoder_attention_mask"),
    branch_order=("cond", "uncond"),
    **in_one_call([Part(kept="real", template=texts.lumina_template)], with_masks),
    cross_attention=("transformer.layers.*.attn",),
    read_inputs=scenes.lumina,
    check=readable("Lumina2AttnProcessor2_0"),
    unrecorded=REFINERS,
    **QWEN,
)

BLOCKS = ("transformer.transformer_blocks.*.attn", "transformer.single_transformer_blocks.*.attn")
PACKED: dict[str, Any] = {
    "denoiser_inputs": ("hidden_states", "encoder_hidden_states", "img_ids"),
    "branch_order": ("cond", "uncond"),
    "cross_attention": BLOCKS,
    "read_inputs": scenes.flux,
    "unpack_latents": drawn.unpacked,
}

FLUX = _row(
    "flux",
    "FluxPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
    "FluxFillPipeline",
    "FluxKontextPipeline",
    "FluxControlPipeline",
    "FluxControlNetPipeline",
    "FluxControlNetImg2ImgPipeline",
    "FluxControlNetInpaintPipeline",
    text_encoders=("text_encoder_2",),
    text_encoder="text_encoder_2",
    **in_two_calls([Part(("text_encoder_2",), ("prompt_2", "prompt"))], lambda call: call.result[0].unbind()),
    check=readable("FluxAttnProcessor"),
    unrecorded={"text_encoder.*": "becomes one vector; no key of the denoiser's attention comes from it"},
    **PACKED,
    **_t5("text_encoder_2"),
)

FLUX_2_CHECK = readable("Flux2AttnProcessor", "Flux2ParallelSelfAttnProcessor")

FLUX_2 = _row(
    "flux-2",
    "Flux2Pipeline",
    **in_two_calls([Part(template=texts.mistral_template)], lambda call: call.result[0].unbind()),
    check=FLUX_2_CHECK,
    unrecorded={"text_encoder.model.vision_tower.*": PICTURE},
    embeddings="text_encoder.model.language_model.embed_tokens",
    layers="text_encoder.model.language_model.layers",
    **PACKED,
)

FLUX_2_KLEIN = _row(
    "flux-2-klein",
    "Flux2KleinPipeline",
    "Flux2KleinInpaintPipeline",
    **in_two_calls([Part(template=texts.chat_template(thinking=False))], lambda call: call.result[0].unbind()),
    check=FLUX_2_CHECK,
    embeddings="text_encoder.model.embed_tokens",
    layers="text_encoder.model.layers",
    **PACKED,
)

QWEN_IMAGE = _row(
    "qwen-image",
    "QwenImagePipeline",
    "QwenImageImg2ImgPipeline",
    "QwenImageInpaintPipeline",
    "QwenImageControlNetPipeline",
    **in_two_calls(
        [
            Part(
                chosen=lambda call, count: range(call.model.prompt_template_encode_start_idx, count),
                kept="real",
                template=texts.qwen_image_template,
            )
        ],
        lambda call: masked(*call.result),
    ),
    check=readable("QwenDoubleStreamAttnProcessor2_0"),
    unrecorded={"text_encoder.model.visual.*": PICTURE},
    embeddings="text_encoder.model.language_model.embed_tokens",
    layers="text_encoder.model.language_model.layers",
    **{
        **PACKED,
        "denoiser_inputs": ("hidden_states", "encoder_hidden_states", "encoder_hidden_states_mask", "img_shapes"),
        "cross_attention": BLOCKS[:1],
        "read_inputs": scenes.qwen_image,
    },
)

PIPELINES = (
    STABLE_DIFFUSION,
    SDXL,
    KOLORS,
    PIXART,
    SANA,
    HUNYUAN_DIT,
    SD3,
    Z_IMAGE,
    OWN_Z_IMAGE,
    LUMINA_2,
    FLUX,
    FLUX_2,
    FLUX_2_KLEIN,
    QWEN_IMAGE,
)
