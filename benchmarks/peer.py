"""attention-map-diffusers 1.0.0, the strongest other recorder: in memory, in its own process or ours."""

import sys
from collections.abc import Callable
from importlib.util import find_spec

from toushi.probe.pipelines.family import Model

NAME = "attention-map-diffusers"


def is_installed() -> bool:
    return find_spec("attention_map_diffusers") is not None


def record_attention(pipeline: Model, draw: Callable[[], object]):
    """Its maps of the image looking at the text: every step, heads averaged, as `compute()` gives them."""
    from attention_map_diffusers import AttentionCapture

    with AttentionCapture(pipeline, timesteps="all", heads="mean", max_capture_bytes=sys.maxsize) as capture:
        draw()
    return capture.compute()
