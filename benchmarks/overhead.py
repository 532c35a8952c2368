"""Sampling with and without recording: every step, every cross-attention and encoder layer, cond and uncond.

On the shipped model, and on two shapes as large as real ones, where the peer attention-map-diffusers 1.0.0 records the
same (all steps, heads averaged, its `compute()` included).
"""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from benchmarks.shapes import SHAPES
from benchmarks.turns import ratios
from probe.record import record

PROMPT = "左边是猫，右边是月亮，夜晚"
STEPS = 4  # of the large shapes, whose steps take a second or more


def arms(model, draw: Callable[[], object]) -> dict[str, Callable[[], object]]:
    def recorded(keep: str):
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder, record(model, Path(folder) / "run", keep=keep):
                draw()

        return run

    return {"bare": draw, "bare again": draw} | {keep: recorded(keep) for keep in ("sum", "mean", "heads")}


def peer(pipeline, draw: Callable[[], object]) -> Callable[[], object]:
    def run():
        from attention_map_diffusers import AttentionCapture

        with AttentionCapture(pipeline, timesteps="all", heads="mean", max_capture_bytes=None) as capture:
            draw()
        return capture.compute()

    return run


def measure(model, rounds: int) -> list[dict]:
    rows = ratios(arms(model, lambda: model.sample(PROMPT, steps=20)), rounds)
    found = [{"model": "mini-unet", **row} for row in rows]
    for name, make in SHAPES.items():
        pipeline, draw = make(STEPS)
        every = arms(pipeline, draw)
        if find_spec("attention_map_diffusers"):
            every["attention-map-diffusers"] = peer(pipeline, draw)
        found += [{"model": name, **row} for row in ratios(every, rounds)]
    return found
