"""Trains the twins: two models that differ in one thing, whether the text encoder sees what comes after a token.

    python -m toushi.experiments.training.train_twins

Both begin with the same weights. First each encoder learns what lies where from the same captions in the same order
(`training/train_encoder.py`). Then both see the same captions, pictures, noise and times, which follow from the number of
the step. So each twin can be trained in its own process, on one core. They use mini-unet's tokenizer and VAE. All files
are in `runs/twins`: for each twin a checkpoint after the training of its encoder and then every ten minutes, and a log.
Started again, the training continues from there, to the bit as if it had not been stopped. With fewer samples it ends
earlier, with the decay of the learning rate done, as long as that has not begun. `--ship` writes the averaged fp16
weights where `load("twins/causal")` and `load("twins/bidirectional")` find them.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm

from toushi.experiments.training.checkpoint import LOG, append_row, hours_of, read_checkpoint, read_log, write_log
from toushi.experiments.training.losses import Noise, Reader
from toushi.experiments.training.recipe import LOSSES, Recipe, Training, held_out_loss, save_sheet
from toushi.experiments.training.scene_batches import Batch, Pool, make_pool
from toushi.experiments.training.train_encoder import teach_encoder
from toushi.probe.models.mini_unet import MiniUNet, weights_sha256
from toushi.probe.models.text_encoder import TextEncoderConfig
from toushi.probe.models.unet import UNetConfig
from toushi.probe.pipelines.load import SHIPPED, load

TWINS = ("bidirectional", "causal")
CONFIGS = "configs.jsonl"  # the settings of each start of a training
CARD_FIELDS = ("lr", "batch", "early", "naming_weight", "reading_weight")  # of the recipe, in the card
HELD = 512  # scenes of the held-out loss


@dataclass(frozen=True)
class Config(Recipe):
    """The design of the twins, and the number of samples that each sees."""

    out: Path = Path("runs/twins")
    samples: int = 300_000
    """For each of the two. The learning rate falls to a tenth over the last fifth of them."""
    pool: int = 200_000
    pool_first: int = 200_000
    batch: int = 64
    adam_share: float = 0.4
    early: float = 0.15
    naming_weight: float = 0.4
    reading_weight: float = 0.2
    decay: float = 0.1
    precision: Literal["fp32", "bf16"] = "bf16"
    threads: int | None = 1
    encoder_samples: int = 100_000
    """Captions from which each encoder learns what lies where, before its U-Net is trained."""
    text: TextEncoderConfig = field(default_factory=lambda: TextEncoderConfig(width=96, heads=3))
    unet: UNetConfig = field(default_factory=lambda: UNetConfig(widths=(64, 96, 96), text_width=96, time_width=128))
    ship: bool = False
    """Only write the averaged weights of the last checkpoint where `load` finds them."""


def make_twin(name: str, config: Config, family: MiniUNet) -> MiniUNet:
    """A new twin, equal to the other to the bit except for the mask, with the tokenizer and VAE of `family`."""
    text = replace(config.text, vocab_size=family.tokenizer.vocab_size, causal=name == "causal")
    vae = {key: weight.half() for key, weight in family.state_dict().items() if key.startswith("vae.")}
    shares = {"model": "mini-unet", "parts": {"vae": weights_sha256(vae)}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        shape = replace(family.config, text=text, unet=config.unet, heat_map=None, shares=shares)
        model = MiniUNet(shape, family.tokenizer)
    model.vae.load_state_dict(family.vae.state_dict())
    return model


def first_training(name: str, config: Config, family: MiniUNet, pool: Pool | None = None) -> Training:
    """The training of a twin before its first step. With a pool its encoder is trained already."""
    model = make_twin(name, config, family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # both readers begin alike too
        reader = Reader(config.text.width)
        if pool is not None:
            reader = teach_encoder(model, pool, config, config.encoder_samples)
        return Training(model, config, reader)


def count_steps(config: Config) -> int:
    return -(-config.samples // config.batch)


def training_steps(config: Config, begun_at: int, pool: Pool) -> Iterator[tuple[Batch, Noise, float]]:
    """Batch, noise and learning rate of every step after `begun_at` samples. They follow from the number of the step,
    for both twins and wherever the training was continued."""
    for step in range(begun_at // config.batch, count_steps(config)):
        rng = np.random.default_rng([config.seed, step])
        batch = pool.batch(config.batch, rng, config.dropped, config.garbled)
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        yield batch, Noise.like(batch.latents, config.early, generator), learning_rate(config, step)


def learning_rate(config: Config, step: int) -> float:
    """The learning rate: a warm-up of 200 steps, and over the last fifth down to a tenth."""
    return config.lr * min(1, (step + 1) / 200) * min(1, max(0.1, 5 * (1 - step / count_steps(config))))


def make_pools(config: Config, family: MiniUNet) -> tuple[Pool, Pool]:
    """The scenes for training, and those of the held-out loss."""
    name = f"latents_{config.pool_first}_{config.pool}.safetensors"
    pool = make_pool(family.vae, config.pool_first, config.pool, config.out / name)
    return pool, make_pool(family.vae, 10_000_000, HELD, config.out / "latents_held.safetensors")


def train(config: Config) -> None:
    """Trains both, each in its own process. If one fails, the other is ended, too."""
    config.out.mkdir(parents=True, exist_ok=True)
    make_pools(config, load("mini-unet", "cpu"))  # written once, here
    spawn(train_one, (config,), nprocs=len(TWINS))


def train_one(number: int, config: Config) -> None:
    """Trains twin `number` from its last checkpoint on."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    name = TWINS[number]
    folder = config.out / name
    folder.mkdir(exist_ok=True)
    family = load("mini-unet", "cpu")
    pool, held = make_pools(config, family)
    begun = (folder / "checkpoint.safetensors").exists()
    training = first_training(name, config, family, None if begun else pool)
    training.resume(folder) if begun else training.save(folder)
    hours = hours_of(read_log(folder / LOG))
    append_row(folder / CONFIGS, asdict(config) | {"begun_at": training.samples})
    start, saved, losses = time.monotonic(), 0.0, []
    left, taken = training_steps(config, training.samples, pool), training.samples // config.batch
    bar = tqdm(left, name, count_steps(config), initial=taken, position=number, unit="step", mininterval=5)
    for batch, noise, lr in bar:
        losses.append(training.step(batch, lr, noise))
        spent = time.monotonic() - start
        finished = training.samples >= config.samples
        if finished or spent - saved >= config.checkpoint_minutes * 60:
            saved = spent
            model = training.averaged_model()
            row: dict = dict(samples=training.samples, hours=round(hours + spent / 3600, 3), lr=lr)
            row |= zip(LOSSES, np.mean(losses, axis=0).round(5).tolist())
            row["held_out_loss"] = round(held_out_loss(model, held), 5)
            append_row(folder / LOG, row)
            training.save(folder)  # the row first: a checkpoint without one could not be shipped
            losses = []
            if finished:
                save_sheet(model, folder / "samples.png")


CARD = """# The twins: mini-unet with and without sight of what comes after

Two small text-to-image models for the scene world that differ in one thing: in `causal` a token of the text encoder sees
itself and what stands before it, in `bidirectional` the whole prompt. Made for `toushi run causal_vs_bidirectional`, not
for drawing: they are smaller than `mini-unet` and saw less. `load("twins/causal")`, `load("twins/bidirectional")`.

- Both began with the same weights (seed {seed}) and saw the same captions, pictures, noise and times in the same order.
- First the encoders alone learnt what lies where from {encoder_samples:,} captions, then each model saw {samples:,}
  samples of a pool of {pool:,} scenes (asked for: {wanted:,}), {hours:.1f} hours each. The learning rate {decay}.
  Recipe: {recipe}.
- {parameters:.2f} million parameters each: encoder {text}; U-Net {unet}. Tokenizer and VAE are mini-unet's and lie there.
- Weights: running average, fp16. Losses on {held} held-out scenes: bidirectional {bidirectional}, causal {causal}.

Made again by `python -m toushi.experiments.training.train_twins`, then `--ship`; the `log.jsonl` of each is the log of its weights.
"""


def ship(config: Config) -> None:
    """Writes the averaged weights of both, their logs and their card where `load` finds them."""
    home, family = SHIPPED / "twins", load("mini-unet", "cpu")
    seen = {name: read_checkpoint(config.out / name)[1] for name in TWINS}
    if len(set(seen.values())) > 1:
        raise SystemExit(f"Expected twins that saw equally much, got {seen} samples: continue the younger one first.")
    last = {}
    for name in TWINS:
        training = first_training(name, config, family)
        training.resume(config.out / name)
        training.averaged_model().save(home / name)
        rows = read_log(config.out / name / LOG)
        write_log(home / name / LOG, rows)
        last[name] = rows[training.samples]
    (home / "README.md").write_text(card(config, training, last))


def card(config: Config, training: Training, last: dict[str, dict]) -> str:
    """The model card. `training` is that of either twin, `last` the last row of each log."""
    asked = json.loads((config.out / TWINS[0] / CONFIGS).read_text().splitlines()[-1])
    own = [p for n, p in training.model.named_parameters() if not n.startswith("vae.")]
    lr = last["causal"]["lr"]
    fell = lr < 0.11 * config.lr
    text, unet = config.text, config.unet
    return CARD.format(
        seed=config.seed,
        encoder_samples=asked["encoder_samples"],
        samples=training.samples,
        wanted=asked["samples"],
        pool=asked["pool"],
        hours=max(row["hours"] for row in last.values()),
        recipe=", ".join(f"{name} {asked[name]}" for name in CARD_FIELDS),
        decay="fell to a tenth over the last fifth" if fell else f"had not fallen yet: {lr:.1e} at the end",
        parameters=sum(p.numel() for p in own) / 1e6,
        text=f"{text.layers} layers, {text.width} wide, {text.heads} heads",
        unet=f"{', '.join(map(str, unet.widths))} wide",
        held=HELD,
        **{name: row["held_out_loss"] for name, row in last.items()},
    )


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    ship(config) if config.ship else train(config)
