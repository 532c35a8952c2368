"""Kolors: the U-Net of SDXL, with ChatGLM for a text encoder.

Text: one ChatGLM encoder, whose states are [position, row, feature]. Padding comes before the tokens, and is attended
to; the columns are the 256 positions of the encoder.
Image: as in Stable Diffusion.
"""

from toushi.probe.pipelines.diffusers_family import diffusers_family
from toushi.probe.pipelines.families.stable_diffusion import UNET
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_one_call, unmasked_states

KOLORS = diffusers_family(
    "kolors",
    "KolorsPipeline",
    "KolorsImg2ImgPipeline",
    **prompts_in_one_call([PromptPart()], unmasked_states),
    embeddings="text_encoder.embedding",
    layers="text_encoder.encoder.layers",
    layer_attention="self_attention.core_attention",
    sequence_first=True,
    **UNET,
)
