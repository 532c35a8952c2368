"""`generate(model, prompt)`: one picture of any model, ours by `sample`, others by the call of a diffusers pipeline."""

import inspect
from collections.abc import Callable, Mapping

import torch
from PIL import Image

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.out_of_memory import explain_out_of_memory
from toushi.probe.pipelines.registry import family_of


def generate(
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
    """The picture. The model decides what is None. `size` is (height, width) in pixels. `callback` is called after each
    step, with its index and the latents. Raises ToushiError for what the model does not take."""
    check_arguments(model, negative, guidance, sampler, size)
    steps = steps or default_steps(model)
    with explain_out_of_memory("this picture", getattr(model, "loading", None), size):
        if hasattr(model, "sample"):
            options = {"guidance": guidance, "sampler": sampler, "size": size}
            options = {name: value for name, value in options.items() if value is not None}
            return model.sample(prompt, negative, steps=steps, seed=seed, callback=callback, **options)
        return _call_pipeline(model, prompt, negative, steps, seed, guidance, size, callback)


def default_steps(model) -> int:
    """The default number of steps of the model's sampling method."""
    if hasattr(model, "default_steps"):
        return model.default_steps
    parameter = _parameters(model).get("steps" if hasattr(model, "sample") else "num_inference_steps")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else 20


def check_arguments(
    model,
    negative: str = "",
    guidance: float | None = None,
    sampler: str | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """Raises ToushiError for arguments that the model does not take, or would ignore. `generate` calls it first."""
    parameters, kind = _parameters(model), type(model).__name__
    if hasattr(model, "sample"):
        if sampler is not None and "sampler" not in parameters:
            raise ToushiError(f"{model.name} brings its own sampler: leave the sampler out ({sampler} came)")
        strength = model.default_guidance if guidance is None else guidance
        return _check_negative(negative, strength, strength == model.unguided, model.name)
    family = family_of(model)
    check_size(model, size)
    if sampler is not None:
        own = type(model.scheduler).__name__
        raise ToushiError(f"this pipeline brings its own sampler, {own}: leave the sampler out ({sampler} came)")
    images = [name for name in ("image", "control_image", "mask_image") if name in parameters]
    if images and kind not in family.image_optional:
        raise ToushiError(
            f"{kind} begins with an image ({', '.join(images)}), which cannot be given here: load the model as its "
            "text-to-image pipeline, or call the pipeline in Python, inside `with record(pipeline, folder):`"
        )
    if negative and "negative_prompt" not in parameters:
        raise ToushiError(f"{kind} takes no negative prompt; leave it out")
    _check_negative(negative, guidance, guidance is not None and guidance <= family.unguided, f"a {kind}")
    if negative and guidance is None and "true_cfg_scale" in parameters and _default_true_guidance(parameters) <= 1:
        raise ToushiError(
            f"a {kind} ignores the negative prompt unless guidance is given: give a guidance above 1, such as 4 "
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


def _default_true_guidance(parameters: Mapping[str, inspect.Parameter]) -> float:
    """The default of `true_cfg_scale`, the real guidance of a guidance-distilled pipeline; 0 if it has none."""
    return parameters["true_cfg_scale"].default or 0 if "true_cfg_scale" in parameters else 0


def _call_pipeline(model, prompt, negative, steps, seed, guidance, size, callback) -> Image.Image:
    """The picture, by the call of a diffusers pipeline, with what its call has parameters for."""
    parameters = _parameters(model)
    # A guidance-distilled pipeline has two kinds of guidance. `guidance_scale` is an input of the model;
    # `true_cfg_scale` is the real one, with a second evaluation on the negative prompt. The real one is meant if it is
    # on by default, if it is the only one, or if there is a negative prompt.
    alone = "guidance_scale" not in parameters
    real = "true_cfg_scale" in parameters and (bool(negative) or alone or _default_true_guidance(parameters) > 1)
    arguments = {
        "prompt": prompt,
        "num_inference_steps": steps,
        # On the CPU, so that a seed gives the same noise on every device.
        "generator": torch.Generator().manual_seed(seed),
        "height": size and size[0],
        "width": size and size[1],
        "true_cfg_scale" if real else "guidance_scale": guidance,
        "negative_prompt": negative if negative or real else None,
        "use_resolution_binning": None if size is None else False,  # this very size, not one near it
        "callback_on_step_end": callback and _step_callback(callback),
        "callback": callback,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None and name in parameters}
    if "callback_on_step_end" in arguments:
        arguments.pop("callback", None)
    return model(**arguments).images[0]


def check_size(pipeline, size: tuple[int, int] | None) -> None:
    """Raises ToushiError if a side is no multiple of the pipeline's image cells."""
    unit = family_of(pipeline).cell_pixels(pipeline)
    if size is None or not any(pixels % unit for pixels in size):
        return
    near = "x".join(str(max(unit, round(pixels / unit) * unit)) for pixels in size)
    raise ToushiError(
        f"a {type(pipeline).__name__} has image cells of {unit} pixels, so height and width must be multiples of {unit}, "
        f"but {size[0]}x{size[1]} came; the nearest is {near}"
    )


def _step_callback(callback: Callable) -> Callable:
    """As `callback_on_step_end` of diffusers."""

    def on_step_end(pipeline, step, timestep, tensors):
        callback(step, tensors.get("latents"))
        return tensors

    return on_step_end
