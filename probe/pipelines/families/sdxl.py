"""Stable Diffusion XL: the U-Net of Stable Diffusion, with the states of two CLIP encoders side by side.

Text: `text_encoder` and `text_encoder_2` read the same 77 tokens, and their states are joined feature by feature. The
ids of the first encoder label the columns; its attention is recorded, that of the second is not.
Image: as in Stable Diffusion.
"""

from toushi.probe.pipelines.diffusers_family import SECOND_ENCODER, diffusers_family
from toushi.probe.pipelines.families.stable_diffusion import CLIP, UNET
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_one_call, unmasked_states

SDXL = diffusers_family(
    "stable-diffusion-xl",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
    "StableDiffusionXLAdapterPipeline",
    text_encoders=("text_encoder", "text_encoder_2"),
    **prompts_in_one_call([PromptPart(("text_encoder", "text_encoder_2"))], unmasked_states),
    unrecorded_attention={"text_encoder_2.*": SECOND_ENCODER},
    **UNET,
    **CLIP,
)
