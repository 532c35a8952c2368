"""ERNIE-Image: image and text in one sequence, the image first, with a mask.

Text: Mistral reads each prompt by itself, without a template, so the encoder is called once for each prompt.
`encode_prompt` is called for the prompts, and with guidance again for the negative prompts. The pipeline may rewrite
the prompt first; then the trace has what it was rewritten to. Only real tokens are attended to.
Image: the latents come in patches of 2 x 2; each patch is a query and a key.
"""

from torch import Tensor

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.denoiser_inputs import PatchPipeline, patch_grid, patch_pixels
from toushi.probe.pipelines.diffusers_family import PICTURE_ONLY, diffusers_family
from toushi.probe.pipelines.family import (
    Arguments,
    DenoiserInputs,
    EncodedPrompt,
    EncodePromptCall,
    EncoderInputs,
    JointSequence,
    PromptTokens,
)
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_two_calls
from toushi.probe.pipelines.tensor_values import read_once

ENCODER = "text_encoder"
PROMPTS = prompts_in_two_calls([PromptPart()], lambda call: call.result)
read_lengths = read_once(Tensor.tolist)


def read_inputs(pipeline: PatchPipeline, inputs: Arguments) -> DenoiserInputs:
    """The text begins behind the image cells; its padding is masked."""
    text, lengths = inputs["text_bth"], read_lengths(inputs["text_lens"])
    rows, columns = grid = patch_grid(pipeline, inputs["hidden_states"])
    joint = tuple(JointSequence(image=0, text=rows * columns, columns=length) for length in lengths)
    return DenoiserInputs(grid, (text,), lambda: [row[:length] for row, length in zip(text, lengths)], joint)


def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
    """As if the encoder had been called once for all prompts."""
    rows = [row for inputs in call.encoder_calls.get(ENCODER, ()) for row in inputs.ids]
    encoder_calls = {ENCODER: [EncoderInputs(rows, None)]} if rows else {}
    return PROMPTS["encoded_prompts"](call._replace(encoder_calls=encoder_calls))


def tokens_of_encoder_call(call: EncodePromptCall, index: int) -> tuple[str, list[PromptTokens]]:
    """Call number `index` of the encoder reads prompt number `index`."""
    prompts = call.arguments["prompt"]
    prompt = prompts if isinstance(prompts, str) else prompts[index]
    one = {ENCODER: [call.encoder_calls[ENCODER][index]]}
    call = call._replace(arguments={**call.arguments, "prompt": prompt}, encoder_calls=one)
    return PROMPTS["tokens_of_encoder_call"](call, 0)


def unpack_latents(latents: Tensor, grid: tuple[int, int]) -> Tensor:
    """Latents [row, 4 * channel, y, x], packed 2 x 2, as [row, channel, y, x]."""
    return latents.unflatten(1, (-1, 2, 2)).permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)


ERNIE_IMAGE = diffusers_family(
    "ernie-image",
    "ErnieImagePipeline",
    encoded_prompts=encoded_prompts,
    tokens_of_encoder_call=tokens_of_encoder_call,
    embeddings="text_encoder.language_model.embed_tokens",
    layers="text_encoder.language_model.layers",
    denoiser_inputs=("hidden_states", "text_bth", "text_lens"),
    read_inputs=read_inputs,
    cross_attention=("transformer.layers.*.self_attention",),
    joint=True,
    check=require_sdpa_processors("ErnieImageSingleStreamAttnProcessor"),
    unpack_latents=unpack_latents,
    cell_pixels=patch_pixels,
    unrecorded_attention={
        "text_encoder.vision_tower.*": PICTURE_ONLY,
        "pe.*": "it rewrites the prompt, before the text encoder reads it",
    },
    text_columns=lambda pipeline, tokens: tokens,
)
