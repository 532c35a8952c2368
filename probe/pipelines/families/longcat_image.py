"""LongCat-Image: text and image in one sequence, the text first, packed as in FLUX.1.

Text: Qwen2.5-VL reads the prompt between the two parts of a template. The columns are the prompt and its padding, which
is attended to. What stands in quotation marks is read character by character. The pipeline may rewrite the prompt
first; then the trace has what it was rewritten to. `encode_prompt` is called again for the negative prompt.
Image: as in FLUX.1.
"""

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.diffusers_family import PICTURE_ONLY, diffusers_family
from toushi.probe.pipelines.families.flux import PACKED, states_of
from toushi.probe.pipelines.family import EncodePromptCall, EncoderInputs
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_two_calls


def token_count(call: EncodePromptCall, text: str) -> int:
    """Tokens of a part of the template."""
    return len(call.model.tokenizer(text, add_special_tokens=False).input_ids)


def without_suffix(call: EncodePromptCall) -> EncodePromptCall:
    """The call as if the encoder had not read what the template has behind the prompt and its padding.

    No column comes from there, and the prompt is cut before it.
    """
    end = -token_count(call, call.model.prompt_template_encode_suffix)
    encoder_calls = {
        name: [
            EncoderInputs([ids[:end] for ids in one.ids], None if one.mask is None else [row[:end] for row in one.mask])
            for one in calls
        ]
        for name, calls in call.encoder_calls.items()
    }
    return call._replace(encoder_calls=encoder_calls)


def column_positions(call: EncodePromptCall, count: int) -> range:
    """All positions behind the first part of the template."""
    return range(token_count(call, call.model.prompt_template_encode_prefix), count)


def template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
    return call.model.prompt_template_encode_prefix, ""


LONGCAT_IMAGE = diffusers_family(
    "longcat-image",
    "LongCatImagePipeline",
    **prompts_in_two_calls(
        [PromptPart(column_positions=column_positions, template=template)], states_of, as_read=without_suffix
    ),
    embeddings="text_encoder.model.language_model.embed_tokens",
    layers="text_encoder.model.language_model.layers",
    check=require_sdpa_processors("LongCatImageAttnProcessor"),
    unrecorded_attention={"text_encoder.model.visual.*": PICTURE_ONLY},
    text_columns=lambda pipeline, tokens: pipeline.tokenizer_max_length,
    **PACKED,
)
