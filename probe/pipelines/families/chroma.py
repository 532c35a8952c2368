"""Chroma: FLUX.1's design without CLIP: text and image in one sequence, the text first.

Text: T5 reads the prompt; its states are the columns. A mask favours the tokens and the first padding behind them, but
adds to the scores only, so that all padding is attended to. `encode_prompt` returns both branches.
Image: as in FLUX.1.
"""

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.diffusers_family import diffusers_family, t5_encoder
from toushi.probe.pipelines.families.flux import PACKED
from toushi.probe.pipelines.family import EncodePromptCall
from toushi.probe.pipelines.prompt_tokens import BranchStates, PromptPart, prompts_in_one_call, unmasked_states


def states_of(call: EncodePromptCall) -> BranchStates:
    """`encode_prompt` returns states, ids and mask of the prompt, then those of the negative prompt."""
    return unmasked_states(call._replace(result=call.result[::3]))


CHROMA = diffusers_family(
    "chroma",
    "ChromaPipeline",
    "ChromaImg2ImgPipeline",
    **prompts_in_one_call([PromptPart()], states_of),
    **t5_encoder("text_encoder"),
    check=require_sdpa_processors("FluxAttnProcessor"),
    **PACKED,
)
