"""InstructPix2Pix: Stable Diffusion that follows an instruction about a picture, whose latents lie beside its own.

Text: as in Stable Diffusion; `_encode_prompt` returns the states of all rows, for each picture and branch.
Branches: with guidance the U-Net evaluates the text with the picture (`cond`), the picture without the text (`image`),
and neither of them (`uncond`). `image` and `uncond` have the negative prompt, so their place tells them apart.
"""

from typing import Any, Protocol

from torch import Tensor

from toushi.probe.pipelines.diffusers_family import diffusers_family
from toushi.probe.pipelines.families.stable_diffusion import CLIP, UNET, read_unet_inputs
from toushi.probe.pipelines.family import Arguments, DenoiserInputs, EncodedPrompt, EncodePromptCall
from toushi.probe.pipelines.prompt_tokens import BranchStates, PromptPart, prompts_in_one_call

ROWS = ("cond", "image", "uncond")  # in this order in a batch


class GuidedPipeline(Protocol):
    do_classifier_free_guidance: bool


def states_of(call: EncodePromptCall) -> BranchStates:
    rows: list[Tensor] = list(call.result.unbind())
    if not call.arguments["do_classifier_free_guidance"]:
        return rows, None
    pictures = len(rows) // len(ROWS)
    return rows[:pictures], rows[pictures : 2 * pictures]


PROMPTS = prompts_in_one_call([PromptPart()], states_of)


def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
    prompts = PROMPTS["encoded_prompts"](call)
    return prompts | {"image": prompts["uncond"]} if "uncond" in prompts else prompts


def read_inputs(pipeline: GuidedPipeline, inputs: Arguments) -> DenoiserInputs:
    read = read_unet_inputs(pipeline, inputs)
    (text,) = read.text_tensors
    names = ROWS if pipeline.do_classifier_free_guidance else ("cond",)
    return read._replace(branches=tuple(name for name in names for _ in range(len(text) // len(names))))


FIELDS: dict[str, Any] = {**UNET, "read_inputs": read_inputs}

INSTRUCT_PIX2PIX = diffusers_family(
    "instruct-pix2pix",
    "StableDiffusionInstructPix2PixPipeline",
    encode_prompt="_encode_prompt",
    encoded_prompts=encoded_prompts,
    tokens_of_encoder_call=PROMPTS["tokens_of_encoder_call"],
    branches=ROWS,
    **FIELDS,
    **CLIP,
)
