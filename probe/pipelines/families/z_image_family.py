"""Z-Image, in diffusers and in our own implementation: image and text in one sequence, the image first.

Text: Qwen3 reads the prompt as a user's message in its chat template. `encode_prompt` returns a list of states for the
prompts and one for the negative prompts. In the refiners the text attends to itself, before the image attends to it.
Image: the latents are cut into patches of 2 x 2; each patch is a query and a key. Image and text are each padded to a
multiple of 32 with learned vectors, which are attended to. All later layers attend to the whole sequence.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.diffusers_family import diffusers_family
from toushi.probe.pipelines.family import (
    Arguments,
    DenoiserInputs,
    EncodedPrompt,
    EncodePromptCall,
    JointSequence,
    SchedulerStep,
)
from toushi.probe.pipelines.prompt_templates import qwen3_template
from toushi.probe.pipelines.prompt_tokens import (
    BranchStates,
    PromptPart,
    numbered_tokens,
    prompts_in_one_call,
    round_up,
)

if TYPE_CHECKING:
    from toushi.probe.models.z_image import ZImage

BLOCK = 32  # image and text are padded to a multiple of it
PATCH = 2
TEMPLATE_TOKENS = 8  # of the chat template around the prompt

PARTS = [PromptPart(skip_padding=True, template=qwen3_template(thinking=True))]
REFINERS = {
    "transformer.noise_refiner.*": "the image attends to itself, before it attends to the text",
    "transformer.context_refiner.*": "the text attends to itself, before the image attends to it",
}


def read_inputs(pipeline: object, inputs: Arguments) -> DenoiserInputs:
    """The denoiser gets a list of latents and a list of texts, one for each row."""
    return joint_inputs(inputs["x"][0], inputs["cap_feats"])


def joint_inputs(latents: Tensor, text: list[Tensor]) -> DenoiserInputs:
    """From latents [channel, …, y, x] of one picture and the text [column, feature] of each row."""
    rows, columns = latents.shape[-2] // PATCH, latents.shape[-1] // PATCH
    cells = round_up(rows * columns, BLOCK)
    joint = tuple(JointSequence(image=0, text=cells, columns=round_up(len(states), BLOCK)) for states in text)
    return DenoiserInputs((rows, columns), tuple(text), lambda: list(text), joint)


def states_of(call: EncodePromptCall) -> BranchStates:
    """`encode_prompt` returns each prompt once; the pipeline repeats it for each of its pictures."""
    count = call.sample_arguments.get("num_images_per_prompt") or 1
    positive, negative = ([states for states in branch for _ in range(count)] for branch in call.result)
    return positive, negative


def prompts_from_arguments(arguments: Arguments) -> dict[str, list[EncodedPrompt]]:
    """Prompts of embeddings among the arguments of the call, which do not pass through `encode_prompt`."""
    count = arguments.get("num_images_per_prompt") or 1
    embeds = {"cond": arguments.get("prompt_embeds"), "uncond": arguments.get("negative_prompt_embeds")}
    return {
        branch: [
            EncodedPrompt(None, (), tuple(numbered_tokens(len(states), BLOCK)), states)
            for states in of_branch
            for _ in range(count)
        ]
        for branch, of_branch in embeds.items()
        if of_branch
    }


Z_IMAGE = diffusers_family(
    "z-image",
    "ZImagePipeline",
    "ZImageImg2ImgPipeline",
    "ZImageInpaintPipeline",
    "ZImageControlNetPipeline",
    "ZImageControlNetInpaintPipeline",
    **prompts_in_one_call(PARTS, states_of, BLOCK),
    prompts_from_arguments=prompts_from_arguments,
    branch_order=("cond", "uncond"),
    unguided=0.0,
    embeddings="text_encoder.embed_tokens",
    layers="text_encoder.layers",
    denoiser_inputs=("x", "cap_feats"),
    read_inputs=read_inputs,
    cross_attention=("transformer.layers.*.attention",),
    joint=True,
    check=require_sdpa_processors("ZSingleStreamAttnProcessor"),
    unrecorded_attention=REFINERS,
    text_columns=lambda pipeline, tokens: round_up(tokens + TEMPLATE_TOKENS, BLOCK),
)


# --- our own implementation (probe/models/z_image.py): the same parts, with our own sampler ---


def read_own_inputs(model: "ZImage", inputs: Arguments) -> DenoiserInputs:
    """The denoiser gets latents [row, channel, y, x] and a list of texts."""
    return joint_inputs(inputs["latents"][0], inputs["texts"])


def own_states_of(call: EncodePromptCall) -> BranchStates:
    """`encode_prompt` returns the prompts and, with guidance, the negative prompts."""
    positive, negative = (None if encoded is None else list(encoded.states) for encoded in call.result)
    return positive, negative


def own_step(step: Callable[..., Tensor], arguments: Arguments) -> SchedulerStep:
    """The scheduler returns the latents alone."""
    latents = step(**arguments)
    return SchedulerStep(latents, latents, None)


OWN_Z_IMAGE = replace(
    Z_IMAGE,
    name="z-image, our own",
    matches=lambda model: getattr(model, "name", None) == "z-image",
    pipeline_classes=(),
    **prompts_in_one_call(PARTS, own_states_of, BLOCK),
    sample="sample",
    evaluate="denoise",
    denoiser_inputs=("latents", "texts"),
    read_inputs=read_own_inputs,
    check=lambda model, sites: None,
    step=own_step,
    step_index=lambda scheduler, arguments, expected: arguments.get("index"),
    timesteps=lambda scheduler: scheduler.times.tolist(),
    evaluation_step=lambda velocity, arguments: SchedulerStep(velocity, arguments["latents"], None),
    cell_pixels=lambda model: model.factor * PATCH,
    blank_latents=lambda model, size: torch.zeros_like(model.initial_latents(1, size, seed=0, image=None, time=1.0)),
    images=lambda result: result if isinstance(result, list) else [result],
    metadata=lambda model, arguments: {
        **{name: arguments.get(name) for name in ("guidance", "seed")},
        "sampler": type(model.scheduler).__name__,
    },
)
