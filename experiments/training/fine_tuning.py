"""Fine-tuning of parts of a model by low-rank updates: a step, checkpoints, the log, and the loop over minutes."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from toushi.experiments.training.checkpoint import (
    LOG,
    append_row,
    hours_of,
    optimizer_tensors,
    read_checkpoint,
    read_log,
    restore_optimizer,
    update_average,
    write_checkpoint,
)
from toushi.experiments.training.low_rank_updates import add_low_rank_updates, updates_of
from toushi.probe.models.mini_unet import MiniUNet, SharedParts, part_of, weights_sha256
from toushi.probe.pipelines.load import load


@dataclass(frozen=True)
class FineTuningConfig:
    """The settings of every fine-tuning."""

    minutes: float = 100.0
    """Time for this call, from the last checkpoint on."""
    planned: int = 200_000
    """Samples over all calls together. The learning rate falls almost to zero over them."""
    rank: int = 24
    """Rank of each update. A checkpoint must stay under 15 MB."""
    batch: int = 32
    lr: float = 1e-3
    average: float = 0.999
    threads: int = 1
    seed: int = 0
    checkpoint_minutes: float = 1.0


class FineTuning:
    """The updates of some parts of a model, their running average, the optimizer: everything that a checkpoint holds."""

    def __init__(self, model: MiniUNet, parts: Sequence[str], config: FineTuningConfig, whole: Collection[str] = ()):
        self.model, self.parts, self.config, self.samples = model, tuple(parts), config, 0
        model.requires_grad_(False)
        torch.manual_seed(config.seed)
        for part in parts:
            module = model.get_submodule(part).requires_grad_(True)
            add_low_rank_updates(module, config.rank, whole)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names, self.weights = [name for name, _ in named], [p for _, p in named]
        self.averaged = [p.detach().clone() for p in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.0)

    def lr(self) -> float:
        """A warm-up of 100 steps, then linear to a fiftieth at the end of what is planned."""
        config = self.config
        return (
            config.lr * min(1, (self.samples / config.batch + 1) / 100) * max(0.02, 1 - self.samples / config.planned)
        )

    def step(self, loss: Tensor, count: int) -> float:
        """Takes one step down this loss, which is of `count` samples. Returns its value."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.param_groups[0]["lr"] = self.lr()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.samples += count
        update_average(self.averaged, self.weights, self.config.average, self.samples / count)
        return loss.item()

    @contextmanager
    def average_in_place(self):
        """Inside, the model has the averaged weights."""
        kept = [weight.detach().clone() for weight in self.weights]
        try:
            self._put(self.averaged)
            yield self.model
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self.weights, values):
            weight.copy_(value)

    def ship(self, folder: Path, **changes) -> None:
        """Writes the averaged updates, in fp16, and the config with these changes. The result is a model that shares
        every part with mini-unet, except for the updates."""
        base = load("mini-unet", "cpu").state_dict()
        stored = {name: weight.half() for name, weight in base.items()}
        parts = {part: weights_sha256(part_of(stored, part)) for part in ("encoder", "unet", "vae")}
        shares: SharedParts = {"model": "mini-unet", "parts": parts}
        config = replace(self.model.config, shares=shares, heat_map=None, **changes)
        folder.mkdir(parents=True, exist_ok=True)
        config.save(folder)
        save_file({name: t.half().contiguous() for name, t in self.state().items()}, folder / "model.safetensors")

    def state(self) -> dict[str, Tensor]:
        """The averaged updates by the names of the plain model, see `updates_of`."""
        with self.average_in_place() as model:
            return {
                name: tensor.clone()
                for part in self.parts
                for name, tensor in updates_of(model.get_submodule(part), part).items()
            }

    def save(self, folder: Path) -> None:
        """Writes the checkpoint. The optimizer's moments are stored in bf16, which halves their size."""
        tensors = {f"weights.{n}": w.detach() for n, w in zip(self.names, self.weights)}
        tensors |= {f"averaged.{n}": w for n, w in zip(self.names, self.averaged)}
        moments = optimizer_tensors(self.optimizer, "optimizer")
        tensors |= {name: t if name.endswith(".step") else t.to(torch.bfloat16) for name, t in moments.items()}
        write_checkpoint(folder, tensors, self.samples)

    def resume(self, folder: Path) -> None:
        tensors, self.samples = read_checkpoint(folder)
        self._put([tensors[f"weights.{name}"] for name in self.names])
        self.averaged = [tensors[f"averaged.{name}"] for name in self.names]
        restore_optimizer(self.optimizer, {name: tensor.float() for name, tensor in tensors.items()}, "optimizer")


def train_for_minutes(
    training: FineTuning, out: Path, loss_of: Callable[[np.random.Generator], Tensor], evaluate: Callable[[], dict]
) -> None:
    """Trains for the configured minutes, from the last checkpoint in `out` on.

    `loss_of` draws a batch of `config.batch` samples and returns its loss. `evaluate` returns the values that some rows
    of the log have beside the mean loss, such as the held-out loss of the averaged weights. It takes at most about a
    tenth of the time.
    """
    if (out / "checkpoint.safetensors").exists():
        training.resume(out)
    config, losses, saved, next_evaluation = training.config, [], 0.0, 0.0
    hours = hours_of(read_log(out / LOG))
    start, total = time.monotonic(), training.config.minutes * 60
    bar = tqdm(total=round(total), unit="s", desc=out.name, mininterval=5)
    while True:
        spent = time.monotonic() - start
        losses.append(training.step(loss_of(np.random.default_rng([config.seed, training.samples])), config.batch))
        bar.update(round(spent) - bar.n)
        finished = spent >= total or training.samples >= config.planned
        if finished or spent - saved >= config.checkpoint_minutes * 60:
            saved = spent
            row: dict = dict(samples=training.samples, hours=round(hours + spent / 3600, 3), lr=training.lr())
            row["loss"] = round(float(np.mean(losses)), 6)
            if finished or spent >= next_evaluation:
                row |= evaluate()
                ended = time.monotonic() - start
                next_evaluation = ended + 10 * (ended - spent)
            append_row(out / LOG, row)
            training.save(out)  # after the row, so that every checkpoint has one
            bar.set_postfix(samples=training.samples, loss=row["loss"])
            losses = []
        if finished:
            return
