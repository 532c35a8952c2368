"""Sana: linear attention inside the image, and `attn2` layers that attend to the text with a mask.

Text: one Gemma encoder. It reads instructions and then the prompt; the negative prompt has no instructions. Of its
positions the first and the last 299 become columns, and of these only real tokens.
Image: each cell of the latents is a query (patches of 1 x 1). All keys are text.
"""

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.denoiser_inputs import masked_cross_attention, patch_pixels
from toushi.probe.pipelines.diffusers_family import diffusers_family
from toushi.probe.pipelines.family import EncodePromptCall
from toushi.probe.pipelines.prompt_tokens import PromptPart, masked_states, prompts_in_one_call


def instructions(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
    """`complex_human_instruction`, which the pipeline puts before the prompt, and nothing behind it."""
    lines = call.arguments.get("complex_human_instruction")
    return ("\n".join(lines) if lines and not negative else "", "")


def column_positions(call: EncodePromptCall, count: int) -> list[int]:
    """The first position and the last ones, `max_sequence_length` in all."""
    length = call.arguments.get("max_sequence_length", 300)
    return [0, *range(count - length + 1, count)]


SANA = diffusers_family(
    "sana",
    "SanaPipeline",
    "SanaControlNetPipeline",
    **prompts_in_one_call(
        [PromptPart(column_positions=column_positions, skip_padding=True, template=instructions)], masked_states
    ),
    embeddings="text_encoder.embed_tokens",
    layers="text_encoder.layers",
    denoiser_inputs=("hidden_states", "encoder_hidden_states", "encoder_attention_mask"),
    read_inputs=masked_cross_attention,
    cross_attention=("transformer.transformer_blocks.*.attn2",),
    check=require_sdpa_processors("SanaAttnProcessor2_0"),
    unrecorded_attention={"transformer.*.attn1": "linear attention: it has no softmax, so there are no probabilities"},
    cell_pixels=patch_pixels,
)
