"""FLUX.1: text and image in one sequence, the text first.

Text: T5 reads the prompt; its states are the columns, padding too. CLIP makes one vector of the prompt, and no key.
`encode_prompt` is called for the prompt, and with real guidance again for the negative prompt.
Image: latents are packed, 2 x 2 of them to one cell, which is a query and a key. `img_ids` tells the grid. Reference
pictures come behind. Blocks for two streams (`transformer_blocks`) come before those for one.
"""

from typing import Any

from torch import Tensor

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.diffusers_family import diffusers_family, t5_encoder
from toushi.probe.pipelines.family import Arguments, DenoiserInputs, EncodePromptCall, JointSequence
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_two_calls
from toushi.probe.pipelines.tensor_values import read_once


@read_once
def grid_of_ids(ids: Tensor) -> tuple[int, int]:
    """The ids [..., 3 or 4] of image cells are (time, y, x, …). Cells of reference pictures have later times."""
    ids = ids.reshape(-1, ids.shape[-1])
    own = ids[ids[:, 0] == ids[0, 0], 1:3]  # LongCat-Image begins at time 1, and at y and x behind the text
    rows, columns = ((own.amax(0) - own.amin(0)).long() + 1).tolist()
    return rows, columns


def read_inputs(pipeline: object, inputs: Arguments) -> DenoiserInputs:
    text = inputs["encoder_hidden_states"]
    layout = JointSequence(image=text.shape[1], text=0, columns=text.shape[1])
    return DenoiserInputs(grid_of_ids(inputs["img_ids"]), (text,), lambda: list(text.unbind()), (layout,) * len(text))


def unpack_latents(latents: Tensor, grid: tuple[int, int]) -> Tensor:
    """Latents [row, cell, 4 * channel], packed 2 x 2, as [row, channel, y, x]."""
    if latents.dim() != 3:
        return latents
    packed = latents.unflatten(1, grid).unflatten(3, (-1, 2, 2))
    return packed.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def states_of(call: EncodePromptCall) -> tuple[Tensor, ...]:
    """`encode_prompt` returns prompt_embeds first."""
    return call.result[0].unbind()


PACKED: dict[str, Any] = {  # fields of FLUX.2, too
    "branch_order": ("cond", "uncond"),
    "denoiser_inputs": ("hidden_states", "encoder_hidden_states", "img_ids"),
    "read_inputs": read_inputs,
    "cross_attention": ("transformer.transformer_blocks.*.attn", "transformer.single_transformer_blocks.*.attn"),
    "joint": True,
    "unpack_latents": unpack_latents,
}

FLUX = diffusers_family(
    "flux",
    "FluxPipeline",
    "FluxImg2ImgPipeline",
    "FluxInpaintPipeline",
    "FluxFillPipeline",
    "FluxKontextPipeline",
    "FluxKontextInpaintPipeline",
    "FluxControlPipeline",
    "FluxControlImg2ImgPipeline",
    "FluxControlInpaintPipeline",
    "FluxControlNetPipeline",
    "FluxControlNetImg2ImgPipeline",
    "FluxControlNetInpaintPipeline",
    text_encoders=("text_encoder_2",),
    text_encoder="text_encoder_2",
    **prompts_in_two_calls([PromptPart(("text_encoder_2",))], states_of),
    **t5_encoder("text_encoder_2"),
    check=require_sdpa_processors("FluxAttnProcessor"),
    unrecorded_attention={
        "text_encoder.*": "its output is one vector; no key of the denoiser's attention comes from it"
    },
    **PACKED,
)
