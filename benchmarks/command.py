"""The whole command, model loading and figure included, as a person at the shell waits for it."""

import sys
import tempfile
from pathlib import Path

from benchmarks.interleaved import ratios
from benchmarks.memory import peak_memory
from toushi.probe.models.mini_unet import MiniUNet

PROMPT = "左边是猫，右边是月亮，夜晚"


def measure(model: MiniUNet, rounds: int, quick: bool = False) -> list[dict]:
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as home:

        def run(name: str, *options: str):
            def once() -> None:
                out = str(Path(home) / name.replace(" ", "-"))
                options_of_all = ("--steps", "2" if quick else "20", "--out", out, "--overwrite")
                memory, code = peak_memory(sys.executable, "-m", "toushi", "trace", PROMPT, *options_of_all, *options)
                if code:
                    raise RuntimeError(f"toushi trace ended with exit code {code}")
                peaks[name] = max(peaks.get(name, 0.0), memory)

            return once

        arms = {"no record": run("no record", "--no-record"), "heads": run("heads")}
        goals = {"heads": 1.10}
        rows = ratios(arms, rounds, seconds=80)
        return [row | {"peak_MB": round(peaks[row["arm"]]), "goal": goals.get(row["arm"], "")} for row in rows]
