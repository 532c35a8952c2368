"""One way to ask any model for a picture: our own by `sample`, a diffusers pipeline by its call."""

import inspect
from collections.abc import Callable, Mapping

import torch
from PIL import Image

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.out_of_memory import enough_memory
from toushi.probe.pipelines.registry import family_of


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
    check(model, negative, guidance, sampler, size)
    steps = steps or usual_steps(model)
    with enough_memory("this picture", getattr(model, "loading", None), size):
        if hasattr(model, "sample"):
            chosen = {"guidance": guidance, "sampler": sampler, "size": size}
            chosen = {name: value for name, value in chosen.items() if value is not None}
            return model.sample(prompt, negative, steps=steps, seed=seed, callback=callback, **chosen)
        return _called(model, prompt, negative, steps, seed, guidance, size, callback)


def usual_steps(model) -> int:
    """How many steps the model takes if it is not told."""
    found = _parameters(model).get("steps" if hasattr(model, "sample") else "num_inference_steps")
    return found.default if found is not None and isinstance(found.default, int) else 20


def check(
    model,
    negative: str = "",
    guidance: float | None = None,
    sampler: str | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """Raises ToushiError for what the model does not know, or would not look at; `draw` asks it before it begins."""
    known, kind = _parameters(model), type(model).__name__
    if hasattr(model, "sample"):
        if sampler is not None and "sampler" not in known:
            raise ToushiError(f"{model.name} brings its own sampler: leave the sampler out ({sampler} came)")
        strength = known["guidance"].default if guidance is None else guidance
        return _check_negative(negative, strength, strength == model.unguided, model.name)
    family = family_of(model)
    check_size(model, size)
    if sampler is not None:
        own = type(model.scheduler).__name__
        raise ToushiError(f"this pipeline brings its own sampler, {own}: leave the sampler out ({sampler} came)")
    wants = [name for name in ("image", "control_image", "mask_image") if name in known]
    if wants and kind not in family.image_optional:
        raise ToushiError(
            f"{kind} begins with an image ({', '.join(wants)}), which cannot be given here: load the model as its "
            "text-to-image pipeline, or call the pipeline in Python, inside `with record(pipeline, folder):`"
        )
    if negative and "negative_prompt" not in known:
        raise ToushiError(f"{kind} takes no negative prompt; leave it out")
    _check_negative(negative, guidance, guidance is not None and guidance <= family.unguided, f"a {kind}")
    if negative and guidance is None and "true_cfg_scale" in known and _usual_real(known) <= 1:
        raise ToushiError(
            f"a {kind} looks at no negative prompt unless guidance is asked for: give a guidance above 1, such as 4 "
            "(twice the time), or leave the negative prompt out"
        )


def _check_negative(negative: str, guidance: float | None, off: bool, name: str) -> None:
    if negative and off:
        raise ToushiError(
            f"a negative prompt needs guidance, but guidance {guidance:g} turns it off for {name}: give a larger number, "
            "or leave the negative prompt out"
        )


def _parameters(model) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.sample if hasattr(model, "sample") else type(model).__call__).parameters


def _usual_real(known: Mapping[str, inspect.Parameter]) -> float:
    """The real guidance of a pipeline that was distilled with another, if it is not told; 0 if it has none."""
    return known["true_cfg_scale"].default or 0 if "true_cfg_scale" in known else 0


def _called(model, prompt, negative, steps, seed, guidance, size, callback) -> Image.Image:
    """By the call of a diffusers pipeline."""
    known = _parameters(model)
    # Pipelines that were distilled with guidance have two: that of the model, and by this name the real one, which
    # takes a second evaluation and a negative prompt. It is meant where it is on by itself or the only one, or such a
    # prompt came.
    alone = "guidance_scale" not in known
    real = "true_cfg_scale" in known and (bool(negative) or alone or _usual_real(known) > 1)
    strength = "true_cfg_scale" if real else "guidance_scale"
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
    return model(**given).images[0]


def check_size(pipeline, size: tuple[int, int] | None) -> None:
    """Raises ToushiError if a side is no whole number of the pipeline's image cells."""
    unit = family_of(pipeline).cell_pixels(pipeline)
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
