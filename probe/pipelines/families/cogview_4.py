"""CogView4: text and image in one sequence, the text first.

Text: one GLM-4 encoder, which reads Chinese and English. Padding comes before the text, up to a multiple of 16; the
encoder gets no mask, and padding is attended to. `encode_prompt` returns both branches.
Image: the latents are cut into patches of 2 x 2; each patch is a query and a key.
"""

from itertools import takewhile

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.denoiser_inputs import patch_pixels, patches_behind_text
from toushi.probe.pipelines.diffusers_family import diffusers_family
from toushi.probe.pipelines.family import EncodePromptCall, EncoderInputs
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_one_call, round_up, unmasked_states

BLOCK = 16  # the text is padded to a multiple of it


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


COGVIEW_4 = diffusers_family(
    "cogview-4",
    "CogView4Pipeline",
    **prompts_in_one_call([PromptPart()], unmasked_states, as_read=with_masks),
    branch_order=("cond", "uncond"),
    embeddings="text_encoder.embed_tokens",
    layers="text_encoder.layers",
    read_inputs=patches_behind_text,
    cross_attention=("transformer.transformer_blocks.*.attn1",),
    joint=True,
    check=require_sdpa_processors("CogView4AttnProcessor"),
    cell_pixels=patch_pixels,
    text_columns=lambda pipeline, tokens: round_up(tokens, BLOCK),
)
