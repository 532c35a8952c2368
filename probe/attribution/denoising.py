"""One evaluation of a denoiser, as a function of the prompt: at which latents, and what it predicts there.

`denoise_at` fixes the latents of one time. The `Denoising` that it returns predicts the clean latents for any prompts,
with gradients if they are asked for. Only the prompt differs between two of its evaluations, so all that differs between
two predictions comes from the words.

A model of ours has a method that evaluates its denoiser. A pipeline of diffusers has none, and each family passes the
text to its denoiser in another way. So the pipeline itself is called: its schedule begins at the step of that time, its
denoiser gets the fixed latents, and it is stopped before the scheduler steps.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from toushi.hooks.module_hooks import argument_hooks, input_hook
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.diffusers_scheduler import DiffusersScheduler
from toushi.probe.pipelines.family import Family, Model, submodule, unwrap
from toushi.probe.pipelines.generate import default_steps
from toushi.probe.pipelines.registry import family_of
from toushi.probe.session.patching import patch_method

Denoised = Float[Tensor, "b c y x"]


class CannotExplain(ToushiError):
    """What was asked cannot be explained on this model. The message says why, and what can be asked."""


@dataclass(frozen=True)
class Denoising:
    """The denoiser of a model at fixed latents of one time (1 noise, 0 picture)."""

    model: Model
    family: Family
    prompt: str
    time: float
    evaluate: Callable[[list[str], bool], Tensor]
    latents: Tensor  # the noisy ones, as the sampler has them
    at_latents: Callable[[Tensor], "Denoising"] | None = None  # the same at other noisy latents; None: not possible

    def denoised(self, prompts: Sequence[str], grad: bool = False) -> Denoised:
        """The clean latents that the denoiser predicts for each of the prompts, in latent units. Raises CannotExplain."""
        with torch.set_grad_enabled(grad):
            clean = self.evaluate(list(prompts), grad).float()
        if not clean.isfinite().all():
            raise CannotExplain(
                f"{self.family.name} predicts NaN or infinity at these latents: check them, or load it in another dtype"
            )
        return clean


def denoise_at(
    model: Model,
    prompt: str,
    time: float = 0.5,
    *,
    seed: int = 0,
    image: Image.Image | None = None,
    latents: Tensor | None = None,
    **options: object,
) -> Denoising:
    """The denoiser at the latents of `time`, which is 1 at noise and 0 at the picture.

    With an `image`, or clean `latents` [1, c, y, x], these are noised by `seed` to that time. Without, the model draws the
    prompt with that seed, and the latents of the step nearest to that time are taken. `options` are arguments of the
    model's sampling method (size, steps, …). A model of diffusers takes no `image` and no `latents`. Raises CannotExplain.
    """
    model = unwrap(model)
    family = family_of(model)
    if not 0 < time <= 1:
        raise CannotExplain(f"expected a time above 0 (the picture) and at most 1 (noise), but {time} came")
    if image is not None and latents is not None:
        raise CannotExplain("an image and latents came; give one of them")
    if family.evaluate is None:
        if image is not None or latents is not None:
            raise CannotExplain(
                f"a {type(model).__name__} is explained at latents of its own run: leave image and latents out, give a seed"
            )
        return _pipeline_denoising(model, family, prompt, time, seed, options)
    if image is not None:
        latents = getattr(model, "encode")(image)  # noqa: B009  # both of our models have it
    if latents is None:
        latents, time = _latents_of_run(model, family, prompt, time, seed, options)
    elif latents.dim() != 4 or len(latents) != 1:
        raise CannotExplain(f"expected latents [1, channel, y, x], but an array of shape {tuple(latents.shape)} came")
    else:
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
        latents = (1 - time) * latents + time * noise
    return _own_denoising(model, family, prompt, time, latents)


def _own_denoising(model: Model, family: Family, prompt: str, time: float, latents: Tensor) -> Denoising:
    """Of a model with the velocity noise - picture: the clean latents are x - t v (Liu et al. 2023)."""
    assert family.evaluate is not None
    name = family.evaluate

    def evaluate(prompts: list[str], grad: bool) -> Tensor:
        rows = latents.expand(len(prompts), -1, -1, -1)
        if grad:  # the method without its `no_grad`
            return rows - time * inspect.unwrap(getattr(type(model), name))(model, rows, time, prompts)
        return rows - time * getattr(model, name)(rows, time, prompts)

    def at_latents(other: Tensor) -> Denoising:
        return _own_denoising(model, family, prompt, time, other)

    return Denoising(model, family, prompt, time, evaluate, latents, at_latents)


def _latents_of_run(
    model: Model, family: Family, prompt: str, time: float, seed: int, options: Mapping[str, object]
) -> tuple[Tensor, float]:
    """The latents of the step nearest to `time` in a run of one of our models, and its time."""
    states: list[Tensor] = []
    scheduler = getattr(model, family.scheduler)
    with patch_method(scheduler, "step", lambda step: lambda *values: states.append(values[1]) or step(*values)):
        getattr(model, family.sample)(prompt, seed=seed, **options)
    times = family.timesteps(scheduler)[: len(states)]
    index = nearest(times, time)
    return states[index], times[index]


# --- pipelines of diffusers


SET_HERE = {"self", "prompt", "generator", "output_type", "num_images_per_prompt"}  # by `explain` itself


class _Stop(Exception):
    """Ends a pipeline's call before a step of its scheduler. `arguments` are those of the step, `index` is its number."""

    def __init__(self, arguments: Mapping[str, Tensor], index: int):
        self.arguments, self.index = arguments, index


def _pipeline_denoising(
    pipeline: Model, family: Family, prompt: str, time: float, seed: int, options: Mapping[str, object]
) -> Denoising:
    unguided = guidance_off(pipeline, family)
    allowed = inspect.signature(type(pipeline).__call__).parameters.keys() - SET_HERE
    if wrong := sorted(options.keys() - allowed):
        raise CannotExplain(f"{wrong[0]} is no option here; expected {', '.join(sorted(allowed))}")
    options = {"num_inference_steps": default_steps(pipeline), **options}
    scheduler, denoiser = getattr(pipeline, family.scheduler), submodule(pipeline, family.denoiser)

    def call(prompts: list[str] | str, grad: bool, **changed: object) -> _Stop:
        """Runs the pipeline until it is stopped; with gradients its method without `no_grad`."""
        method = getattr(type(pipeline), "__call__")  # noqa: B004, B009
        generator = torch.Generator().manual_seed(seed)
        arguments = {**options, **changed, "prompt": prompts, "generator": generator, "output_type": "latent"}
        try:
            (inspect.unwrap(method) if grad else method)(pipeline, **arguments)
        except _Stop as stop:
            return stop
        raise CannotExplain(f"{type(pipeline).__name__} did not reach its scheduler")

    inputs: list[tuple[Tensor | list[Tensor], tuple[int, int]]] = []  # latents as the denoiser gets them, and the grid

    def note(name: str, latents: Tensor | list[Tensor], *values: object) -> None:
        read = family.read_inputs(pipeline, dict(zip(family.denoiser_inputs, (latents, *values))))
        inputs[:] = [(latents[:1], read.grid)]

    with argument_hooks({"": (denoiser, family.denoiser_inputs)}, note), _stop_at(scheduler, time):
        run = call(prompt, False)
    (fixed, grid), sample = inputs[0], run.arguments["sample"][:1]

    def expand(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        return fixed * len(value) if isinstance(fixed, list) else fixed.expand(len(value), *fixed.shape[1:])

    def evaluate(prompts: list[str], grad: bool) -> Tensor:
        with input_hook(denoiser, family.denoiser_inputs[0], expand), _stop_at(scheduler, time, skip=run.index):
            step = call(prompts, grad, **unguided).arguments
        rows = sample.expand(len(prompts), *sample.shape[1:])
        clean = clean_latents(scheduler, step["model_output"], rows, step["timestep"], run.index)
        clean = family.unpack_latents(clean, grid)
        return clean.squeeze(2) if clean.dim() == 5 else clean  # some have an axis of frames

    return Denoising(pipeline, family, prompt, noise_level(scheduler, run.arguments["timestep"]), evaluate, sample)


def guidance_off(pipeline: Model, family: Family) -> dict[str, float]:
    """The argument of the pipeline's call that turns guidance off. Raises CannotExplain if there is none."""
    off = {"true_cfg_scale": 1.0, "guidance_scale": family.unguided}
    parameters = inspect.signature(type(pipeline).__call__).parameters
    unguided = dict([(name, scale) for name, scale in off.items() if name in parameters][:1])
    if not unguided:
        raise CannotExplain(f"the call of {type(pipeline).__name__} has no argument that turns guidance off")
    return unguided


@contextmanager
def _stop_at(scheduler: DiffusersScheduler, time: float, skip: int = 0) -> Iterator[None]:
    """Inside, the scheduler raises _Stop at the step nearest to `time`; the schedule begins at the step `skip`."""
    schedule: list[float] = []  # the levels of the steps that are still to come
    taken = [skip]

    def wrap_set(set_timesteps: Callable) -> Callable:
        def wrapper(*args: object, **named: object) -> None:
            set_timesteps(*args, **named)
            scheduler.timesteps = scheduler.timesteps[skip:]
            schedule[:] = [noise_level(scheduler, timestep) for timestep in scheduler.timesteps]
            taken[0] = skip

        return wrapper

    def wrap_step(step: Callable) -> Callable:
        signature = inspect.signature(step)

        def wrapper(*args: object, **named: object) -> object:
            if taken[0] - skip == nearest(schedule, time):
                raise _Stop(signature.bind(*args, **named).arguments, taken[0])
            taken[0] += 1
            return step(*args, **named)

        return wrapper

    with patch_method(scheduler, "set_timesteps", wrap_set), patch_method(scheduler, "step", wrap_step):
        yield


def noise_level(scheduler: DiffusersScheduler, timestep: Tensor | float) -> float:
    """The timestep as a share of those that the model was trained with: 1 is noise."""
    return float(timestep) / scheduler.config["num_train_timesteps"]


def clean_latents(
    scheduler: DiffusersScheduler, output: Tensor, sample: Tensor, timestep: Tensor | float, index: int
) -> Tensor:
    """The clean latents that a scheduler of diffusers reads from the model's output at a timestep, step `index`.

    Flow: x - sigma v (Liu et al. 2023). Noise and v prediction: Salimans and Ho, "Progressive Distillation", 2022,
    appendix D. Schedulers in sigma space have x / sqrt(alpha) (Karras et al. 2022). Raises CannotExplain for others.
    """
    kind, prediction = type(scheduler).__name__, scheduler.config.get("prediction_type", "epsilon")
    sigmas, alphas = getattr(scheduler, "sigmas", None), getattr(scheduler, "alphas_cumprod", None)
    output, sample = output.float(), sample.float()
    if sigmas is not None and ("FlowMatch" in kind or prediction == "flow_prediction"):
        return sample - sigmas[index].to(sample) * output
    if sigmas is not None and any(name in kind for name in ("Euler", "Heun", "LMS", "KDPM")):
        alpha = 1 / (1 + sigmas[index].to(sample) ** 2)
        sample = sample * alpha.sqrt()
    elif alphas is not None:
        alpha = alphas[int(timestep)].to(sample)
    else:
        raise CannotExplain(f"{kind} does not tell its noise levels; use a scheduler such as DDIM or Euler")
    if prediction == "v_prediction":
        return alpha.sqrt() * sample - (1 - alpha).sqrt() * output
    if prediction != "epsilon":
        raise CannotExplain(f"{kind} has the prediction type {prediction!r}; expected epsilon, v_prediction or a flow")
    return (sample - (1 - alpha).sqrt() * output) / alpha.sqrt()


def nearest(times: Sequence[float], time: float) -> int:
    """Index of the time that is nearest to this one; the first of two."""
    return min(range(len(times)), key=lambda index: abs(times[index] - time))
