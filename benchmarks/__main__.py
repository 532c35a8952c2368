"""What recording costs, measured on this machine.

    python -m benchmarks            # everything, about twelve minutes on two idle cores
    python -m benchmarks overhead   # one of: overhead, memory, exactness, reading, command
    python -m benchmarks --quick    # only whether it runs: the numbers say nothing
    python -m benchmarks gpu        # on a GPU, the released architectures at full size; see its --help

Times are ratios within one process: the arms take turns, each round gives one ratio to the bare run beside it, and
the median is told with the whole range. `bare again` is the noise floor. The tables go to the screen, the numbers to
runs/benchmarks.json.
"""

import json
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import torch
import tyro

from benchmarks import command, exactness, gpu, memory, overhead, peer, reading
from toushi.probe.pipelines.load import load

PARTS = {
    "overhead": (overhead, "Time of recorded sampling, as a ratio to the same without recording"),
    "memory": (memory, "Peak memory of a process that records so many steps, MB"),
    "exactness": (exactness, "Largest difference from an explicit softmax in fp64, before storage, and from the peer"),
    "reading": (reading, "One word over all steps of a trace of 30 layers, 30 steps, 64 tokens, 64x64 cells"),
    "command": (command, "`toushi trace`, 20 steps, from the shell, against `--no-record`"),
}


@dataclass(frozen=True)
class Config:
    part: Annotated[tyro.conf.Positional[Literal["all", *PARTS]], tyro.conf.arg(metavar="PART")] = "all"  # type: ignore[valid-type]
    """What is measured."""
    rounds: int = 7
    """How often the arms take turns."""
    quick: bool = False
    """One round of hardly any steps."""
    out: Path = Path("runs/benchmarks.json")


def main(config: Config) -> None:
    model = load("mini-unet", "cpu", threads=torch.get_num_threads())
    found = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "weights_sha256": model.weights_sha256,
        "rounds": config.rounds,
        "peer": metadata.version("attention-map-diffusers") if peer.is_installed() else None,
    }
    for name, (part, title) in PARTS.items():
        if config.part in ("all", name):
            print(f"\n{title}", file=sys.stderr)
            rows = part.measure(model, 1 if config.quick else config.rounds, config.quick)
            print(f"\n{title}\n\n{pd.DataFrame(rows).to_string(index=False)}", flush=True)
            found[name] = rows
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["gpu"]:
        gpu.main(tyro.cli(gpu.GPUConfig, prog="benchmarks gpu", description=gpu.__doc__, args=sys.argv[2:]))
    else:
        main(tyro.cli(Config, description=__doc__))
