"""FLUX.2 and FLUX.2 Klein: text and image in one sequence, the text first, packed as in FLUX.1.

Text: a language model reads the prompt in its chat template; states of three of its layers are joined feature by
feature. FLUX.2 has Mistral, with a system message, and padding before the text; Klein has Qwen3. Padding is attended to.
`encode_prompt` is called for the prompt; Klein calls it again for the negative prompt, which is always empty.
Image: as in FLUX.1.
"""

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.diffusers_family import PICTURE_ONLY, diffusers_family
from toushi.probe.pipelines.families.flux import PACKED, states_of
from toushi.probe.pipelines.family import EncodePromptCall
from toushi.probe.pipelines.prompt_templates import PROMPT_MARK, qwen3_template, split_template
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_two_calls

CHECK = require_sdpa_processors("Flux2AttnProcessor", "Flux2ParallelSelfAttnProcessor")


def mistral_template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
    """The pipeline's system message, and the prompt as the user's message."""
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("system", call.model.system_message), ("user", PROMPT_MARK))
    ]
    return split_template(
        call.model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    )


FLUX_2 = diffusers_family(
    "flux-2",
    "Flux2Pipeline",
    image_optional=("Flux2Pipeline",),
    **prompts_in_two_calls([PromptPart(template=mistral_template)], states_of),
    embeddings="text_encoder.model.language_model.embed_tokens",
    layers="text_encoder.model.language_model.layers",
    check=CHECK,
    unrecorded_attention={"text_encoder.model.vision_tower.*": PICTURE_ONLY},
    **PACKED,
)

FLUX_2_KLEIN = diffusers_family(
    "flux-2-klein",
    "Flux2KleinPipeline",
    "Flux2KleinInpaintPipeline",
    image_optional=("Flux2KleinPipeline",),
    **prompts_in_two_calls([PromptPart(template=qwen3_template(thinking=False))], states_of),
    embeddings="text_encoder.model.embed_tokens",
    layers="text_encoder.model.layers",
    check=CHECK,
    **PACKED,
)
