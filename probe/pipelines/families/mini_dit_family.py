"""mini-dit: the text encoder and the sampler of mini-unet, with Z-Image's denoiser, image and text in one sequence.

Image: the latents are cut into patches of 2 x 2; each patch is a query and a key. Text is padded to a multiple of 32 with
learned vectors, which are attended to.
"""

from dataclasses import replace

from toushi.probe.models.mini_dit import MiniDiT
from toushi.probe.pipelines.families.mini_unet_family import MINI_UNET
from toushi.probe.pipelines.families.z_image_family import BLOCK, REFINERS, read_own_inputs
from toushi.probe.pipelines.family import EncodedPrompt, EncodePromptCall
from toushi.probe.pipelines.prompt_tokens import padding_tokens, round_up


def _encoded_prompts(call: EncodePromptCall) -> dict[str, list[EncodedPrompt]]:
    def padded(prompt: EncodedPrompt) -> EncodedPrompt:
        columns = len(prompt.states)
        return prompt._replace(tokens=(*prompt.tokens, *padding_tokens(columns, round_up(columns, BLOCK))))

    branches = MINI_UNET.encoded_prompts(call)
    return {branch: [padded(prompt) for prompt in prompts] for branch, prompts in branches.items()}


MINI_DIT = replace(
    MINI_UNET,
    name="mini-dit",
    matches=lambda model: isinstance(model, MiniDiT),
    denoiser="transformer",
    denoiser_inputs=("latents", "texts"),
    read_inputs=read_own_inputs,
    encoded_prompts=_encoded_prompts,
    cross_attention=("transformer.layers.*.attention",),
    self_attention=(),
    joint=True,
    unrecorded_attention=REFINERS,
    cell_pixels=lambda model: model.cell_pixels,
    text_columns=lambda model, tokens: round_up(tokens, BLOCK),
)
