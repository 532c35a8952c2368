"""What a denoiser is given: where in its attention the image lies and where the text, told by its arguments."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from toushi.probe.pipelines.family import DenoiserInputs, JointSequence
from toushi.probe.pipelines.prompt_tokens import BLOCK, joined, masked


def unet(pipeline, inputs: Mapping[str, Any]) -> DenoiserInputs:
    latents, text = inputs["sample"], inputs["encoder_hidden_states"]
    return DenoiserInputs((latents.shape[-2], latents.shape[-1]), (text,), lambda: list(text.unbind()))


def patched(pipeline, inputs: Mapping[str, Any]) -> DenoiserInputs:
    """Latents cut into patches, cross-attention to text with a mask."""
    text, mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
    key = (text,) if mask is None else (text, mask)
    return DenoiserInputs(_patches(pipeline, inputs["hidden_states"]), key, lambda: masked(text, mask))


def _patches(pipeline, latents: Tensor) -> tuple[int, int]:
    patch = pipeline.transformer.config.patch_size
    return latents.shape[-2] // patch, latents.shape[-1] // patch


def sd3(pipeline, inputs: Mapping[str, Any]) -> DenoiserInputs:
    latents, text = inputs["hidden_states"], inputs["encoder_hidden_states"]
    rows, columns = grid = _patches(pipeline, latents)
    stretch = JointSequence(0, rows * columns, text.shape[1])
    return DenoiserInputs(grid, (text,), lambda: list(text.unbind()), (stretch,) * len(text))


def flux(pipeline, inputs: Mapping[str, Any]) -> DenoiserInputs:
    """Image ids are (time, y, x, …) for each cell; pictures given for reference have later times and come behind."""
    text, ids = inputs["encoder_hidden_states"], inputs["img_ids"]
    ids = ids.reshape(-1, ids.shape[-1])
    rows, columns = (ids[ids[:, 0] == 0, 1:3].amax(0).long() + 1).tolist()
    stretch = JointSequence(text.shape[1], 0, text.shape[1])
    return DenoiserInputs((rows, columns), (text,), lambda: list(text.unbind()), (stretch,) * len(text))


def qwen_image(pipeline, inputs: Mapping[str, Any]) -> DenoiserInputs:
    text, mask = inputs["encoder_hidden_states"], inputs["encoder_hidden_states_mask"]
    shapes = inputs["img_shapes"][0]
    _, rows, columns = shapes[0] if isinstance(shapes, list) else shapes
    stretch = JointSequence(text.shape[1], 0, text.shape[1])
    key = (text,) if mask is None else (text, mask)
    return DenoiserInputs((rows, columns), key, lambda: masked(text, mask), (stretch,) * len(text))


def z_image(pipeline, inputs: Mapping[str, Any]) -> DenoiserInputs:
    latents, text = inputs["x"], inputs["cap_feats"]
    rows, columns = latents[0].shape[-2] // 2, latents[0].shape[-1] // 2
    filled = -(-rows * columns // BLOCK) * BLOCK
    joint = tuple(JointSequence(0, filled, -(-len(one) // BLOCK) * BLOCK) for one in text)
    return DenoiserInputs((rows, columns), tuple(text), lambda: list(text), joint)


def hunyuan(pipeline, inputs: Mapping[str, Any]) -> DenoiserInputs:
    """Two texts, one behind the other; what their masks leave out is replaced, and attended to."""
    texts = inputs["encoder_hidden_states"], inputs["encoder_hidden_states_t5"]
    return DenoiserInputs(
        _patches(pipeline, inputs["hidden_states"]), texts, lambda: [joined(*pair) for pair in zip(*texts)]
    )


def lumina(pipeline, inputs: Mapping[str, Any]) -> DenoiserInputs:
    """Of each row the real text columns, then the image."""
    text, mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
    joint = tuple(JointSequence(length, 0, length) for length in mask.sum(1).tolist())
    return DenoiserInputs(_patches(pipeline, inputs["hidden_states"]), (text, mask), lambda: masked(text, mask), joint)


def own(model, inputs: Mapping[str, Any]) -> DenoiserInputs:
    return z_image(model, {"x": inputs["latents"], "cap_feats": inputs["texts"]})
