"""One way to ask any model for a picture: our own by `sample`, a diffusers pipeline by its call."""

import inspect
from collections.abc import Callable

import torch
from PIL import Image

from probe.errors import ToushiError
from probe.models.families import family_of
from probe.models.memory import enough_memory

# Pipelines that take pictures to look at, and draw without one.
IMAGE_OPTIONAL = ("Flux2Pipeline", "Flux2KleinPipeline")


def draw(
    model,
    prompt: str,
    negative: str = "",
    *,
    steps: int = 20,
    seed: int = 0,
    guidance: float | None = None,
    sampler: str | None = None,
    size: tuple[int, int] | None = None,
    callback: Callable | None = None,
) -> Image.Image:
    """The picture. What is None is left to the model. `size` is (height, width) in pixels; `callback` is called
    after each step, with whatever the model tells."""
    chosen = {"guidance": guidance, "sampler": sampler, "size": size}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    with enough_memory("this picture", getattr(model, "loading", None), size):
        if hasattr(model, "sample"):
            return model.sample(prompt, negative, steps=steps, seed=seed, callback=callback, **chosen)
        return _called(model, prompt, negative, steps, seed, guidance, sampler, size, callback)


def _called(model, prompt, negative, steps, seed, guidance, sampler, size, callback) -> Image.Image:
    """By the call of a diffusers pipeline."""
    check_size(model, size)
    if sampler is not None:
        own = type(model.scheduler).__name__
        raise ToushiError(f"this pipeline brings its own sampler, {own}: leave the sampler out ({sampler} came)")
    known = inspect.signature(type(model).__call__).parameters
    wants = [name for name in ("image", "control_image", "mask_image") if name in known]
    kind = type(model).__name__
    if wants and kind not in IMAGE_OPTIONAL:
        raise ToushiError(
            f"{kind} begins with an image ({', '.join(wants)}), which cannot be given here: load the model as its "
            "text-to-image pipeline, or call the pipeline in Python, inside `with record(pipeline, folder):`"
        )
    # Pipelines that were distilled with guidance take it as a number of the model, and the real one by this name.
    strength = "true_cfg_scale" if "true_cfg_scale" in known else "guidance_scale"
    wanted = {
        "prompt": prompt,
        "num_inference_steps": steps,
        # Drawn on the CPU, so that a seed means the same on every device.
        "generator": torch.Generator().manual_seed(seed),
        "height": size and size[0],
        "width": size and size[1],
        strength: guidance,
        "negative_prompt": negative if negative or strength == "true_cfg_scale" else None,
        "use_resolution_binning": None if size is None else False,  # what was asked for, not a size near it
        "callback_on_step_end": callback and _told(callback),
        "callback": callback,
    }
    given = {name: value for name, value in wanted.items() if value is not None and name in known}
    if "callback_on_step_end" in given:
        given.pop("callback", None)
    if negative and "negative_prompt" not in given:
        raise ToushiError(f"{type(model).__name__} takes no negative prompt; leave it out")
    return model(**given).images[0]


def check_size(pipeline, size: tuple[int, int] | None) -> None:
    """Raises ToushiError if a side is no whole number of the pipeline's image cells."""
    unit = family_of(pipeline).factor(pipeline)
    if size is None or not any(pixels % unit for pixels in size):
        return
    near = "x".join(str(max(unit, round(pixels / unit) * unit)) for pixels in size)
    raise ToushiError(
        f"a {type(pipeline).__name__} draws in cells of {unit} pixels, so height and width must be multiples of {unit}, "
        f"but {size[0]}x{size[1]} came; the nearest is {near}"
    )


def _told(callback: Callable) -> Callable:
    def told(pipeline, step, time, tensors):
        callback(step, tensors.get("latents"))
        return tensors

    return told
