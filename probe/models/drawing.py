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
    steps: int | None = None,
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
            _check(model, negative, chosen)
            return model.sample(prompt, negative, steps=steps or usual_steps(model), seed=seed, callback=callback, **chosen)
        return _called(model, prompt, negative, steps or usual_steps(model), seed, guidance, sampler, size, callback)


def usual_steps(model) -> int:
    """How many steps the model takes if it is not told."""
    call, name = (model.sample, "steps") if hasattr(model, "sample") else (type(model).__call__, "num_inference_steps")
    found = inspect.signature(call).parameters.get(name)
    return found.default if found is not None and isinstance(found.default, int) else 20


def _check(model, negative: str, chosen: dict) -> None:
    """Raises ToushiError for what one of our own models does not know, or would not use."""
    known = inspect.signature(model.sample).parameters
    if unknown := [name for name in chosen if name not in known]:
        raise ToushiError(f"{model.name} brings its own {unknown[0]}: leave the {unknown[0]} out")
    _check_negative(negative, chosen.get("guidance", known["guidance"].default), model.unguided, model.name)


def _check_negative(negative: str, guidance: float | None, unguided: float, name: str) -> None:
    if negative and guidance is not None and guidance == unguided:
        raise ToushiError(
            f"a negative prompt needs guidance, but guidance {guidance:g} turns it off for {name}: give a larger number, "
            "or leave the negative prompt out"
        )


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
    _check_negative(negative, guidance, 0.0 if "ZImage" in kind else 1.0, f"a {kind}")
    # Pipelines that were distilled with guidance have two: that of the model, and by this name the real one, which
    # takes a second evaluation and a negative prompt. It is meant where it is on by itself, or such a prompt came.
    usual = known["true_cfg_scale"].default or 0 if "true_cfg_scale" in known else 0
    real = "true_cfg_scale" in known and (bool(negative) or usual > 1)
    strength = "true_cfg_scale" if real else "guidance_scale"
    if negative and real and guidance is None and usual <= 1:
        raise ToushiError(
            f"a {kind} looks at no negative prompt unless guidance is asked for: give a guidance above "
            "1, such as 4 (twice the time), or leave the negative prompt out"
        )
    wanted = {
        "prompt": prompt,
        "num_inference_steps": steps,
        # Drawn on the CPU, so that a seed means the same on every device.
        "generator": torch.Generator().manual_seed(seed),
        "height": size and size[0],
        "width": size and size[1],
        strength: guidance,
        "negative_prompt": negative if negative or real else None,
        "use_resolution_binning": None if size is None else False,  # what was asked for, not a size near it
        "callback_on_step_end": callback and _told(callback),
        "callback": callback,
    }
    given = {name: value for name, value in wanted.items() if value is not None and name in known}
    if "callback_on_step_end" in given:
        given.pop("callback", None)
    if negative and "negative_prompt" not in given:
        raise ToushiError(f"{kind} takes no negative prompt; leave it out")
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
