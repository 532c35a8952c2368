"""Stable Diffusion 1 and 2: a U-Net whose `attn2` layers attend from the image to the text, and `attn1` to the image.

Text: one CLIP encoder. `encode_prompt` encodes the prompt, then the negative prompt, and returns the states of both.
Every state is a key, padding too, so the columns are the positions of the encoder: 77 of them.
Image: every cell of the latents is a query, on the latents' own grid and on coarser ones. All keys are text.
"""

from typing import Any

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.diffusers_family import PICTURE_ONLY, EncoderPaths, diffusers_family
from toushi.probe.pipelines.family import Arguments, DenoiserInputs
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_one_call, unmasked_states


def read_unet_inputs(pipeline: object, inputs: Arguments) -> DenoiserInputs:
    """The grid is that of the latents; every text state is a key."""
    latents, text = inputs["sample"], inputs["encoder_hidden_states"]
    return DenoiserInputs((latents.shape[-2], latents.shape[-1]), (text,), lambda: list(text.unbind()))


UNET: dict[str, Any] = {  # fields of SDXL and Kolors, too
    "denoiser": "unet",
    "denoiser_inputs": ("sample", "encoder_hidden_states"),
    "read_inputs": read_unet_inputs,
    "cross_attention": ("unet.*.attn2",),
    "self_attention": ("unet.*.attn1",),
    "check": require_sdpa_processors("AttnProcessor2_0", "FusedAttnProcessor2_0"),
    "cell_pixels": lambda pipeline: pipeline.vae_scale_factor,
}
CLIP: EncoderPaths = {"embeddings": "text_encoder.embeddings", "layers": "text_encoder.encoder.layers"}

STABLE_DIFFUSION = diffusers_family(
    "stable-diffusion",
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionAdapterPipeline",
    "StableDiffusionDepth2ImgPipeline",
    "StableUnCLIPPipeline",
    "StableUnCLIPImg2ImgPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
    unrecorded_attention={
        "depth_estimator.*": PICTURE_ONLY,
        "prior.*": "it makes the embedding of a picture from the prompt, before the denoiser runs",
        "prior_text_encoder.*": "only the prior reads its states",
    },
    **prompts_in_one_call([PromptPart()], unmasked_states),
    **UNET,
    **CLIP,
)
