"""Distils mini-unet into mini-unet-turbo: eight evaluations without guidance in place of forty with it.

    python -m toushi.experiments.training.distill_turbo --minutes 100

The teacher draws training prompts with guidance, two Euler steps to each step of the student. The student, from a
state of such a trajectory, learns the mean velocity to the next one that the student too will visit: progressive
distillation (Salimans and Ho 2022, section 3) with guidance folded in (Meng et al. 2023, section 3.1). Half of the
states that it begins from are its own: one step of its own from the state before. So it learns to correct itself.

Encoder and VAE are the teacher's. Only a low-rank update of the U-Net is trained, so that the weights file is small.
Everything lies in `runs/distill_turbo`: the trajectories, a checkpoint every minute, a log. Started again it goes on from
there. `--ship` writes the averaged weights where `load("mini-unet-turbo")` finds them, and the card with the scores of
`python -m toushi.experiments.measures.score_mini_unet`, one folder for each way of sampling (`--scores`).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from toushi.experiments.scene_world.scenes import draw_scene
from toushi.experiments.training.checkpoint import LOG, read_log
from toushi.experiments.training.fine_tuning import FineTuning, FineTuningConfig, train_for_minutes
from toushi.experiments.training.losses import read_captions
from toushi.experiments.training.scene_batches import caption
from toushi.probe.base.atomic_io import atomic_path
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.models.prompt_batch import PromptBatch
from toushi.probe.models.samplers import shifted_times
from toushi.probe.pipelines.load import SHIPPED, load

FIRST_SCENE = 20_000_000  # no other training draws these
CHUNK = 50  # prompts of one file of trajectories
HELD = 10 * CHUNK  # of the first trajectories: never trained on


@dataclass(frozen=True)
class Config(FineTuningConfig):
    """What the student sees, and for how long."""

    out: Path = Path("runs/distill_turbo")
    prompts: int = 4_000
    """How many trajectories the teacher draws; those that exist already are kept."""
    steps: int = 8
    teacher_steps: int = 16
    guidance: float = 3.0
    own_states: float = 0.5
    """Share of the states that the student made itself."""
    scores: tuple[Path, ...] = ()
    """Folders of `score_mini_unet --out`, for the card."""
    ship: bool = False
    """Only write the averaged weights of the last checkpoint where load("mini-unet-turbo") finds them."""


def prompt_of(number: int) -> str:
    return caption(draw_scene(FIRST_SCENE + number, split="train"), FIRST_SCENE + number).text


def draw_trajectories(teacher: MiniUNet, config: Config) -> None:
    """Latents fp16 [CHUNK, steps + 1, c, h, w] at the times that the student will visit, one file for each chunk."""
    folder = config.out / "trajectories"
    folder.mkdir(parents=True, exist_ok=True)
    stride, rest = divmod(config.teacher_steps, config.steps)
    if rest:
        raise SystemExit(
            f"teacher_steps must be a multiple of steps, but {config.teacher_steps} came for {config.steps}"
        )
    chunks = range(-(-config.prompts // CHUNK))
    for chunk in tqdm([c for c in chunks if not (folder / f"{c:04d}.safetensors").exists()], "trajectories"):
        parts = []
        for first in range(chunk * CHUNK, (chunk + 1) * CHUNK, 25):
            numbers = range(first, first + 25)
            visited = [teacher.noise(25, 64, 64, list(numbers))]

            def keep(index: int, latents: Tensor, visited=visited) -> None:
                if (index + 1) % stride == 0:
                    visited.append(latents)

            teacher.sample(
                [prompt_of(number) for number in numbers],
                steps=config.teacher_steps, guidance=config.guidance, seed=list(numbers), callback=keep,
            )  # fmt: skip
            parts.append(torch.stack(visited, dim=1).half())
        with atomic_path(folder / f"{chunk:04d}.safetensors") as temporary:
            save_file({"latents": torch.cat(parts)}, temporary)


class Distillation(FineTuning):
    """The student's U-Net, trained to take the teacher's trajectories in longer steps."""

    def __init__(self, student: MiniUNet, config: Config):
        super().__init__(student, ["unet"], config)
        self.own_states = config.own_states
        self.steps = config.steps
        self.times = shifted_times(config.steps, student.config.shift).float()

    def loss(self, trajectories: Tensor, prompts: list[str], rng: np.random.Generator) -> Tensor:
        """A hundred times the mean squared distance to the next state, after a step from a state of each trajectory.

        Where the state is the student's own, it has taken the step before, too, from a state of the teacher's.
        """
        rows = torch.arange(len(prompts))
        index = torch.from_numpy(rng.integers(self.steps, size=len(prompts)))
        own = torch.from_numpy(rng.random(len(prompts)) < self.own_states) & (index > 0)
        states = trajectories[rows, index]
        with torch.no_grad():
            text = read_captions(self.model, prompts)
            if own.any():
                earlier = index - own.long()
                states[own] = self.move(trajectories[rows, earlier], earlier, text)[own]
        return 100 * (self.move(states, index, text) - trajectories[rows, index + 1]).square().mean()

    def move(self, latents: Tensor, index: Tensor, text: PromptBatch) -> Tensor:
        """Latents after the student's step `index` [b]."""
        velocity = self.model.velocity(latents, self.times[index], text)
        return latents + (self.times[index + 1] - self.times[index])[:, None, None, None] * velocity

    @torch.no_grad()
    def held_out_error(self, trajectories: Tensor, prompts: list[str]) -> float:
        """Mean squared distance [latent units] to the teacher's last state, after all steps of the average."""
        with self.average_in_place() as model:
            text, latents = read_captions(model, prompts), trajectories[:, 0]
            for index in range(self.steps):
                latents = self.move(latents, torch.full((len(latents),), index), text)
        return (latents - trajectories[:, -1]).square().mean().item()


def train(config: Config) -> None:
    torch.set_num_threads(config.threads)
    draw_trajectories(load("mini-unet", "cpu", threads=config.threads), config)
    files = sorted((config.out / "trajectories").glob("*.safetensors"))
    trajectories = torch.cat([load_file(file)["latents"] for file in files])
    prompts = [prompt_of(number) for number in tqdm(range(len(trajectories)), "prompts")]
    held, held_prompts = trajectories[:HELD:4].float(), prompts[:HELD:4]
    training = Distillation(load("mini-unet", "cpu", threads=config.threads), config)

    def loss_of(rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(HELD, len(trajectories), size=config.batch)
        return training.loss(trajectories[chosen].float(), [prompts[i] for i in chosen], rng)

    train_for_minutes(
        training, config.out, loss_of, lambda: {"held_out_error": training.held_out_error(held, held_prompts)}
    )


def ship(config: Config) -> None:
    """The averaged weights and the log, to where `load` finds them."""
    training = Distillation(load("mini-unet", "cpu"), config)
    training.resume(config.out)
    training.ship(SHIPPED / "mini-unet-turbo", steps=config.steps, guidance=1.0)
    shutil.copy(config.out / LOG, SHIPPED / "mini-unet-turbo" / LOG)
    write_card(config)


CARD = """# mini-unet-turbo

mini-unet distilled to {steps} evaluations without guidance: `load("mini-unet-turbo")`, `--model mini-unet-turbo`. The
teacher takes 40 (20 steps with guidance). Method: progressive distillation (Salimans and Ho 2022) with guidance folded in
(Meng et al. 2023); the student also begins from states of its own.

{rows}

Share right on the first {count} held-out prompts, with 95% intervals, by
`python -m toushi.experiments.measures.score_mini_unet --model M --steps S --guidance G --count {count}`. The aim was to
stay within 3 points of the teacher at 20 steps with guidance. The training is not at its end: {samples} of {planned}
samples, {hours:.1f} hours on one shared CPU core, the teacher's {prompts} trajectories drawn before. Mean squared distance
to the teacher's last latents on held-out prompts: {error:.4f}.

Stored is a low-rank update of the U-Net (rank {rank}, fp16); encoder, VAE and the rest are mini-unet's. Made again by
`python -m toushi.experiments.training.distill_turbo`, then `--ship --scores …`; `log.jsonl` is the log of these weights.
"""


def write_card(config: Config) -> None:
    """README.md beside the weights: what was scored, and how long the training was."""
    columns, rows, count = [], {}, 0
    for folder in config.scores:
        about = json.loads((folder / "held_out_config.json").read_text())
        count = about["count"]
        columns.append(f"{Path(about['model']).name}, {about['steps']} steps, guidance {about['guidance']:g}")
        rates = pd.read_csv(folder / "held_out_rates.csv").query("language == 'all'")
        for row in rates.to_dict("records"):
            rows.setdefault(row["what"], []).append(f"{row['right']:.3f} [{row['low']:.2f}, {row['high']:.2f}]")
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {what} | " + " | ".join(cells) + " |" for what, cells in rows.items()]
    log = list(read_log(SHIPPED / "mini-unet-turbo" / LOG).values())
    error = next(row["held_out_error"] for row in reversed(log) if "held_out_error" in row)
    text = CARD.format(
        rows="\n".join(lines), count=count, steps=config.steps, planned=config.planned, prompts=config.prompts,
        rank=config.rank, samples=log[-1]["samples"], hours=log[-1]["hours"], error=error,
    )  # fmt: skip
    (SHIPPED / "mini-unet-turbo" / "README.md").write_text(text, "utf-8")


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    ship(config) if config.ship else train(config)
