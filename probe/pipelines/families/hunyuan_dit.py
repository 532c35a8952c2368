"""HunyuanDiT: a transformer whose `attn2` layers attend from the image to two texts, one behind the other.

Text: BERT reads Chinese, T5 reads both languages. `encode_prompt` is called for BERT, then for T5, and each call
returns the prompt and the negative prompt. BERT's 77 columns come first, then T5's 256. Masked positions have a learned
vector that is attended to, so every position is a column.
Image: the latents are cut into patches; each patch is a query. All keys are text.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.denoiser_inputs import PatchPipeline, patch_grid, patch_pixels
from toushi.probe.pipelines.diffusers_family import SECOND_ENCODER, diffusers_family
from toushi.probe.pipelines.family import Arguments, DenoiserInputs, EncodedPrompt, EncodePromptCall
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_one_call, unmasked_states

BERT_COLUMNS, T5_COLUMNS = 77, 256  # the call has no argument for either

BERT = prompts_in_one_call([PromptPart()], unmasked_states)
T5 = prompts_in_one_call([PromptPart(("text_encoder_2",))], unmasked_states)


def read_inputs(pipeline: PatchPipeline, inputs: Arguments) -> DenoiserInputs:
    """The columns of BERT, then those of T5."""
    texts = inputs["encoder_hidden_states"], inputs["encoder_hidden_states_t5"]
    grid = patch_grid(pipeline, inputs["hidden_states"])
    return DenoiserInputs(grid, texts, lambda: [concat_states(*both) for both in zip(*texts)])


def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
    """The call for BERT gives its columns; the later call for T5 adds the others."""
    if call.arguments.get("text_encoder_index", 0) == 0:
        return BERT["encoded_prompts"](call)
    return {
        branch: [concat_prompts(*both) for both in zip(call.earlier[branch], prompts)]
        if branch in call.earlier
        else prompts
        for branch, prompts in T5["encoded_prompts"](call).items()
    }


def concat_prompts(first: EncodedPrompt, second: EncodedPrompt) -> EncodedPrompt:
    """The columns of the first prompt, then those of the second."""
    width = sum(token.column is not None for token in first.tokens)
    moved = [t if t.column is None else replace(t, column=t.column + width) for t in second.tokens]
    cut = None if first.cut is None or second.cut is None else max(first.cut, second.cut)  # what neither encoder reads
    states = concat_states(first.states, second.states)
    return EncodedPrompt(first.prompt, first.ids, (*first.tokens, *moved), states, cut)


def concat_states(first: Tensor, second: Tensor) -> Tensor:
    """States [column, feature] of two encoders, one behind the other, both as wide as the wider one (with zeros)."""
    width = max(first.shape[-1], second.shape[-1])
    return torch.cat([F.pad(states, (0, width - states.shape[-1])) for states in (first, second.to(first))])


HUNYUAN_DIT = diffusers_family(
    "hunyuan-dit",
    "HunyuanDiTPipeline",
    "HunyuanDiTControlNetPipeline",
    text_encoders=("text_encoder", "text_encoder_2"),
    encoded_prompts=encoded_prompts,
    tokens_of_encoder_call=BERT["tokens_of_encoder_call"],
    embeddings="text_encoder.embeddings",
    layers="text_encoder.encoder.layer",
    layer_attention="attention.self",
    denoiser_inputs=("hidden_states", "encoder_hidden_states", "encoder_hidden_states_t5"),
    read_inputs=read_inputs,
    cross_attention=("transformer.blocks.*.attn2",),
    self_attention=("transformer.blocks.*.attn1",),
    check=require_sdpa_processors("HunyuanAttnProcessor2_0", "FusedHunyuanAttnProcessor2_0"),
    unrecorded_attention={
        "text_encoder_2.*": SECOND_ENCODER,
        "transformer.time_extra_emb.*": "it makes one vector of a text and does not read the image",
    },
    cell_pixels=patch_pixels,
    text_columns=lambda pipeline, tokens: BERT_COLUMNS + T5_COLUMNS,
)
