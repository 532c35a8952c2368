"""What the families of diffusers' text-to-image pipelines have in common.

Nothing here imports diffusers: a family knows its pipelines by the names of their classes.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np
import torch
from PIL import Image

from toushi.probe.pipelines.diffusers_scheduler import DiffusersScheduler, call_step, step_index, timesteps
from toushi.probe.pipelines.family import Arguments, Family, Images

PICTURE_ONLY = "it reads a picture, not the prompt"
SECOND_ENCODER = "a trace has the attention of one text encoder; of this encoder it has only the tokens"
UNRECORDED = {  # attention that no family of diffusers records
    "vae.*": "it decodes the latents and does not read the prompt",
    "controlnet.*": "the control network attends to the text, too, but only the denoiser is recorded",
    "safety_checker.*": PICTURE_ONLY,
    "image_encoder.*": PICTURE_ONLY,
}


OPTIONAL_FIELDS = (  # of the manifest: arguments of a call
    *("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"),
    *("denoising_start", "denoising_end"),
)


class EncoderPaths(TypedDict):
    """Fields of a family: where the modules of its text encoder are."""

    embeddings: str
    layers: str
    layer_attention: NotRequired[str]


class DiffusersPipeline(Protocol):
    scheduler: DiffusersScheduler


def diffusers_family(
    name: str, *pipeline_classes: str, unrecorded_attention: Mapping[str, str] | None = None, **fields: object
) -> Family:
    """The family of these pipeline classes: `fields` of its own, and what all pipelines of diffusers have in common."""
    common: dict[str, Any] = {
        "matches": matches_class(*pipeline_classes),
        "denoiser": "transformer",
        "denoiser_inputs": ("hidden_states", "encoder_hidden_states"),
        "cell_pixels": lambda pipeline: pipeline.vae_scale_factor * 2,
        "text_encoders": ("text_encoder",),
        "step": call_step,
        "step_index": step_index,
        "timesteps": timesteps,
        "timesteps_method": "get_timesteps",
        "images": pil_images,
        "metadata": metadata,
        "unrecorded_attention": {**UNRECORDED, **(unrecorded_attention or {})},
    }
    return Family(name=name, pipeline_classes=pipeline_classes, **{**common, **fields})


def matches_class(*names: str) -> Callable[[object], bool]:
    """Whether a model's class, or a class that it inherits from, is the class of diffusers with one of these names."""

    def matches(model: object) -> bool:
        return any(kind.__name__ in names and kind.__module__.startswith("diffusers.") for kind in type(model).__mro__)

    return matches


def t5_encoder(component: str) -> EncoderPaths:
    """The modules of this T5 encoder."""
    return {
        "embeddings": f"{component}.encoder.embed_tokens",
        "layers": f"{component}.encoder.block",
        "layer_attention": "layer.0.SelfAttention",
    }


def pil_images(result: object) -> Images:
    """The pictures in what a pipeline returned. None if it returned latents, or something without `images`."""
    pictures = result[0] if isinstance(result, tuple) and result else getattr(result, "images", result)
    if isinstance(pictures, np.ndarray) and pictures.ndim == 4 and pictures.shape[-1] == 3:
        return [Image.fromarray((picture * 255).round().astype("uint8")) for picture in pictures]
    if isinstance(pictures, list) and all(isinstance(picture, Image.Image) for picture in pictures):
        return pictures
    return None


def metadata(pipeline: DiffusersPipeline, arguments: Arguments) -> dict[str, object]:
    """Manifest fields: guidance, sampler; the others if they were used."""
    fields: dict[str, object] = {
        "guidance": arguments.get("guidance_scale"),
        "sampler": type(pipeline.scheduler).__name__,
    }
    if arguments.get("true_cfg_scale") is not None:
        fields["true_guidance"] = arguments["true_cfg_scale"]
    start = arguments.get("denoising_start")
    begins_at_start = isinstance(start, float) and 0 < start < 1  # then SDXL ignores the strength
    if arguments.get("image") is not None and arguments.get("strength") is not None and not begins_at_start:
        fields["strength"] = arguments["strength"]
    fields |= {name: arguments[name] for name in OPTIONAL_FIELDS if arguments.get(name) is not None}
    if (digest := source_image_sha256(arguments.get("image"))) is not None:
        fields["source_image_sha256"] = digest
    return fields


def source_image_sha256(image: object) -> str | list[str] | None:
    """The sha256 of the pixels of `image=`, as they are in memory; None if it is no image.

    A list, or a batch [row, ...] of several rows, gives a list. A PIL image and its array have the same one.
    """
    if isinstance(image, Image.Image):
        return hashlib.sha256(image.tobytes()).hexdigest()
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().contiguous()
        # numpy has no bfloat16, so the bytes are taken.
        image = image.view(torch.uint8).numpy() if image.dtype == torch.bfloat16 else image.numpy()
    if isinstance(image, np.ndarray) and image.ndim < 4:
        return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
    if not isinstance(image, np.ndarray | list | tuple) or not len(image):
        return None
    digests = [digest for row in image if isinstance(digest := source_image_sha256(row), str)]
    if len(digests) < len(image):
        return None
    return digests if len(digests) > 1 else digests[0]
