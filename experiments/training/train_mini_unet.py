"""Trains mini-unet on the scene world: tokenizer, VAE, text encoder, then text encoder and U-Net together.

    python -m toushi.experiments.training.train_mini_unet --minutes 100

All files are in `runs/train_mini_unet`: a checkpoint every ten minutes, a sheet of samples beside each, a log. Started
again, it continues from the last checkpoint. Without one, `--begin shipped` continues from the weights in the repository.
`--ship` writes the averaged fp16 weights where `load("mini-unet")` finds them.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from toushi.experiments.scene_world.scenes import draw_scene
from toushi.experiments.training.checkpoint import LOG, hours_of, read_log, write_log
from toushi.experiments.training.recipe import Recipe, Training, train_denoiser
from toushi.experiments.training.scene_batches import caption, make_pool
from toushi.experiments.training.train_encoder import teach_encoder
from toushi.experiments.training.train_vae import train_vae
from toushi.probe.models.mini_unet import MiniUNet, MiniUNetConfig
from toushi.probe.pipelines.load import SHIPPED, load
from toushi.probe.text.bpe import Tokenizer


@dataclass(frozen=True)
class Config(Recipe):
    """How mini-unet is trained, and for how long."""

    out: Path = Path("runs/train_mini_unet")
    minutes: float = 100.0
    """Time for the denoiser."""
    cooldown: float = 0.2
    """Share of that time in which the learning rate falls to a twentieth."""
    vae_minutes: float = 10.0
    encoder_samples: int = 100_000
    """Captions from which the text encoder learns what lies where, before the U-Net is trained."""
    vocab_size: int = 1200
    begin: str = "fresh"
    """`fresh`, or `shipped` to continue from the weights in the repository if there is no checkpoint."""
    ship: bool = False
    """Only write the averaged weights of the last checkpoint where load("mini-unet") finds them."""


def first_model(config: Config) -> MiniUNet:
    """The model before training: a new denoiser with a trained tokenizer and VAE, or the shipped model."""
    folder = config.out / "base"
    if not (folder / "model.safetensors").exists():
        if config.begin == "shipped":
            model = load("mini-unet", "cpu")
        else:
            captions = (caption(draw_scene(seed), seed).text for seed in range(20_000))
            tokenizer = Tokenizer.train(captions, config.vocab_size)
            shapes = MiniUNetConfig()
            model = MiniUNet(replace(shapes, text=replace(shapes.text, vocab_size=tokenizer.vocab_size)), tokenizer)
            train_vae(model.vae, config.vae_minutes, config.out / "vae.jsonl")
        model.save(folder, torch.float32)
    return MiniUNet.from_folder(folder)


def train(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    model = first_model(config)
    pool = make_pool(
        model.vae, config.pool_first, config.pool, config.out / f"latents_{config.pool_first}_{config.pool}.safetensors"
    )
    held = make_pool(model.vae, 10_000_000, 512, config.out / "latents_held.safetensors")
    begun = (config.out / "checkpoint.safetensors").exists()
    reader = None if begun or config.begin == "shipped" else teach_encoder(model, pool, config, config.encoder_samples)
    training = Training(model, config, reader)
    if begun:
        training.resume(config.out)
    elif config.begin == "shipped":
        training.samples = max(read_log(SHIPPED / "mini-unet" / LOG), default=0)
    hours = hours_of(read_log(SHIPPED / "mini-unet" / LOG) | read_log(config.out / LOG))
    train_denoiser(training, pool, held, config.out, config.minutes, config.cooldown, hours)


def ship(config: Config) -> None:
    """Writes the averaged weights and their log where `load` finds them."""
    training = Training(first_model(config), config)
    training.resume(config.out)
    training.averaged_model().save(SHIPPED / "mini-unet")
    log = SHIPPED / "mini-unet" / LOG
    write_log(log, read_log(log) | read_log(config.out / LOG))


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    ship(config) if config.ship else train(config)
