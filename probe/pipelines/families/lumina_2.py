"""Lumina Image 2: text and image in one sequence, the text first.

Text: Gemma reads a system prompt and then the prompt; the negative prompt has no system prompt. `encode_prompt` returns
states and mask of both. In the refiners the text attends to itself, before the image attends to it. Only real tokens
enter the sequence, so the image begins at another index in each row.
Image: the latents are cut into patches of 2 x 2; each patch is a query and a key.
"""

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.denoiser_inputs import PatchPipeline, patch_grid
from toushi.probe.pipelines.diffusers_family import diffusers_family
from toushi.probe.pipelines.families.z_image_family import REFINERS
from toushi.probe.pipelines.family import Arguments, DenoiserInputs, EncodePromptCall, JointSequence
from toushi.probe.pipelines.prompt_tokens import PromptPart, masked_states, prompts_in_one_call
from toushi.probe.pipelines.tensor_values import mask_lengths, real_columns

SYSTEM_PROMPT_TOKENS = 40


def read_inputs(pipeline: PatchPipeline, inputs: Arguments) -> DenoiserInputs:
    """The image begins behind the last real token of each row."""
    text, mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
    joint = tuple(JointSequence(image=length, text=0, columns=length) for length in mask_lengths(mask))
    grid = patch_grid(pipeline, inputs["hidden_states"])
    return DenoiserInputs(grid, (text, mask), lambda: real_columns(text, mask), joint)


def system_prompt(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
    """What the pipeline puts before the prompt; nothing before a negative prompt."""
    argument = call.arguments.get("system_prompt")
    text = call.model.system_prompt if argument is None else argument
    return ("" if negative else f"{text} <Prompt Start> ", "")


LUMINA_2 = diffusers_family(
    "lumina-2",
    "Lumina2Pipeline",
    "Lumina2Text2ImgPipeline",
    **prompts_in_one_call([PromptPart(skip_padding=True, template=system_prompt)], masked_states),
    branch_order=("cond", "uncond"),
    embeddings="text_encoder.embed_tokens",
    layers="text_encoder.layers",
    denoiser_inputs=("hidden_states", "encoder_hidden_states", "encoder_attention_mask"),
    read_inputs=read_inputs,
    cross_attention=("transformer.layers.*.attn",),
    joint=True,
    check=require_sdpa_processors("Lumina2AttnProcessor2_0"),
    unrecorded_attention=REFINERS,
    text_columns=lambda pipeline, tokens: tokens + SYSTEM_PROMPT_TOKENS,
)
