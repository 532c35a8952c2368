"""What comes out: steps of the scheduler, latents on their grid, pictures, and what is worth telling of a run."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toushi.probe.pipelines.family import SchedulerStep


def step(step: Callable, arguments: Mapping[str, Any]) -> SchedulerStep:
    others = arguments.get("kwargs", {})
    result = step(**{name: value for name, value in arguments.items() if name != "kwargs"}, **others)
    return SchedulerStep(result, result[0] if isinstance(result, tuple) else result.prev_sample, None)


def place(scheduler, arguments: Mapping[str, Any], next: int) -> int:
    """The index of this step: the next one if it has the time that comes next, else the first that has its time."""
    times, time = scheduler.timesteps, arguments["timestep"]
    if next < len(times) and bool(times[next] == time):
        return next
    same = [index for index, other in enumerate(times.tolist()) if other == float(time)]
    return next if not same else min(same, key=lambda index: (index < next, index))


def pictures(result) -> list | None:
    """PIL pictures of what a pipeline returns; None if it was asked for latents."""
    images = result[0] if isinstance(result, tuple) else result.images
    if isinstance(images, np.ndarray) and images.ndim == 4 and images.shape[-1] == 3:
        return [Image.fromarray((image * 255).round().astype("uint8")) for image in images]
    if isinstance(images, list) and all(isinstance(image, Image.Image) for image in images):
        return images
    return None


def about(pipeline, arguments: Mapping[str, Any]) -> dict[str, Any]:
    generator = arguments.get("generator")
    seeds = [_seed(one) for one in generator] if isinstance(generator, list) else _seed(generator)
    about = {
        "guidance": arguments.get("guidance_scale"),
        "sampler": type(pipeline.scheduler).__name__,
        "seed": seeds,
    }
    if arguments.get("true_cfg_scale") is not None:
        about["true_guidance"] = arguments["true_cfg_scale"]
    if arguments.get("strength") is not None:
        about["strength"] = arguments["strength"]
    return about


def _seed(generator: torch.Generator | None) -> int | None:
    return None if generator is None else generator.initial_seed()


def unpacked(latents: Tensor, grid: tuple[int, int]) -> Tensor:
    """Latents [row, cell, 4 * channel], packed two by two, as [row, channel, y, x]."""
    if latents.dim() != 3:
        return latents
    packed = latents.unflatten(1, grid).unflatten(3, (-1, 2, 2))
    return packed.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def own_step(step: Callable, arguments: Mapping[str, Any]) -> SchedulerStep:
    latents = step(**arguments)
    return SchedulerStep(latents, latents, None)


def own_evaluated(velocity: Tensor, arguments: Mapping[str, Any]) -> SchedulerStep:
    return SchedulerStep(velocity, arguments["latents"], None)
