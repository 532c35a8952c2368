"""Tiny pipelines of diffusers' families, made from configs with random weights: no file, no network, no time."""

import inspect
from collections.abc import Callable, Iterable

import pytest
import torch
import transformers

from tests.pipelines.tiny_cross_attention import CROSS
from tests.pipelines.tiny_joint_attention import JOINT

# Families whose text encoder attends elsewhere, so that only its states are recorded, with the class of the encoder.
HIDDEN = {"sana": "Gemma2Model", "lumina-2": "Gemma2Model"}
if int(transformers.__version__.partition(".")[0]) < 5:
    HIDDEN = dict.fromkeys(("pixart", "flux", "chroma"), "T5EncoderModel") | {"auraflow": "UMT5EncoderModel"}
PROMPT = "一只 red cat on the left, 月亮，moon"
NEGATIVE = "blue 猫"

MAKERS: dict[str, Callable] = CROSS | JOINT
# Those that `make test` draws; the others share their mechanisms, and are marked slow.
COMMON = {"stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "flux", "z-image", "qwen-image"}
QUICK = COMMON | {"hunyuan-dit"}  # and one with two text encoders that share no column


def families(quick: set[str], names: Iterable[str] = MAKERS) -> list:
    """Parameters for all families, or for those of these names; those that are not in `quick` are marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


# Pipelines that take 8 pixels to a latent cell, or sizes in larger multiples, for granted.
PIXELS = {"Sana": 2, "HunyuanDiT": 4, "Lumina2": 4}


def scaled(pipeline, size: tuple[int, int]) -> tuple[int, int]:
    """So many pixels that the latents have half of `size`."""
    times = next((times for name, times in PIXELS.items() if type(pipeline).__name__.startswith(name)), 1)
    return size[0] * times, size[1] * times


def made(name: str, **how):
    """The same weights each time, without dropout or progress bar."""
    torch.manual_seed(0)
    pipeline = MAKERS[name](**how)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


LENGTHS = {"ZImage": 96, "Ovis": 96, "Flux2Klein": 96, "Flux2Pipeline": 352, "Lumina2": 288}


def draw(pipeline, prompt=PROMPT, *, size=(32, 32), seed=0, steps=2, guidance=True, negative=None, **named):
    """Pictures in few steps, with what this pipeline calls guidance on or off."""
    height, width = scaled(pipeline, size)
    parameters = inspect.signature(type(pipeline).__call__).parameters
    if getattr(pipeline, "guider", None) is not None:  # guidance is no argument of the call
        pipeline.guider._enabled = guidance
        named |= {"negative_prompt": negative}
    elif "true_cfg_scale" in parameters:
        named |= {"true_cfg_scale": 3.0, "negative_prompt": negative or " "} if guidance else {"true_cfg_scale": 1.0}
    else:
        named |= {"guidance_scale": 3.0 if guidance else 0.0}
        if negative is not None and "negative_prompt" in parameters:
            named |= {"negative_prompt": negative}
    if isinstance(prompt, list) and isinstance(named.get("negative_prompt"), str):
        named["negative_prompt"] = [named["negative_prompt"]] * len(prompt)
    for name, value in (
        ("use_resolution_binning", False),
        ("clean_caption", False),
        ("max_sequence_length", 48),
        ("enable_prompt_rewrite", False),
    ):
        if name in parameters:
            named.setdefault(name, value)
    for name, length in LENGTHS.items():
        if type(pipeline).__name__.startswith(name):
            named["max_sequence_length"] = length
    named |= {"height": height, "width": width} if "height" in parameters else {}
    generator = torch.Generator().manual_seed(seed)
    return pipeline(prompt=prompt, num_inference_steps=steps, generator=generator, **named).images
