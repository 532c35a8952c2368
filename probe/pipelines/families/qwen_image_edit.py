"""Qwen-Image-Edit: as Qwen-Image, with source pictures.

Text: Qwen2.5-VL reads the pictures before the prompt, so that some text columns are parts of a picture. Their tokens
have the kind `image`, and no word has them.
Image: the cells of the source pictures come behind those of the picture that is made, as keys that are no text.
"""

from toushi.probe.pipelines.diffusers_family import diffusers_family
from toushi.probe.pipelines.families.qwen_image import QWEN_FIELDS, attended_columns
from toushi.probe.pipelines.family import EncodePromptCall
from toushi.probe.pipelines.prompt_templates import PROMPT_MARK, split_template
from toushi.probe.pipelines.prompt_tokens import PromptPart, prompts_in_two_calls
from toushi.probe.text.spelling import IMAGE

PICTURE = "<|vision_start|><|vision_end|>"  # around the tokens of a picture


def template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
    """What the pipeline puts before and after the prompt, without the tokens of pictures."""
    text = call.model.prompt_template_encode.replace(IMAGE, "")
    if PICTURE not in text:  # Edit-Plus numbers the pictures
        images = call.arguments.get("image")
        count = len(images) if isinstance(images, list) else int(images is not None)
        text = text.replace("{}", "".join(f"Picture {i + 1}: {PICTURE}" for i in range(count)) + "{}")
    return split_template(text.format(PROMPT_MARK))


def column_positions(call: EncodePromptCall, count: int) -> range:
    """The positions behind the system message."""
    return range(call.model.prompt_template_encode_start_idx, count)


QWEN_IMAGE_EDIT = diffusers_family(
    "qwen-image-edit",
    "QwenImageEditPipeline",
    "QwenImageEditPlusPipeline",
    "QwenImageEditInpaintPipeline",
    unrecorded_attention={
        "text_encoder.*": "it reads the prompt and the source pictures in one sequence, which is too long to keep"
    },
    **prompts_in_two_calls(
        [PromptPart(column_positions=column_positions, skip_padding=True, template=template)],
        lambda call: attended_columns(*call.result),
    ),
    **QWEN_FIELDS,
)
