"""The samplers against flows whose end is known."""

import pytest
import torch

from toushi.probe.models.samplers import Scheduler, shifted_times


def run(sampler: str, steps: int, velocity_of, start):
    scheduler = Scheduler()
    scheduler.set_timesteps(steps, sampler)
    for index in range(steps):
        start = scheduler.step(velocity_of, start, index)
    return start


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 7])
def test_a_straight_flow_is_followed_exactly(sampler, steps):
    noise, picture = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(run(sampler, steps, lambda *_: noise - picture, noise), picture)


def test_heun_is_of_second_order():
    """dx/dt = x has x(0) = x(1) / e."""
    start = torch.ones(1, dtype=torch.float64)
    errors = {
        (name, n): abs(run(name, n, lambda x, t: x, start).item() - torch.e**-1)
        for name in ("euler", "heun")
        for n in (20, 40)
    }
    assert errors["euler", 20] / errors["euler", 40] == pytest.approx(2, rel=0.15)
    # The last interval is Euler's, so its own error, of the third of a small interval, remains beside the second order.
    assert errors["heun", 20] / errors["heun", 40] > 3
    assert errors["heun", 40] < errors["euler", 40] / 5


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_times_fall_from_noise_to_picture(steps):
    times = shifted_times(steps, 1.5)
    assert times[0] == 1 and times[-1] == 0 and len(times) == steps + 1
    assert (times.diff() < 0).all()
