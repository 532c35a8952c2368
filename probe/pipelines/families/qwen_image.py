"""Qwen-Image: text and image in one sequence, the text first, with a mask.

Text: Qwen2.5-VL reads the prompt in a template of the pipeline. The columns are the real tokens behind the system
message. `encode_prompt` is called for the prompt, and with guidance again for the negative prompt.
Image: latents are packed as in FLUX.1; each packed cell is a query and a key. `img_shapes` tells the grid.
"""

from typing import Any

from torch import Tensor

from toushi.probe.pipelines.attention_processors import require_sdpa_processors
from toushi.probe.pipelines.diffusers_family import PICTURE_ONLY, diffusers_family
from toushi.probe.pipelines.families.flux import unpack_latents
from toushi.probe.pipelines.family import Arguments, DenoiserInputs, EncodePromptCall, JointSequence
from toushi.probe.pipelines.private_api import qwen_image_masks_text
from toushi.probe.pipelines.prompt_templates import PROMPT_MARK, split_template
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_two_calls
from toushi.probe.pipelines.tensor_values import real_columns

TEMPLATE_TOKENS = 5  # of the template behind the prompt


def attended_columns(text: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Of each row of `text` [row, column, feature] the columns that the denoiser attends to."""
    return real_columns(text, mask) if qwen_image_masks_text() else list(text.unbind())


def read_inputs(pipeline: object, inputs: Arguments) -> DenoiserInputs:
    """`img_shapes` has the grid: (frames, rows, columns) of each picture."""
    text, mask = inputs["encoder_hidden_states"], inputs["encoder_hidden_states_mask"]
    shapes = inputs["img_shapes"][0]
    _, rows, columns = shapes[0] if isinstance(shapes, list) else shapes
    layout = JointSequence(image=text.shape[1], text=0, columns=text.shape[1])
    text_tensors = (text,) if mask is None else (text, mask)
    return DenoiserInputs((rows, columns), text_tensors, lambda: attended_columns(text, mask), (layout,) * len(text))


def template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
    """What the pipeline's template puts before and after the prompt."""
    return split_template(call.model.prompt_template_encode.format(PROMPT_MARK))


def column_positions(call: EncodePromptCall, count: int) -> range:
    """The positions behind the system message, up to `max_sequence_length`."""
    start = call.model.prompt_template_encode_start_idx
    return range(start, min(count, start + call.arguments.get("max_sequence_length", 1024)))


QWEN_FIELDS: dict[str, Any] = {  # fields of Qwen-Image-Edit, too
    "branch_order": ("cond", "uncond"),
    "denoiser_inputs": ("hidden_states", "encoder_hidden_states", "encoder_hidden_states_mask", "img_shapes"),
    "read_inputs": read_inputs,
    "cross_attention": ("transformer.transformer_blocks.*.attn",),
    "joint": True,
    "check": require_sdpa_processors("QwenDoubleStreamAttnProcessor2_0"),
    "unpack_latents": unpack_latents,
    "text_columns": lambda pipeline, tokens: tokens + TEMPLATE_TOKENS,
}

QWEN_IMAGE = diffusers_family(
    "qwen-image",
    "QwenImagePipeline",
    "QwenImageImg2ImgPipeline",
    "QwenImageInpaintPipeline",
    "QwenImageControlNetPipeline",
    "QwenImageControlNetInpaintPipeline",
    **prompts_in_two_calls(
        [PromptPart(column_positions=column_positions, skip_padding=True, template=template)],
        lambda call: attended_columns(*call.result),
    ),
    embeddings="text_encoder.model.language_model.embed_tokens",
    layers="text_encoder.model.language_model.layers",
    unrecorded_attention={"text_encoder.model.visual.*": PICTURE_ONLY},
    **QWEN_FIELDS,
)
