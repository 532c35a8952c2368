"""PixArt-α and PixArt-Σ: a transformer whose `attn2` layers attend from the image to the text, with a mask.

Text: one T5 encoder. `encode_prompt` returns states and mask of the prompt, then of the negative prompt. The mask keeps
padding out of the attention, so the columns are the real tokens alone.
Image: the latents are cut into patches of 2 x 2; each patch is a query. All keys are text.
"""

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.denoiser_inputs import masked_cross_attention, patch_pixels
from toushi.probe.pipelines.diffusers_family import diffusers_family, t5_encoder
from toushi.probe.pipelines.prompt_tokens import PromptPart, masked_states, prompts_in_one_call

PIXART = diffusers_family(
    "pixart",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    **prompts_in_one_call([PromptPart(skip_padding=True)], masked_states),
    **t5_encoder("text_encoder"),
    denoiser_inputs=("hidden_states", "encoder_hidden_states", "encoder_attention_mask"),
    read_inputs=masked_cross_attention,
    cross_attention=("transformer.transformer_blocks.*.attn2",),
    self_attention=("transformer.transformer_blocks.*.attn1",),
    check=require_sdpa_processors("AttnProcessor2_0", "FusedAttnProcessor2_0"),
    cell_pixels=patch_pixels,
    text_columns=lambda pipeline, tokens: tokens,
)
