"""From noise to a picture along the flow: x_t = (1 - t) picture + t noise, velocity = noise - picture.

(Lipman et al. 2023, Liu et al. 2023.) `Scheduler` has the times of a run; `step` moves the latents over one interval.
The velocity is computed inside `step`, so every evaluation there belongs to that step.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from toushi.probe.base.errors import ToushiError

Latents = Float[Tensor, "*latents"]  # [row, channel, y, x] in our models
VelocityFunction = Callable[[Latents, float], Latents]  # (latents, time) -> velocity


def shifted_times(steps: int, shift: float) -> Float[Tensor, " {steps}+1"]:
    """Times from 1 (noise) to 0 (picture). A shift above 1 puts more of them near the noise (Esser et al. 2024, eq. 23)."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * times / (1 + (shift - 1) * times)


def euler(velocity_of: VelocityFunction, latents: Latents, t: float, t_next: float) -> Latents:
    """Latents at `t_next` from latents at `t`: first order, one evaluation."""
    return latents + (t_next - t) * velocity_of(latents, t)


def heun(velocity_of: VelocityFunction, latents: Latents, t: float, t_next: float) -> Latents:
    """Latents at `t_next` from latents at `t`: second order, the mean of the velocities at both ends.

    The last step, which ends at 0, is one of Euler's.
    """
    velocity = velocity_of(latents, t)
    predicted = latents + (t_next - t) * velocity
    if t_next == 0:
        return predicted
    return latents + (t_next - t) * (velocity + velocity_of(predicted, t_next)) / 2


SAMPLERS = {"euler": euler, "heun": heun}


class Scheduler:
    """The times of one run, and the sampler that steps through them."""

    def __init__(self, shift: float = 1.5):
        self.shift = shift

    def set_timesteps(self, steps: int, sampler: str = "euler") -> None:
        """Begins a run. `sampler` is a name of SAMPLERS."""
        if steps < 1:
            raise ToushiError(f"steps must be at least 1, but {steps} came; 20 is a good number")
        if sampler not in SAMPLERS:
            raise ToushiError(f"unknown sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
        self.sampler = sampler
        self.times = shifted_times(steps, self.shift)

    def step(self, velocity_of: VelocityFunction, latents: Latents, index: int) -> Latents:
        """Latents at times[index + 1] from latents at times[index]."""
        t, t_next = self.times[index].item(), self.times[index + 1].item()
        return SAMPLERS[self.sampler](velocity_of, latents, t, t_next)
