"""Trains mini-dit, Z-Image's denoiser in small, on the scene world. Text encoder and VAE are mini-unet's, frozen.

    python -m toushi.experiments.training.train_mini_dit --minutes 100

Everything lies in `runs/train_mini_dit`: a checkpoint every minute, a sheet of samples beside it, a log. Started again,
it goes on from there. `--ship` writes the averaged fp16 weights where `load("mini-dit")` finds them.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from toushi.experiments.training.checkpoint import LOG, hours_of, read_log
from toushi.experiments.training.recipe import Recipe, Training, train_denoiser
from toushi.experiments.training.scene_batches import make_pool
from toushi.probe.models.mini_dit import MiniDiT, new_mini_dit
from toushi.probe.models.mini_unet import SharedParts, part_of, weights_sha256
from toushi.probe.pipelines.load import SHIPPED, load

FROZEN = ("encoder.", "vae.")


@dataclass(frozen=True)
class Config(Recipe):
    """How mini-dit is trained, and for how long."""

    out: Path = Path("runs/train_mini_dit")
    minutes: float = 100.0
    cooldown: float = 0.2
    """Share of that time in which the learning rate falls to a twentieth."""
    pool_first: int = 30_000_000
    early: float = 0.15
    checkpoint_minutes: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "cpu"
    ship: bool = False
    """Only write the averaged weights of the last checkpoint where load("mini-dit") finds them."""


def first_training(config: Config) -> Training:
    """The training before its first step, or from its last checkpoint on."""
    torch.manual_seed(config.seed)
    model = new_mini_dit(load("mini-unet", "cpu")).to(config.device)
    training = Training(model, config, frozen=FROZEN)
    if (config.out / "checkpoint.safetensors").exists():
        training.resume(config.out)
    return training


def train(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    training = first_training(config)
    name = f"latents_{config.pool_first}_{config.pool}.safetensors"
    pool = make_pool(training.model.vae, config.pool_first, config.pool, config.out / name)
    held = make_pool(training.model.vae, 10_000_000, 512, config.out / "latents_held.safetensors")
    hours = hours_of(read_log(config.out / LOG))
    train_denoiser(training, pool, held, config.out, config.minutes, config.cooldown, hours)


def ship(config: Config) -> None:
    """Writes the averaged denoiser and the log where `load` finds them."""
    averaged = first_training(config).averaged_model().cpu()
    stored = {name: weight.half() for name, weight in averaged.state_dict().items()}
    parts = {part: weights_sha256(part_of(stored, part)) for part in ("encoder", "vae")}
    shares: SharedParts = {"model": "mini-unet", "parts": parts}
    averaged.config = replace(averaged.config, shares=shares)
    assert isinstance(averaged, MiniDiT)
    averaged.save(SHIPPED / "mini-dit")
    shutil.copy(config.out / LOG, SHIPPED / "mini-dit" / LOG)


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    ship(config) if config.ship else train(config)
