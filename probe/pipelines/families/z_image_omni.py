"""Z-Image Omni: Z-Image with source pictures. Text and image in one sequence, the text first.

Text: Qwen3 reads a prompt in parts, between which the pictures would stand: one part before each picture, one with the
prompt, one behind it. Without a picture there is one. Each part is padded to a multiple of 32 with learned vectors.
Image: the source pictures, then the picture that is made, then what SigLIP makes of the source pictures. Each is padded
likewise. Source pictures are keys that are no text.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.diffusers_family import PICTURE_ONLY, diffusers_family
from toushi.probe.pipelines.families.z_image_family import BLOCK, PATCH, REFINERS
from toushi.probe.pipelines.family import (
    Arguments,
    DenoiserInputs,
    EncodedPrompt,
    EncodePromptCall,
    EncoderInputs,
    JointSequence,
)
from toushi.probe.pipelines.prompt_tokens import (
    BranchStates,
    PromptPart,
    numbered_tokens,
    padding_tokens,
    prompts_in_one_call,
    round_up,
)
from toushi.probe.text.alignment import Token
from toushi.probe.text.spelling import Vocabulary

ENCODER = "text_encoder"


def padded(lengths: Sequence[int]) -> int:
    """Positions of parts that are padded each by itself."""
    return sum(round_up(length, BLOCK) for length in lengths)


def read_inputs(pipeline: object, inputs: Arguments) -> DenoiserInputs:
    """The denoiser gets lists: of each row the latents of all pictures, the one that is made last, and the text's parts."""
    grids = [[(x.shape[-2] // PATCH, x.shape[-1] // PATCH) for x in pictures] for pictures in inputs["x"]]
    texts: list[list[Tensor]] = inputs["cap_feats"]
    joint = []
    for sources, parts in zip(grids, texts):
        columns = padded([len(part) for part in parts])
        before = padded([rows * width for rows, width in sources[:-1]])
        joint.append(JointSequence(image=columns + before, text=0, columns=columns))
    tensors = tuple(part for parts in texts for part in parts)
    return DenoiserInputs(grids[0][-1], tensors, lambda: [torch.cat(parts) for parts in texts], tuple(joint))


# --- the text ---


def number_of_parts(call: EncodePromptCall) -> int:
    pictures = call.arguments.get("num_condition_images", 0)
    return pictures + 2 if pictures else 1


def prompt_part(parts: int) -> int:
    """The part that has the prompt: the last but one, or the only one."""
    return max(parts - 2, 0)


def template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
    """What the pipeline puts before and after the prompt in its part."""
    if number_of_parts(call) > 1:
        return "<|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n<|vision_start|>"
    return "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def parts_of_pictures(call: EncodePromptCall) -> dict[str, list[list[Tensor]]]:
    """The states of all parts, for each picture of each branch."""
    count = call.sample_arguments.get("num_images_per_prompt") or 1
    branches = zip(("cond", "uncond"), call.result)
    return {branch: [parts for parts in of_branch for _ in range(count)] for branch, of_branch in branches if of_branch}


def states_of(call: EncodePromptCall) -> BranchStates:
    parts = parts_of_pictures(call)
    positive, negative = ([each[prompt_part(len(each))] for each in parts.get(b, ())] for b in ("cond", "uncond"))
    return positive, negative


PROMPTS = prompts_in_one_call([PromptPart(skip_padding=True, template=template)], states_of, BLOCK)


def encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
    """The prompts as if the encoder had read their own parts alone, then with the other parts around them."""
    count, calls = number_of_parts(call), call.encoder_calls.get(ENCODER, ())
    own = slice(prompt_part(count), None, count)
    alone = [EncoderInputs(each.ids[own], each.mask and each.mask[own]) for each in calls]
    prompts = PROMPTS["encoded_prompts"](call._replace(encoder_calls={ENCODER: alone} if alone else {}))
    vocabulary, states = Vocabulary.from_tokenizer(call.model.tokenizer), parts_of_pictures(call)
    result = {}
    for branch, of_branch in prompts.items():
        ids = (
            calls[-1 if branch == "uncond" else 0].ids[:count] if calls else []
        )  # every prompt has the same other parts
        result[branch] = [
            with_other_parts(prompt, parts, ids, vocabulary) for prompt, parts in zip(of_branch, states[branch])
        ]
    return result


def with_other_parts(
    prompt: EncodedPrompt, parts: Sequence[Tensor], ids: Sequence[Sequence[int]], vocabulary: Vocabulary
) -> EncodedPrompt:
    """The prompt with all its parts. `ids` are those of each part, with padding behind."""
    if prompt.prompt is None:
        return numbered_prompt(parts)
    tokens: list[Token] = []
    start = 0
    for number, part in enumerate(parts):
        if number == prompt_part(len(parts)):
            tokens += [t if t.column is None else replace(t, column=t.column + start) for t in prompt.tokens]
        else:
            own = enumerate(ids[number][: len(part)])
            tokens += [Token(id, vocabulary.piece(id), None, "template", (ENCODER,), i, start + i) for i, id in own]
            tokens += padding_tokens(start + len(part), start + round_up(len(part), BLOCK))
        start += round_up(len(part), BLOCK)
    return prompt._replace(tokens=tuple(tokens), states=torch.cat(list(parts)))


def numbered_prompt(parts: Sequence[Tensor]) -> EncodedPrompt:
    """A prompt that came as embeddings."""
    tokens: list[Token] = []
    start = 0
    for part in parts:
        end, start_of_next = start + len(part), start + round_up(len(part), BLOCK)
        tokens += numbered_tokens(end)[start:] + padding_tokens(end, start_of_next)
        start = start_of_next
    return EncodedPrompt(None, (), tuple(tokens), torch.cat(list(parts)))


def prompts_from_arguments(arguments: Arguments) -> dict[str, list[EncodedPrompt]]:
    """Prompts of embeddings among the arguments of the call, which do not pass through `encode_prompt`."""
    count = arguments.get("num_images_per_prompt") or 1
    embeds = {"cond": arguments.get("prompt_embeds"), "uncond": arguments.get("negative_prompt_embeds")}
    return {
        branch: [numbered_prompt(parts) for parts in of_branch for _ in range(count)]
        for branch, of_branch in embeds.items()
        if of_branch
    }


Z_IMAGE_OMNI = diffusers_family(
    "z-image-omni",
    "ZImageOmniPipeline",
    image_optional=("ZImageOmniPipeline",),
    encoded_prompts=encoded_prompts,
    prompts_from_arguments=prompts_from_arguments,
    branch_order=("cond", "uncond"),
    unguided=0.0,
    denoiser_inputs=("x", "cap_feats"),
    read_inputs=read_inputs,
    cross_attention=("transformer.layers.*.attention",),
    joint=True,
    check=require_sdpa_processors("ZSingleStreamAttnProcessor"),
    unrecorded_attention={
        **REFINERS,
        "transformer.siglip_refiner.*": PICTURE_ONLY,
        "siglip.*": PICTURE_ONLY,
        "text_encoder.*": "it reads each prompt in parts, around the source pictures",
    },
    text_columns=lambda pipeline, tokens: round_up(tokens, BLOCK),
)
