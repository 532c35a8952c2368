"""HunyuanImage 2.1: image and text in one sequence, the image first, with a mask.

Text: Qwen2.5-VL reads the prompt in a template of the pipeline; the columns are the real tokens behind the system
message. What the prompt has in quotation marks is also read by ByT5, byte by byte, as glyphs to draw: its columns come
before the others and are no part of the prompt's words. `encode_prompt` is called for the prompt, and with guidance again
for the negative prompt. In the refiner the text attends to itself, before the image attends to it.
Image: every cell of the latents (of patches, if the model has them) is a query and a key.
"""

from dataclasses import replace
from typing import Protocol

from torch import Tensor

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.diffusers_family import PICTURE_ONLY, SECOND_ENCODER, diffusers_family
from toushi.probe.pipelines.families.hunyuan_dit import concat_states
from toushi.probe.pipelines.families.qwen_image import column_positions, template
from toushi.probe.pipelines.family import Arguments, DenoiserInputs, EncodedPrompt, EncodePromptCall, JointSequence
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_two_calls
from toushi.probe.pipelines.tensor_values import mask_lengths, real_columns
from toushi.probe.text.alignment import Token

PROMPTS = prompts_in_two_calls(
    [PromptPart(column_positions=column_positions, skip_padding=True, template=template)],
    lambda call: real_columns(call.result[0], call.result[1]),
)


class TupleConfig(Protocol):
    patch_size: tuple[int, int]


class TupleTransformer(Protocol):
    config: TupleConfig


class TuplePipeline(Protocol):
    """A pipeline whose patches have two sizes."""

    transformer: TupleTransformer
    vae_scale_factor: int


def joined_states(text: Tensor, mask: Tensor, glyphs: Tensor | None, glyph_mask: Tensor | None) -> list[Tensor]:
    """Of each row the glyphs' states, then the text's, without padding."""
    rows = real_columns(text, mask)
    if glyphs is None or glyph_mask is None:
        return rows
    before = real_columns(glyphs, glyph_mask)
    return [concat_states(first, row) if len(first) else row for first, row in zip(before, rows)]


def read_inputs(pipeline: TuplePipeline, inputs: Arguments) -> DenoiserInputs:
    """The text begins behind the image cells; its padding is masked."""
    text, mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
    glyphs, glyph_mask = inputs["encoder_hidden_states_2"], inputs["encoder_attention_mask_2"]
    height, width = inputs["hidden_states"].shape[-2:]
    grid = height // pipeline.transformer.config.patch_size[0], width // pipeline.transformer.config.patch_size[1]
    counts = [0] * len(text) if glyph_mask is None else mask_lengths(glyph_mask)
    joint = tuple(
        JointSequence(image=0, text=grid[0] * grid[1], columns=count + length)
        for count, length in zip(counts, mask_lengths(mask))
    )
    tensors = tuple(tensor for tensor in (text, mask, glyphs, glyph_mask) if tensor is not None)
    return DenoiserInputs(grid, tensors, lambda: joined_states(text, mask, glyphs, glyph_mask), joint)


def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
    """The prompts, each with the glyphs' columns before its own."""
    _, _, glyphs, glyph_mask = call.result
    return {
        branch: [add_glyphs(prompt, states) for prompt, states in zip(prompts, real_columns(glyphs, glyph_mask))]
        for branch, prompts in PROMPTS["encoded_prompts"](call).items()
    }


def add_glyphs(prompt: EncodedPrompt, glyphs: Tensor) -> EncodedPrompt:
    """The prompt with these states [column, feature] before its own."""
    count = len(glyphs)
    if not count:
        return prompt
    encoder = ("text_encoder_2",)
    before = [Token(None, f"(glyph {i})", None, "template", encoder, i, i) for i in range(count)]
    moved = [token if token.column is None else replace(token, column=token.column + count) for token in prompt.tokens]
    return prompt._replace(tokens=(*before, *moved), states=concat_states(glyphs, prompt.states))


HUNYUAN_IMAGE = diffusers_family(
    "hunyuan-image",
    "HunyuanImagePipeline",
    encoded_prompts=encoded_prompts,
    tokens_of_encoder_call=PROMPTS["tokens_of_encoder_call"],
    branch_order=("cond", "uncond"),
    embeddings="text_encoder.model.language_model.embed_tokens",
    layers="text_encoder.model.language_model.layers",
    denoiser_inputs=(
        "hidden_states",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
    ),
    read_inputs=read_inputs,
    cross_attention=("transformer.transformer_blocks.*.attn", "transformer.single_transformer_blocks.*.attn"),
    joint=True,
    check=require_sdpa_processors("HunyuanImageAttnProcessor"),
    unrecorded_attention={
        "transformer.context_embedder.*": "the text attends to itself, before the image attends to it",
        "text_encoder_2.*": SECOND_ENCODER,
        "text_encoder.model.visual.*": PICTURE_ONLY,
    },
    cell_pixels=lambda pipeline: pipeline.vae_scale_factor * pipeline.transformer.config.patch_size[0],
    text_columns=lambda pipeline, tokens: tokens,
)
