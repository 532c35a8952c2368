"""A picture that one already has: noised, evaluated once, and recorded; or inverted to the noise that draws it.

    trace_picture(model, "runs/cat", "左边是猫", "cat.png", at=0.5)

The trace is that of any run, with one step. Its `image.png` is the given picture, and `expected.png` beside it shows what
the model expects at that noise. A model of ours evaluates its denoiser once. A pipeline of diffusers is called as its
image-to-image pipeline, whose schedule ends after the first step.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toushi.probe.attribution.denoising import clean_latents, denoise_at, guidance_off, nearest, noise_level
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import MiniUNet, to_images
from toushi.probe.models.samplers import heun, shifted_times
from toushi.probe.pipelines.diffusers_family import source_image_sha256
from toushi.probe.pipelines.family import Family, Model, unwrap
from toushi.probe.pipelines.generate import check_size, default_steps
from toushi.probe.pipelines.private_api import progress_bar_config
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.record import SourcePicture, record
from toushi.probe.session.patching import patch_method
from toushi.probe.session.sampling_session import session_of
from toushi.probe.trace.image_file import save_picture
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.picture_trace import Trace

EXPECTED = "expected.png"
SOLVER_STEPS = 20  # of an inversion, and of the round trip


class Inversion(NamedTuple):
    """The noise that draws a picture without guidance, and how exactly it does."""

    latents: Tensor  # [1, c, y, x] at time 1; for `model.sample(prompt, latents=…, guidance=1, sampler="heun")`
    picture: Image.Image  # of the round trip: picture, latents, noise, latents, picture
    psnr: float  # of the round trip, in dB
    vae_psnr: float  # of the VAE alone, which the round trip cannot exceed by much


def trace_picture(
    model: Model,
    folder: str | Path,
    prompt: str,
    image: Image.Image | str | Path,
    at: float = 0.5,
    *,
    seed: int = 0,
    **options: object,
) -> Trace:
    """The trace of one evaluation, without guidance, of the picture noised by `seed` to the time `at`.

    `at` is 1 at noise and 0 at the picture; a pipeline takes the nearest step of its schedule. `options` are those of
    `record`: keep, words, sites, …. Raises ToushiError for a file that is no picture, a picture with transparency or of a
    size that the model does not draw, a time outside (0, 1], and a pipeline without an image-to-image pipeline.
    """
    picture = read_picture(image)
    if not 0 < at <= 1:
        raise ToushiError(
            f"at must be above 0 (the picture) and at most 1 (noise), but {at} came; 0.5 is a good choice"
        )
    model = image_pipeline(model)
    family = family_of(model)
    if family.evaluate is None:
        check_size(model, (picture.height, picture.width))
    denoising = None if family.evaluate is None else denoise_at(model, prompt, at, seed=seed, image=picture)
    recording = record(model, folder, **options)  # pyright: ignore[reportArgumentType]
    facts = {"seed": seed, "strength": at, "source_image_sha256": source_image_sha256(picture)}
    recording.source = SourcePicture(picture, facts)
    with recording:
        if denoising is None:
            expected = _call_once(model, family, prompt, picture, at, seed)
        else:
            denoised = denoising.denoised([prompt])
            expected = to_images(getattr(model, "decode")(denoised))[0]  # noqa: B009  # all models of ours have it
    save_picture(expected, Path(folder) / EXPECTED)
    return open_trace(folder)


def trace_inversion(
    model: Model,
    folder: str | Path,
    prompt: str,
    image: Image.Image | str | Path,
    *,
    solver_steps: int = SOLVER_STEPS,
    **options: object,
) -> tuple[Trace, Inversion]:
    """The trace of the run that draws the picture from its inverted noise, and the inversion.

    `image.png` is the picture of the round trip; the manifest has its PSNR in `inversion`. Raises ToushiError as
    `trace_picture`, and for models other than mini-unet.
    """
    picture = read_picture(image)
    inversion = invert(model, prompt, picture, steps=solver_steps)
    assert isinstance(model, MiniUNet)  # checked by `invert`
    recording = record(model, folder, **options)  # pyright: ignore[reportArgumentType]
    decibels = {"psnr": round(inversion.psnr, 2), "vae_psnr": round(inversion.vae_psnr, 2)}
    facts = {"source_image_sha256": source_image_sha256(picture), "inversion": {"steps": solver_steps, **decibels}}
    recording.source = SourcePicture(None, facts)
    with recording:
        size = picture.height, picture.width
        model.sample(prompt, latents=inversion.latents, steps=solver_steps, guidance=1, sampler="heun", size=size)
    return open_trace(folder), inversion


def invert(model: Model, prompt: str, image: Image.Image | str | Path, *, steps: int = SOLVER_STEPS) -> Inversion:
    """The noise from which the model draws the picture: its ODE backwards in time, without guidance, by Heun's method.

    Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021, section 4.3. Raises
    ToushiError for models other than mini-unet and its twins, and for pictures that they do not take.
    """
    model = unwrap(model)
    if not isinstance(model, MiniUNet):
        raise ToushiError(f"a picture is inverted by mini-unet and its twins; {type(model).__name__} came")
    picture = read_picture(image)
    clean = model.encode(picture)
    latents, times = clean, shifted_times(steps, model.scheduler.shift).tolist()[::-1]
    for t, t_next in pairwise(times):
        latents = heun(lambda x, time: model.denoise(x, time, prompt).float(), latents, t, t_next)
    size = picture.height, picture.width
    again = model.sample(prompt, latents=latents, steps=steps, guidance=1, sampler="heun", size=size)
    through_vae = to_images(model.decode(clean))[0]
    return Inversion(latents, again, psnr(picture, again), psnr(picture, through_vae))


def psnr(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures, in dB; infinite for equal ones."""
    a, b = (np.asarray(image, dtype=np.float64) for image in (first, second))
    error = np.mean((a - b) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def read_picture(image: Image.Image | str | Path) -> Image.Image:
    """The picture, or that of the file, as RGB and turned as its camera says. Raises ToushiError for transparency."""
    from PIL import ImageOps

    if isinstance(image, Image.Image):
        name, picture = "the picture", image
    else:
        name = str(image)
        if not Path(image).is_file():
            raise ToushiError(f"there is no picture {name}; name a file such as cat.png")
        try:
            with Image.open(image) as file:
                picture = ImageOps.exif_transpose(file)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ToushiError(f"{name} is not a picture that can be read ({error}); use a PNG or JPEG file") from None
    if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
        raise ToushiError(
            f"{name} is partly transparent, and the model draws no transparency: lay it on a colour first"
        )
    return picture.convert("RGB")


# --- pipelines of diffusers


def image_pipeline(model: Model) -> Model:
    """The image-to-image pipeline that has the parts of this one; the model itself if it is one, or a model of ours."""
    model = unwrap(model)
    if family_of(model).evaluate is not None or _takes_image(model):
        return model
    from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image

    name = type(model).__name__
    try:
        pipeline = AutoPipelineForImage2Image.from_pipe(model)
        family_of(pipeline)
    except (ValueError, ToushiError):
        pipeline = None
    if pipeline is None or not _takes_image(pipeline):
        raise ToushiError(
            f"diffusers knows no image-to-image pipeline for a {name}: pass one with `image` and `strength`"
        )
    if session_of(model) is not None:
        raise ToushiError(
            f"this {name} is edited or followed, but its image-to-image pipeline computes: follow that one"
        )
    pipeline.set_progress_bar_config(**progress_bar_config(model))
    return pipeline


def _takes_image(pipeline: Model) -> bool:
    parameters = inspect.signature(type(pipeline).__call__).parameters
    return {"image", "strength"} <= parameters.keys() and not {"mask_image", "control_image"} & parameters.keys()


def _call_once(pipeline: Model, family: Family, prompt: str, picture: Image.Image, at: float, seed: int) -> Image.Image:
    """The picture that the pipeline expects after its evaluation at the step nearest to `at`."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    arguments = {
        "prompt": prompt,
        "image": picture,
        "strength": at,
        "height": picture.height,
        "width": picture.width,
        "num_inference_steps": default_steps(pipeline),
        "generator": torch.Generator().manual_seed(seed),
        **guidance_off(pipeline, family),
    }
    assert callable(pipeline), "a family without `evaluate` is called"
    with _only_step(pipeline, family, at):
        result = pipeline(**{name: value for name, value in arguments.items() if name in parameters})
    images = family.images(result)
    assert images is not None, "pictures were asked for"
    return images[0]


@contextmanager
def _only_step(pipeline: Model, family: Family, at: float) -> Iterator[None]:
    """Inside, a run has only the step nearest to `at`, and that step goes to the clean latents."""
    scheduler = getattr(pipeline, family.scheduler)
    order = getattr(scheduler, "order", 1)
    begin = [0]  # index in the schedule

    def wrap_timesteps(get_timesteps: Callable) -> Callable:
        signature = inspect.signature(get_timesteps)

        def wrapper(*args: object, **named: object) -> tuple[Tensor, int]:
            bound = signature.bind(*args, **named)
            count = bound.arguments["num_inference_steps"]
            levels = [noise_level(scheduler, timestep) for timestep in scheduler.timesteps[::order][:count]]
            step = nearest(levels, at)
            begin[0] = step * order
            bound.arguments["strength"] = Fraction(count - step, count)  # a float may round to the step beside it
            return get_timesteps(*bound.args, **bound.kwargs)[0][:1], 1

        return wrapper

    def wrap_step(step: Callable) -> Callable:
        signature = inspect.signature(step)

        def wrapper(*args: object, **named: object) -> object:
            given = signature.bind(*args, **named).arguments
            clean = clean_latents(scheduler, given["model_output"], given["sample"], given["timestep"], begin[0])
            result = step(*args, **named)
            if isinstance(result, tuple):
                return (clean.to(result[0]), *result[1:])
            return type(result)(prev_sample=clean.to(result.prev_sample))

        return wrapper

    assert family.timesteps_method is not None, "image-to-image pipelines shorten their schedule"
    with (
        patch_method(pipeline, family.timesteps_method, wrap_timesteps),
        patch_method(scheduler, "step", wrap_step),
    ):
        yield
