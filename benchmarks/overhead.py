"""Sampling with and without recording: every step, every cross-attention and encoder layer, cond and uncond."""

import tempfile
from pathlib import Path

from benchmarks.turns import ratios
from probe.record import record

PROMPT = "左边是猫，右边是月亮，夜晚"


def measure(model, rounds: int) -> list[dict]:
    def bare() -> None:
        model.sample(PROMPT, steps=20)

    def recorded(keep: str):
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder, record(model, Path(folder) / "run", keep=keep):
                model.sample(PROMPT, steps=20)

        return run

    arms = {"bare": bare, "bare again": bare} | {keep: recorded(keep) for keep in ("sum", "mean", "heads")}
    return ratios(arms, rounds)
