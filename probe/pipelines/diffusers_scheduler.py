"""How a scheduler of diffusers steps: what it is called with, what it returns, and which step of the schedule it is."""

from collections.abc import Callable, Mapping
from typing import Any

from toushi.probe.pipelines.family import SchedulerStep


def call_step(step: Callable, arguments: Mapping[str, Any]) -> SchedulerStep:
    """Calls `scheduler.step` with these arguments."""
    more = arguments.get("kwargs", {})
    result = step(**{name: value for name, value in arguments.items() if name != "kwargs"}, **more)
    return SchedulerStep(result, result[0] if isinstance(result, tuple) else result.prev_sample, None)


def step_index(scheduler, arguments: Mapping[str, Any], expected: int) -> int:
    """The index of the step with this timestep: the expected one if it has it, else the first that has it.

    Some schedules hold a timestep twice, and an image-to-image run begins at a later one.
    """
    times, time = scheduler.timesteps, arguments["timestep"]
    if expected < len(times) and bool(times[expected] == time):
        return expected
    same = [index for index, other in enumerate(times.tolist()) if other == float(time)]
    return expected if not same else min(same, key=lambda index: (index < expected, index))


def timesteps(scheduler) -> list[float]:
    """The timestep of each step, and 0 for the end."""
    return [*scheduler.timesteps.tolist(), 0.0]
