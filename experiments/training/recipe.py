"""The training of a denoiser, with or without its text encoder: its recipe, a step, the loop, and the held-out loss."""

import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from toushi.experiments.scene_world.contact_sheet import contact_sheet
from toushi.experiments.training.checkpoint import (
    LOG,
    append_row,
    optimizer_tensors,
    read_checkpoint,
    restore_optimizer,
    update_average,
    write_checkpoint,
)
from toushi.experiments.training.losses import Namer, Noise, Reader, attention_in_fp32, read_captions, velocity_loss
from toushi.experiments.training.muon import make_optimizers, take_step
from toushi.experiments.training.scene_batches import Batch, Pool
from toushi.hooks.torch_private import copy_each_
from toushi.probe.models.mini_unet import MiniUNet

SHOWN = (
    "左边是猫，右边是月亮，夜晚", "河边的银行在左边，树在右边", "存钱的银行", "一个香甜的苹果", "新发布的苹果", "红色的圆和蓝色的方块",
    "一只河马", "一匹斑马在草地上", "猫头鹰在左边，狗在右边", "水墨画，一只熊猫", "沙滩上有一把绿色的伞", "a yellow car on the left and a tree on the right",
)  # fmt: skip
LOSSES = ("loss", "naming_loss", "reading_loss")  # of a step, in the log


@dataclass(frozen=True)
class Recipe:
    """The settings of every training of a denoiser, mostly together with its text encoder."""

    pool: int = 40_000
    """Scenes whose latents are kept. Later trainings use others (`pool_first`)."""
    pool_first: int = 0
    batch: int = 32
    lr: float = 3e-3
    adam_share: float = 1.0
    """AdamW's learning rate, for all that is no hidden matrix, as a share of Muon's."""
    dropped: float = 0.1
    """Share of captions that are emptied, for classifier-free guidance."""
    garbled: float = 0.0
    """Share of the text between the parts of a caption that is replaced at random, see `garble_caption`."""
    object_weight: float = 4.0
    """How much more the loss counts cells that objects cover; 0 is the plain loss."""
    early: float = 0.0
    """Share of the pictures with times near the noise, see `Noise`."""
    naming_weight: float = 0.2
    """How much the loss counts the naming of the object at each cell (see `Namer`); 0 turns it off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward and backward on a copy of the weights in bf16, the weights themselves in fp32. Twice as fast on a
    CPU with AMX; on others slower."""
    threads: int | None = None
    reading_weight: float = 0.3
    """How much the loss counts the naming of objects from the text alone (see `Reader`); 0 turns it off."""
    decay: float = 0.01
    """Weight decay of the matrices."""
    average: float = 0.999
    checkpoint_minutes: float = 10.0
    seed: int = 0


class Training:
    """The weights, their running average and the optimizers' state: everything that a checkpoint holds."""

    def __init__(
        self, model: MiniUNet, config: Recipe, reader: Reader | None = None, *, frozen: tuple[str, ...] = ("vae.",)
    ):
        """Parameters whose names begin with one of `frozen` are not trained. A frozen encoder needs no reader."""
        self.model, self.config, self.samples = model, config, 0
        self.worker = deepcopy(model)  # runs forward and backward, on a copy of the weights
        self.namer = Namer(self.worker)
        self.reader = None if "encoder." in frozen else reader or Reader(model.config.text.width)
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        for part in (self.worker.encoder, self.worker.denoiser, self.namer, self.reader):
            if part is not None:
                nn.utils.convert_conv2d_weight_memory_format(part.to(dtype), torch.channels_last)
        for name, parameter in (*model.named_parameters(), *self.worker.named_parameters()):
            parameter.requires_grad_(not name.startswith(frozen))
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        copies = {n: p for n, p in self.worker.named_parameters() if p.requires_grad}
        copies |= {f"namer.{n}": p for n, p in self.namer.named_parameters()}
        if self.reader is not None:
            copies |= {f"reader.{n}": p for n, p in self.reader.named_parameters()}
        parameters |= {n: nn.Parameter(p.detach().float()) for n, p in copies.items() if n not in parameters}
        self.names = list(parameters)
        self.weights = [parameters[n].requires_grad_(True) for n in self.names]
        self.copies = [copies[n].requires_grad_(True) for n in self.names]
        self.averaged = [w.detach().clone() for w in self.weights]
        self.optimizers = make_optimizers(zip(self.names, self.weights), config.lr, config.adam_share, config.decay)

    def step(self, batch: Batch, lr: float, noise: Noise | None = None) -> tuple[float, float, float]:
        """The losses of velocity, naming and reading before the step, which it takes."""
        self.namer.features.clear()
        with torch.no_grad():
            copy_each_(self.copies, self.weights)
        with attention_in_fp32():
            noise = noise or Noise.like(batch.latents, self.config.early)
            text = read_captions(self.worker, batch.captions)
            loss = velocity_loss(self.worker, batch, self.config.object_weight, noise, text)
            naming = self.namer.loss(batch.kinds, batch.colours)
            reading = loss.new_zeros(()) if self.reader is None else self.reader.loss(text, batch.kinds)
            (loss + self.config.naming_weight * naming + self.config.reading_weight * reading).backward()
        self.namer.features.clear()
        for weight, copy in zip(self.weights, self.copies):
            assert copy.grad is not None  # every weight takes part in the loss
            weight.grad = copy.grad.to(torch.float32, memory_format=torch.contiguous_format)
            copy.grad = None
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        take_step(self.optimizers, lr)
        self.samples += len(batch.captions)
        update_average(self.averaged, self.weights, self.config.average, self.samples / len(batch.captions))
        loss, naming, reading = torch.stack([loss, naming, reading]).tolist()  # waits for a GPU once
        return loss, naming, reading

    def averaged_model(self) -> MiniUNet:
        model = type(self.model)(self.model.config, self.model.tokenizer)
        averaged = {n: w for n, w in zip(self.names, self.averaged) if not n.startswith(("namer.", "reader."))}
        model.load_state_dict(self.model.state_dict() | averaged)
        return model.eval().requires_grad_(False)

    def save(self, folder: Path) -> None:
        tensors = {f"weights.{n}": w.detach() for n, w in zip(self.names, self.weights)}
        tensors |= {f"averaged.{n}": w for n, w in zip(self.names, self.averaged)}
        for number, optimizer in enumerate(self.optimizers):
            tensors |= optimizer_tensors(optimizer, f"optimizer.{number}")
        write_checkpoint(folder, tensors, self.samples)

    def resume(self, folder: Path) -> None:
        tensors, self.samples = read_checkpoint(folder)
        with torch.no_grad():
            for name, weight, average in zip(self.names, self.weights, self.averaged):
                weight.copy_(tensors[f"weights.{name}"])
                average.copy_(tensors[f"averaged.{name}"])
        for number, optimizer in enumerate(self.optimizers):
            restore_optimizer(optimizer, tensors, f"optimizer.{number}")


def train_denoiser(
    training: Training, pool: Pool, held_out: Pool, out: Path, minutes: float, cooldown: float, hours: float
) -> None:
    """Trains for so many minutes, the last share `cooldown` of them with a falling learning rate.

    In `out`: a checkpoint and a sheet of samples every `checkpoint_minutes`, each with a row in the log. `hours` is the
    time that was trained before.
    """
    config = training.config
    append_row(out / "configs.jsonl", asdict(config) | {"samples": training.samples})
    torch.manual_seed(config.seed + training.samples)
    rng = np.random.default_rng(config.seed + training.samples)
    start, total, losses, saved, step = time.monotonic(), minutes * 60, [], 0.0, 0
    bar = tqdm(total=round(total), unit="s", desc="denoiser", mininterval=5)
    while True:
        spent = time.monotonic() - start
        lr = config.lr * min(1, (step + 1) / 200) * min(1, max(0.05, (1 - spent / total) / cooldown))
        losses.append(training.step(pool.batch(config.batch, rng, config.dropped, config.garbled), lr))
        step += 1
        bar.update(round(spent) - bar.n)
        finished = spent >= total
        if finished or spent - saved >= config.checkpoint_minutes * 60:
            saved = spent
            training.save(out)
            averaged = training.averaged_model()
            save_sheet(averaged, out / f"samples_{training.samples:08d}.png")
            row: dict = dict(samples=training.samples, hours=round(hours + spent / 3600, 3))
            row |= zip(LOSSES, np.mean(losses, axis=0).round(5).tolist())
            row |= dict(held_out_loss=held_out_loss(averaged, held_out), lr=lr)
            append_row(out / LOG, row)
            bar.set_postfix(samples=training.samples, loss=f"{row['held_out_loss']:.4f}")
            losses = []
        if finished:
            return


def save_sheet(model: MiniUNet, file: Path) -> None:
    """The fixed prompts, two seeds each, one above the other."""
    samples = [model.sample(SHOWN, seed=seed, steps=12) for seed in (0, 1)]
    cells = [([np.concatenate(pair)], prompt) for *pair, prompt in zip(*samples, SHOWN)]
    contact_sheet(cells, len(SHOWN)).save(file)


@torch.no_grad()
def held_out_loss(model: MiniUNet, pool: Pool) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        rng = np.random.default_rng(1)
        return sum(velocity_loss(model, pool.batch(64, rng, 0.0)).item() for _ in range(4)) / 4
