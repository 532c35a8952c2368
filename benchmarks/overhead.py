"""Sampling with and without recording: every step, every cross-attention and encoder layer, cond and uncond.

On the shipped model, and on two shapes as large as real ones, where the peer records the same. Traces are written to
a temporary folder, and removed while no clock runs; the prompt is encoded anew each time, as a new one would be.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import peer
from benchmarks.interleaved import ratios
from benchmarks.shapes import SHAPES, SMALL
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.family import Model
from toushi.probe.recording.record import record

PROMPT = "左边是猫，右边是月亮，夜晚"
STEPS = 4  # of the large shapes, whose steps take a second or more
LARGE = {"sum": 1.02, "mean": 1.02, "heads": 1.10}
GOALS = {"mini-unet": {"mean": 1.10}, **dict.fromkeys(SHAPES, LARGE)}
SECONDS = 170  # for each of them, so that the whole takes about twelve minutes


def arms(model: Model, draw: Callable[[], object], home: Path) -> dict[str, Callable[[], object]]:
    def recorded(keep: str):
        def run() -> None:
            with record(model, home / keep, keep=keep):
                draw()

        return run

    return {"bare": draw, "bare again": draw} | {keep: recorded(keep) for keep in ("sum", "mean", "heads")}


def measure(model: MiniUNet, rounds: int, quick: bool = False) -> list[dict]:
    def draw():
        model.embedding_cache.clear()
        return model.sample(PROMPT, steps=2 if quick else 20)

    found = []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)

        def cleared() -> None:
            for path in home.iterdir():
                shutil.rmtree(path)

        rows = ratios(arms(model, draw, home), rounds if quick else 3 * rounds, cleared, SECONDS / 3)
        found += [{"model": "mini-unet", **row} for row in rows]
        for shape, make in list((SMALL if quick else SHAPES).items())[:2]:
            pipeline, draw_shape = make(1 if quick else STEPS)
            every = arms(pipeline, draw_shape, home)
            if peer.is_installed():
                every[peer.NAME] = lambda of=(pipeline, draw_shape): peer.record_attention(*of)
            found += [{"model": shape, **row} for row in ratios(every, rounds, cleared, SECONDS)]
    return [row | {"goal": GOALS.get(row["model"], {}).get(row["arm"], "")} for row in found]
