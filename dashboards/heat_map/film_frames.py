"""The pictures of a run for the browser: the final one, what the model expected at each step, and what it saw."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8

from toushi.probe.analysis.latent_colours import colour_latents
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.trace_errors import DamagedTrace

MAX_SIDE = 128  # pixels of a frame
Frames = UInt8[np.ndarray, "step y x 3"]


def final_image(trace: Trace) -> UInt8[np.ndarray, "y x 3"] | None:
    """The picture of the trace; None if there is none or it cannot be read. The maps can be shown without it."""
    try:
        return trace.image()
    except DamagedTrace:
        return None


def expected_frames(trace: Trace, steps: Iterable[int]) -> Frames | None:
    """The previews of these steps; None if the trace has none."""
    frames = [trace.preview(step) for step in steps]  # empty if only the sum of the steps was kept
    if not frames or any(frame is None for frame in frames):
        return None
    return _fit(np.stack([np.asarray(frame) for frame in frames]))


def seen_frames(trace: Trace, steps: Iterable[int]) -> Frames | None:
    """The noisy latents after each of these steps, coloured; None if the latents or the finished picture are missing."""
    image, steps = final_image(trace), list(steps)
    if image is None or not steps or trace.steps[-1] != trace.manifest.steps.count - 1:
        return None
    latents = [latent.values for step in [*steps, trace.steps[-1]] if (latent := trace.latent(step)) is not None]
    if len(latents) <= len(steps):
        return None
    return _fit(colour_latents(np.nan_to_num(np.stack(latents)), image)[:-1])


def _fit(frames: Frames) -> Frames:
    stride = -(-max(frames.shape[1:3]) // MAX_SIDE)
    return frames[:, ::stride, ::stride]
