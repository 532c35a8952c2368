"""Trains the twins: two models that differ in one thing, whether the text encoder sees what comes after a token.

    python -m experiments.train_twins

Both begin with the same weights. First each encoder learns what lies where from the same captions in the same order
(`train_encoder`), then both see the same captions, pictures, noise and times, each step of one followed by the same
step of the other. They use mini-unet's tokenizer and VAE. Everything lies in `runs/twins`: a checkpoint of both after
the encoders' lesson and then every ten minutes, a log. Started again it goes on from there, to the bit as if it had not
been stopped. Asked for fewer samples it ends earlier, with the decay of the learning rate done, as long as that has not
begun. `--ship` writes the averaged fp16 weights where `load("twins/causal")` and
`load("twins/bidirectional")` find them.
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
from tqdm import tqdm

from experiments.train_encoder import teach_encoder
from experiments.training import (
    LOG,
    Recipe,
    Training,
    held_out_loss,
    logged,
    read_checkpoint,
    sheet,
    write_checkpoint,
)
from experiments.training_data import Batch, Pool, make_pool
from experiments.training_losses import Noise, Reader
from probe.models.load import SHIPPED, load
from probe.models.mini_unet import MiniUNet, digest
from probe.models.text_encoder import TextEncoderConfig
from probe.models.unet import UNetConfig

TWINS = ("bidirectional", "causal")
HELD = 512  # scenes of the held-out loss


@dataclass(frozen=True)
class Config(Recipe):
    """What the twins are, and how many samples each of them sees."""

    out: Path = Path("runs/twins")
    samples: int = 300_000
    """For each of the two. The learning rate falls to a tenth over the last fifth of them."""
    pool: int = 100_000
    pool_first: int = 100_000
    batch: int = 64
    adam_share: float = 0.4
    early: float = 0.3
    naming_weight: float = 1.0
    decay: float = 0.1
    precision: Literal["fp32", "bf16"] = "bf16"
    threads: int | None = 1
    encoder_samples: int = 100_000
    """Captions from which each encoder learns what lies where, before its U-Net learns anything."""
    text: TextEncoderConfig = field(default_factory=lambda: TextEncoderConfig(width=96, heads=3))
    unet: UNetConfig = field(default_factory=lambda: UNetConfig(widths=(64, 96, 96), text_width=96, time_width=128))
    ship: bool = False
    """Only write the averaged weights of the last checkpoint where `load` finds them."""


def twin_models(config: Config, family: MiniUNet) -> dict[str, MiniUNet]:
    """The two, fresh and alike to the bit, with the tokenizer and VAE of `family`."""
    text = replace(config.text, vocab_size=family.tokenizer.vocab_size)
    vae = {name: weight.half() for name, weight in family.state_dict().items() if name.startswith("vae.")}
    shares = {"model": "mini-unet", "vae_sha256": digest(vae)}
    shapes = replace(family.config, text=text, unet=config.unet, heat_map=None, shares=shares)
    models = {}
    with torch.random.fork_rng(devices=[]):
        for name in TWINS:
            torch.manual_seed(config.seed)
            causal = replace(shapes, text=replace(text, causal=name == "causal"))
            models[name] = MiniUNet(causal, family.tokenizer)
            models[name].vae.load_state_dict(family.vae.state_dict())
    return models


class Twins:
    """Both trainings, always at the same step. With a pool the encoders learn from it first; a run that is resumed has
    done so before."""

    def __init__(self, config: Config, family: MiniUNet, pool: Pool | None = None):
        self.config = config
        self.trainings: dict[str, Training] = {}
        for name, model in twin_models(config, family).items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)  # both readers begin alike too
                if pool is None:
                    reader = Reader(config.text.width)
                else:
                    reader = teach_encoder(model, pool, config, config.encoder_samples)
                self.trainings[name] = Training(model, config, reader)

    @property
    def samples(self) -> int:
        return self.trainings[TWINS[0]].samples

    def draws(self, pool: Pool) -> Iterator[tuple[Batch, Noise]]:
        """What is left to see. A step's batch and noise follow from its number, wherever the run began."""
        for step in range(self.samples // self.config.batch, self.steps):
            rng = np.random.default_rng([self.config.seed, step])
            batch = pool.batch(self.config.batch, rng, self.config.dropped, self.config.garbled)
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            yield batch, Noise.like(batch.latents, self.config.early, generator)

    @property
    def steps(self) -> int:
        return -(-self.config.samples // self.config.batch)

    def lr(self) -> float:
        step = self.samples // self.config.batch
        return self.config.lr * min(1, (step + 1) / 200) * min(1, max(0.1, 5 * (1 - step / self.steps)))

    def step(self, batch: Batch, noise: Noise) -> dict[str, tuple[float, float, float]]:
        lr = self.lr()
        return {name: training.step(batch, lr, noise) for name, training in self.trainings.items()}

    def save(self, folder: Path) -> None:
        both = {
            f"{name}.{key}": t for name, training in self.trainings.items() for key, t in training.tensors().items()
        }
        write_checkpoint(folder, both, self.samples)

    def resume(self, folder: Path) -> None:
        both, samples = read_checkpoint(folder)
        for name, training in self.trainings.items():
            own = {key.removeprefix(f"{name}."): t for key, t in both.items() if key.startswith(f"{name}.")}
            training.restore(own, samples)

    def averaged_models(self) -> dict[str, MiniUNet]:
        return {name: training.averaged_model() for name, training in self.trainings.items()}


def train(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    family = load("mini-unet", "cpu")
    name = f"latents_{config.pool_first}_{config.pool}.safetensors"
    pool = make_pool(family.vae, config.pool_first, config.pool, config.out / name)
    held = make_pool(family.vae, 10_000_000, HELD, config.out / "latents_held.safetensors")
    begun = (config.out / "checkpoint.safetensors").exists()
    twins = Twins(config, family, None if begun else pool)
    if begun:
        twins.resume(config.out)
    else:
        twins.save(config.out)
    hours = max((row["hours"] for row in logged(config.out / LOG).values()), default=0.0)
    with (config.out / "configs.jsonl").open("a") as file:
        print(json.dumps(asdict(config) | {"begun_at": twins.samples}, default=str), file=file)
    start, saved, losses = time.monotonic(), 0.0, []
    bar = tqdm(twins.draws(pool), total=twins.steps, initial=twins.samples // config.batch, desc="twins", mininterval=5)
    for batch, noise in bar:
        lr = twins.lr()
        losses.append(list(twins.step(batch, noise).values()))
        spent = time.monotonic() - start
        finished = twins.samples >= config.samples
        if finished or spent - saved >= config.checkpoint_minutes * 60:
            saved = spent
            twins.save(config.out)
            means = np.mean(losses, axis=0)
            row: dict = dict(samples=twins.samples, hours=round(hours + spent / 3600, 3), lr=lr)
            for name, model, own in zip(TWINS, twins.averaged_models().values(), means):
                row[name] = dict(zip(("loss", "naming_loss", "reading_loss"), own.round(5).tolist()))
                row[name]["held_out_loss"] = round(held_out_loss(model, held), 5)
                if finished:
                    sheet(model, config.out / f"samples_{name}.png")
            with (config.out / LOG).open("a") as file:
                print(json.dumps(row), file=file, flush=True)
            losses = []


CARD = """# The twins: mini-unet with and without sight of what comes after

Two small text-to-image models for the scene world that differ in one thing: in `causal` a token of the text encoder sees
itself and what stands before it, in `bidirectional` the whole prompt. Made for `toushi run causal_vs_bidirectional`, not
for drawing: they are smaller than `mini-unet` and saw less. `load("twins/causal")`, `load("twins/bidirectional")`.

- Both began with the same weights (seed {seed}) and saw the same captions, pictures, noise and times in the same order.
- First the encoders alone learnt what lies where from {encoder_samples:,} captions, then each model saw {samples:,}
  samples of a pool of {pool:,} scenes (asked for: {wanted:,}); {hours:.1f} hours for both. The learning rate {decay}.
  Recipe: {recipe}.
- {parameters:.2f} million parameters each: encoder {text}; U-Net {unet}. Tokenizer and VAE are mini-unet's and lie there.
- Weights: running average, fp16. Losses on {held} held-out scenes: bidirectional {bidirectional}, causal {causal}.

Made again by `python -m experiments.train_twins`, then `--ship`; `log.jsonl` is the log of these weights.
"""


def ship(config: Config) -> None:
    """The averaged weights of both, their card, and the log of how they came about, to where `load` finds them."""
    home = SHIPPED / "twins"
    twins = Twins(config, load("mini-unet", "cpu"))
    twins.resume(config.out)
    for name, model in twins.averaged_models().items():
        model.save(home / name)
    rows = logged(config.out / LOG)
    (home / LOG).write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    (home / "README.md").write_text(card(config, twins, rows[twins.samples]))


def card(config: Config, twins: Twins, last: dict) -> str:
    asked = [json.loads(line) for line in (config.out / "configs.jsonl").read_text().splitlines()]
    own = [p for n, p in twins.trainings["causal"].model.named_parameters() if not n.startswith("vae.")]
    fell = last["lr"] < 0.11 * config.lr
    text, unet = config.text, config.unet
    return CARD.format(
        seed=config.seed,
        encoder_samples=asked[0]["encoder_samples"],
        samples=twins.samples,
        wanted=asked[0]["samples"],
        pool=asked[0]["pool"],
        hours=last["hours"],
        recipe=", ".join(f"{name} {asked[0][name]}" for name in ("lr", "batch", "early", "naming_weight", "reading_weight")),
        decay="fell to a tenth over the last fifth" if fell else f"had not fallen yet: {last['lr']:.1e} at the end",
        parameters=sum(p.numel() for p in own) / 1e6,
        text=f"{text.layers} layers, {text.width} wide, {text.heads} heads",
        unet=f"{', '.join(map(str, unet.widths))} wide",
        held=HELD,
        **{name: last[name]["held_out_loss"] for name in TWINS},
    )


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    ship(config) if config.ship else train(config)
