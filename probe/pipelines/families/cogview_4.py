"""CogView4: text and image in one sequence, the text first.

Text: one GLM-4 encoder, which reads Chinese and English. Padding comes before the text, up to a multiple of 16; the
encoder gets no mask, and padding is attended to. `encode_prompt` returns both branches.
Image: the latents are cut into patches of 2 x 2; each patch is a query and a key.
"""

from itertools import takewhile

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.denoiser_inputs import PatchPipeline, patch_grid, patch_pixels
from toushi.probe.pipelines.diffusers_family import diffusers_family
from toushi.probe.pipelines.family import (
    Arguments,
    DenoiserInputs,
    EncodedPrompt,
    EncodePromptCall,
    EncoderInputs,
    JointSequence,
    PromptTokens,
)
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_one_call, round_up, unmasked_states

BLOCK = 16  # the text is padded to a multiple of it
PROMPTS = prompts_in_one_call([PromptPart()], unmasked_states)


def with_masks(call: EncodePromptCall) -> EncodePromptCall:
    """The call as if the encoder had got masks, which tell that the pads before the text are no text."""
    pad = call.model.tokenizer.pad_token_id

    def mask(ids: list[int]) -> list[int]:
        pads = len(list(takewhile(lambda id: id == pad, ids)))
        return [0] * pads + [1] * (len(ids) - pads)

    encoder_calls = {
        name: [EncoderInputs(inputs.ids, [mask(row) for row in inputs.ids]) for inputs in calls]
        for name, calls in call.encoder_calls.items()
    }
    return call._replace(encoder_calls=encoder_calls)


def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
    return PROMPTS["encoded_prompts"](with_masks(call))


def tokens_of_encoder_call(call: EncodePromptCall, index: int) -> tuple[str, list[PromptTokens]]:
    return PROMPTS["tokens_of_encoder_call"](with_masks(call), index)


def read_inputs(pipeline: PatchPipeline, inputs: Arguments) -> DenoiserInputs:
    """The image begins behind the text."""
    text = inputs["encoder_hidden_states"]
    layout = JointSequence(image=text.shape[1], text=0, columns=text.shape[1])
    grid = patch_grid(pipeline, inputs["hidden_states"])
    return DenoiserInputs(grid, (text,), lambda: list(text.unbind()), (layout,) * len(text))


COGVIEW_4 = diffusers_family(
    "cogview-4",
    "CogView4Pipeline",
    encoded_prompts=encoded_prompts,
    tokens_of_encoder_call=tokens_of_encoder_call,
    branch_order=("cond", "uncond"),
    embeddings="text_encoder.embed_tokens",
    layers="text_encoder.layers",
    read_inputs=read_inputs,
    cross_attention=("transformer.transformer_blocks.*.attn1",),
    joint=True,
    check=require_sdpa_processors("CogView4AttnProcessor"),
    cell_pixels=patch_pixels,
    text_columns=lambda pipeline, tokens: round_up(tokens, BLOCK),
)
