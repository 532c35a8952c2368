"""How a scheduler of diffusers steps: what it is called with, what it returns, and which step of the schedule it is."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from toushi.probe.pipelines.family import Arguments, SchedulerStep


class DiffusersScheduler(Protocol):
    config: Mapping[str, Any]
    timesteps: Tensor


class SchedulerOutput(Protocol):
    prev_sample: Tensor


def call_step(step: Callable[..., tuple | SchedulerOutput], arguments: Arguments) -> SchedulerStep:
    """The step that `scheduler.step` makes with these arguments."""
    more = arguments.get("kwargs", {})
    result = step(**{name: value for name, value in arguments.items() if name != "kwargs"}, **more)
    return SchedulerStep(result, result[0] if isinstance(result, tuple) else result.prev_sample, None)


def step_index(scheduler: DiffusersScheduler, arguments: Arguments, expected: int) -> int:
    """Index of the step with this timestep: the expected one if its timestep is equal, else the first later one.

    Some schedules have a timestep twice, and an image-to-image run begins at a later one.
    """
    times, time = scheduler.timesteps, arguments["timestep"]
    # A pipeline goes through `timesteps`, which gives views: their place in memory tells the step, and on a GPU a
    # comparison would wait for all work.
    if (
        isinstance(time, Tensor)
        and time.dim() == 0
        and time.data_ptr() == times[expected : expected + 1].data_ptr() != 0
    ):
        return expected
    if expected < len(times) and bool(times[expected] == time):
        return expected
    same = [index for index, other in enumerate(times.tolist()) if other == float(time)]
    return expected if not same else min(same, key=lambda index: (index < expected, index))


def timesteps(scheduler: DiffusersScheduler) -> list[float]:
    """The timestep of each step, and 0 for the end."""
    return [*scheduler.timesteps.tolist(), 0.0]
