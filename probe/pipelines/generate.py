"""`generate(model, prompt)`: one picture of any model, ours by `sample`, others by the call of a diffusers pipeline."""

import inspect
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import Model
from toushi.probe.pipelines.load_options import options_of
from toushi.probe.pipelines.out_of_memory import explain_out_of_memory
from toushi.probe.pipelines.registry import family_of

StepCallback = Callable[[int, Tensor], object]  # (step index, latents)


@runtime_checkable
class SamplingModel(Protocol):
    """A model that is sampled by `sample`, not by a call."""

    sample: Callable[..., Image.Image]


def generate(
    model: Model,
    prompt: str,
    negative: str = "",
    *,
    steps: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
    sampler: str | None = None,
    size: tuple[int, int] | None = None,
    callback: StepCallback | None = None,
) -> Image.Image:
    """The picture of the prompt. `size` is (height, width) in pixels. The model decides whatever is None.

    `callback` is called after each step, with its index and the latents. Raises ToushiError for arguments that the model
    does not take.
    """
    check_arguments(model, negative, guidance, sampler, size)
    steps = steps or default_steps(model)
    with explain_out_of_memory("this picture", options_of(model), size):
        if isinstance(model, SamplingModel):
            options = {"guidance": guidance, "sampler": sampler, "size": size}
            options = {name: value for name, value in options.items() if value is not None}
            return model.sample(prompt, negative, steps=steps, seed=seed, callback=callback, **options)
        return _call_pipeline(model, prompt, negative, steps, seed, guidance, size, callback)


def default_steps(model: Model | type[Model]) -> int:
    """The model's own number of steps, or the default of its sampling method; 20 if it has none."""
    if isinstance(steps := getattr(model, "default_steps", None), int):
        return steps
    parameter = _parameters(model).get("steps" if hasattr(model, "sample") else "num_inference_steps")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else 20


def check_arguments(
    model: Model,
    negative: str = "",
    guidance: float | None = None,
    sampler: str | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """Raises ToushiError for arguments that the model does not take, or would ignore. `generate` calls it first."""
    parameters, kind = _parameters(model), type(model).__name__
    if isinstance(model, SamplingModel):
        name = getattr(model, "name", kind)
        if sampler is not None and "sampler" not in parameters:
            raise ToushiError(f"{name} brings its own sampler: leave the sampler out ({sampler} came)")
        default = getattr(model, "default_guidance", parameters["guidance"].default)
        strength = default if guidance is None else guidance
        return _check_negative(negative, strength, strength == getattr(model, "unguided", None), name)
    family = family_of(model)
    check_size(model, size)
    if sampler is not None:
        own = type(getattr(model, family.scheduler)).__name__
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


def _check_negative(negative: str, guidance: float | None, is_off: bool, name: str) -> None:
    if negative and is_off:
        raise ToushiError(
            f"a negative prompt needs guidance, but guidance {guidance:g} turns it off for {name}: give a larger number, "
            "or leave the negative prompt out"
        )


def _parameters(model: Model | type[Model]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.sample if isinstance(model, SamplingModel) else type(model).__call__).parameters


def _default_true_guidance(parameters: Mapping[str, inspect.Parameter]) -> float:
    """The default of `true_cfg_scale`, the real guidance of a guidance-distilled pipeline; 0 if it has none."""
    return parameters["true_cfg_scale"].default or 0 if "true_cfg_scale" in parameters else 0


def _call_pipeline(pipeline: Model, prompt, negative, steps, seed, guidance, size, callback) -> Image.Image:
    """The picture, by the call of a diffusers pipeline, with the arguments that its call has parameters for."""
    parameters = _parameters(pipeline)
    # A guidance-distilled pipeline has two kinds of guidance. `guidance_scale` is an input of the model;
    # `true_cfg_scale` is the real one, with a second evaluation on the negative prompt. The real one is meant if it is
    # on by default, if it is the only one, or if there is a negative prompt.
    is_only = "guidance_scale" not in parameters
    real = "true_cfg_scale" in parameters and (bool(negative) or is_only or _default_true_guidance(parameters) > 1)
    arguments = {
        "prompt": prompt,
        "num_inference_steps": steps,
        # On the CPU, so that a seed gives the same noise on every device.
        "generator": torch.Generator().manual_seed(seed),
        "height": size and size[0],
        "width": size and size[1],
        "true_cfg_scale" if real else "guidance_scale": guidance,
        "negative_prompt": negative if negative or real else None,
        "enable_prompt_rewrite": False,  # LongCat-Image and ERNIE-Image would draw another prompt
        "use_pe": False,
        "use_resolution_binning": None if size is None else False,  # this very size, not one near it
        "callback_on_step_end": callback and _step_callback(callback),
        "callback": callback,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None and name in parameters}
    if "callback_on_step_end" in arguments:
        arguments.pop("callback", None)
    assert callable(pipeline), "a family whose models are not called has a method `sample`"
    return pipeline(**arguments).images[0]


def check_size(pipeline: Model, size: tuple[int, int] | None) -> None:
    """Raises ToushiError if a side is no multiple of the pipeline's image cells."""
    unit = family_of(pipeline).cell_pixels(pipeline)
    if size is None or not any(pixels % unit for pixels in size):
        return
    near = "x".join(str(max(unit, round(pixels / unit) * unit)) for pixels in size)
    raise ToushiError(
        f"a {type(pipeline).__name__} has image cells of {unit} pixels, so height and width must be multiples of {unit}, "
        f"but {size[0]}x{size[1]} came; the nearest is {near}"
    )


def _step_callback(callback: StepCallback) -> Callable:
    """The same callback as `callback_on_step_end` of diffusers."""

    def on_step_end(pipeline, step, timestep, tensors):
        callback(step, tensors.get("latents"))
        return tensors

    return on_step_end
