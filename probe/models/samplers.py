"""From noise to a picture along the flow: x_t = (1 - t) picture + t noise, velocity = noise - picture.

(Lipman et al. 2023, Liu et al. 2023.) `Scheduler` keeps the times of a run; `step` moves the latents over one
interval. The velocity is asked for inside `step`, so whatever is evaluated there belongs to that step.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from toushi.probe.base.errors import ToushiError

Velocity = Callable[[Tensor, float], Tensor]


def shifted_times(steps: int, shift: float) -> Float[Tensor, " steps+1"]:
    """Times from 1 to 0; a shift above 1 spends more of them near the noise (Esser et al. 2024, eq. 23)."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * times / (1 + (shift - 1) * times)


def euler(velocity_of: Velocity, latents: Tensor, time: float, following: float) -> Tensor:
    return latents + (following - time) * velocity_of(latents, time)


def heun(velocity_of: Velocity, latents: Tensor, time: float, following: float) -> Tensor:
    """Second order: the mean of the velocities at both ends. The last step ends at 0 and is plain Euler's."""
    velocity = velocity_of(latents, time)
    ahead = latents + (following - time) * velocity
    if following == 0:
        return ahead
    return latents + (following - time) * (velocity + velocity_of(ahead, following)) / 2


SAMPLERS = {"euler": euler, "heun": heun}


class Scheduler:
    """The times of one run, and the sampler that walks them."""

    def __init__(self, shift: float = 1.5):
        self.shift = shift

    def set_timesteps(self, steps: int, sampler: str = "euler") -> None:
        if steps < 1:
            raise ToushiError(f"steps must be at least 1, but {steps} came; 20 is a good number")
        if sampler not in SAMPLERS:
            raise ToushiError(f"unknown sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
        self.sampler = sampler
        self.times = shifted_times(steps, self.shift)

    def step(self, velocity_of: Velocity, latents: Tensor, index: int) -> Tensor:
        """Latents at times[index + 1] from latents at times[index]."""
        time, following = self.times[index].item(), self.times[index + 1].item()
        return SAMPLERS[self.sampler](velocity_of, latents, time, following)
