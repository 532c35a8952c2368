"""AuraFlow: register tokens, text and image in one sequence, in this order.

Text: one UMT5 encoder. States of padding are set to zero and attended to, so the columns are all positions.
`encode_prompt` returns states and mask of the prompt, then of the negative prompt.
Image: the latents are cut into patches of 2 x 2; each patch is a query and a key. The registers, which the model
learned, are no text: attention to them is in `rest`.
"""

from functools import partial

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.denoiser_inputs import patch_pixels, patches_behind_text
from toushi.probe.pipelines.diffusers_family import diffusers_family, t5_encoder
from toushi.probe.pipelines.family import EncodePromptCall
from toushi.probe.pipelines.prompt_tokens import BranchStates, PromptPart, prompts_in_one_call, unmasked_states

REGISTERS = 8  # the model has no argument for their number


def states_of(call: EncodePromptCall) -> BranchStates:
    """All positions, padding too."""
    return unmasked_states(call._replace(result=call.result[::2]))


AURAFLOW = diffusers_family(
    "auraflow",
    "AuraFlowPipeline",
    **prompts_in_one_call([PromptPart()], states_of),
    **t5_encoder("text_encoder"),
    read_inputs=partial(patches_behind_text, start=REGISTERS),
    cross_attention=("transformer.joint_transformer_blocks.*.attn", "transformer.single_transformer_blocks.*.attn"),
    joint=True,
    check=require_sdpa_processors("AuraFlowAttnProcessor2_0", "FusedAuraFlowAttnProcessor2_0"),
    cell_pixels=patch_pixels,
)
