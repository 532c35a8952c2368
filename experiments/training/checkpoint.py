"""What every training keeps on disk, a checkpoint and a log, and the running average of its weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from toushi.hooks.torch_private import lerp_each_
from toushi.probe.base.atomic_io import atomic_path

LOG = "log.jsonl"


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], samples: int) -> None:
    with atomic_path(folder / "checkpoint.safetensors") as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"samples": str(samples)})


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], int]:
    file = folder / "checkpoint.safetensors"
    with safe_open(file, "pt") as f:
        samples = int(f.metadata()["samples"])
    return load_file(file), samples


def read_log(file: Path) -> dict[int, dict]:
    """The rows of a training log by the samples seen."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {row["samples"]: row for row in rows}


def append_row(file: Path, row: dict) -> None:
    """Adds a line to a training log."""
    with file.open("a") as log:
        print(json.dumps(row, default=str), file=log)


def write_log(file: Path, rows: dict[int, dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))


def hours_of(rows: dict[int, dict]) -> float:
    """The hours of training that the rows of a log count."""
    return max((row["hours"] for row in rows.values()), default=0.0)


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The state of each parameter, as `{prefix}.{number of the parameter}.{key}`."""
    states = optimizer.state_dict()["state"]
    return {f"{prefix}.{number}.{key}": value for number, state in states.items() for key, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Sets the state that `optimizer_tensors` gave; other tensors may stand beside it."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            number, key = name.removeprefix(f"{prefix}.").split(".", 1)
            states.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def update_average(averaged: Sequence[Tensor], weights: Sequence[Tensor], decay: float, steps: float) -> None:
    """Moves the average towards the weights, in place. A young average forgets its random beginning quickly."""
    lerp_each_(list(averaged), [weight.detach() for weight in weights], 1 - min(decay, (1 + steps) / (10 + steps)))
