"""Ovis-Image: text and image in one sequence, the text first, packed as in FLUX.1.

Text: Qwen3 reads a system prompt and the prompt as one user's message in its chat template. The columns begin behind
the system prompt and have the padding, too, which is attended to. `encode_prompt` returns both branches.
Image: as in FLUX.1.
"""

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.diffusers_family import diffusers_family
from toushi.probe.pipelines.families.flux import PACKED
from toushi.probe.pipelines.family import EncodePromptCall
from toushi.probe.pipelines.prompt_templates import qwen3_template
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_one_call, unmasked_states

PROMPT_COLUMNS = 256  # the default of max_sequence_length


def template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
    """Qwen3's chat template, with the system prompt inside the user's message."""
    before, after = qwen3_template(thinking=False)(call, negative)
    return before + call.model.system_prompt, after


def column_positions(call: EncodePromptCall, count: int) -> range:
    """All positions behind the system prompt."""
    return range(call.model.user_prompt_begin_id, count)


OVIS_IMAGE = diffusers_family(
    "ovis-image",
    "OvisImagePipeline",
    **prompts_in_one_call([PromptPart(column_positions=column_positions, template=template)], unmasked_states),
    embeddings="text_encoder.embed_tokens",
    layers="text_encoder.layers",
    check=require_sdpa_processors("OvisImageAttnProcessor"),
    text_columns=lambda pipeline, tokens: PROMPT_COLUMNS,
    **PACKED,
)
