"""Distils mini-unet into mini-unet-turbo: eight evaluations without guidance in place of forty with it.

    python -m toushi.experiments.training.distill_turbo --minutes 100

The teacher draws training prompts with guidance, two Euler steps to each step of the student. The student, from a
state of such a trajectory, learns the mean velocity to the next one that the student too will visit: progressive
distillation (Salimans and Ho 2022, section 3) with guidance folded in (Meng et al. 2023, section 3.1). Half of the
states that it begins from are its own: one step of its own from the state before. So it learns to correct itself.

Encoder and VAE are the teacher's. Only a low-rank update of the U-Net is trained, so that the weights file is small.
Everything lies in `runs/distill_turbo`: the trajectories, a checkpoint every minute, a log. Started again it goes on from
there. `--ship` writes the averaged weights where `load("mini-unet-turbo")` finds them.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from toushi.experiments.scene_world.scenes import draw_scene
from toushi.experiments.training.losses import read_captions
from toushi.experiments.training.recipe import LOG, logged, read_checkpoint, write_checkpoint
from toushi.experiments.training.scene_batches import caption
from toushi.probe.base.atomic_io import atomic_path
from toushi.probe.models.low_rank import add_low_rank_updates, low_rank_state
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.models.prompt_batch import Text
from toushi.probe.models.samplers import shifted_times
from toushi.probe.pipelines.load import load

FIRST_SCENE = 20_000_000  # no other training draws these
CHUNK = 250  # prompts of one file of trajectories
HELD_CHUNKS = 2  # the first files: never trained on


@dataclass(frozen=True)
class Config:
    """What the student sees, and for how long."""

    out: Path = Path("runs/distill_turbo")
    prompts: int = 4_000
    """How many trajectories the teacher draws; those that exist already are kept."""
    minutes: float = 100.0
    """Time for the student in this run. The learning rate falls to nothing over it."""
    steps: int = 8
    teacher_steps: int = 16
    guidance: float = 3.0
    rank: int = 32
    batch: int = 32
    lr: float = 1e-3
    own_states: float = 0.5
    """Share of the states that the student made itself."""
    average: float = 0.999
    threads: int = 1
    seed: int = 0
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
        raise SystemExit(f"teacher_steps must be a multiple of steps, but {config.teacher_steps} came for {config.steps}")
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


class Distillation:
    """The student, its running average, the optimizer's state: everything that a checkpoint holds."""

    def __init__(self, student: MiniUNet, config: Config):
        self.student, self.config, self.samples = student, config, 0
        torch.manual_seed(config.seed)
        student.requires_grad_(False)
        student.unet.requires_grad_(True)
        add_low_rank_updates(student.unet, config.rank)
        named = [(name, p) for name, p in student.unet.named_parameters() if p.requires_grad]
        self.names, self.weights = [name for name, _ in named], [p for _, p in named]
        self.averaged = [p.detach().clone() for p in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.times = shifted_times(config.steps, student.config.shift).float()

    def error(self, trajectories: Tensor, index: Tensor, text: Text, own: Tensor | None = None) -> Tensor:
        """Mean squared distance to the next state of the trajectory, after the student's step from state `index` [b].

        Where `own` [b], the student takes the step before, too, from a state of the teacher's.
        """
        rows = torch.arange(len(index))
        states = trajectories[rows, index]
        if own is not None and own.any():
            with torch.no_grad():
                states[own] = self.step(trajectories[rows, index - own.long()], index - own.long(), text)[own]
        return (self.step(states, index, text) - trajectories[rows, index + 1]).square().mean()

    def step(self, latents: Tensor, index: Tensor, text: Text) -> Tensor:
        velocity = self.student.unet(latents, self.times[index], text)
        return latents + (self.times[index + 1] - self.times[index])[:, None, None, None] * velocity

    def train_step(self, trajectories: Tensor, prompts: list[str], rng: np.random.Generator, lr: float) -> float:
        index = torch.from_numpy(rng.integers(self.config.steps, size=len(prompts)))
        own = torch.from_numpy(rng.random(len(prompts)) < self.config.own_states) & (index > 0)
        with torch.no_grad():
            text = read_captions(self.student, prompts)
        loss = self.error(trajectories, index, text, own)
        (loss * 100).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.samples += len(prompts)
        n = self.samples / len(prompts)
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, self.weights, 1 - min(self.config.average, (1 + n) / (10 + n)))
        return loss.item()

    @torch.no_grad()
    def swap_average(self) -> None:
        """Exchanges the weights and their average."""
        for weight, average in zip(self.weights, self.averaged):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def held_out_error(self, trajectories: Tensor, prompts: list[str]) -> float:
        """Mean squared distance [latent units] to the teacher's last state after `steps` steps of the average."""
        self.swap_average()
        text = read_captions(self.student, prompts)
        latents = trajectories[:, 0]
        for index in range(self.config.steps):
            latents = self.step(latents, torch.full((len(latents),), index), text)
        self.swap_average()
        return (latents - trajectories[:, -1]).square().mean().item()

    def save(self, folder: Path) -> None:
        tensors = {f"weights.{n}": w.detach() for n, w in zip(self.names, self.weights)}
        tensors |= {f"averaged.{n}": w for n, w in zip(self.names, self.averaged)}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        write_checkpoint(folder, tensors, self.samples)

    @torch.no_grad()
    def resume(self, folder: Path) -> None:
        tensors, self.samples = read_checkpoint(folder)
        for name, weight, average in zip(self.names, self.weights, self.averaged):
            weight.copy_(tensors[f"weights.{name}"])
            average.copy_(tensors[f"averaged.{name}"])
        state: dict[int, dict] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".", 2)
                state.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def train(config: Config) -> None:
    torch.set_num_threads(config.threads)
    draw_trajectories(load("mini-unet", "cpu", threads=config.threads), config)
    files = sorted((config.out / "trajectories").glob("*.safetensors"))
    trajectories = torch.cat([load_file(file)["latents"] for file in files])
    prompts = [prompt_of(number) for number in tqdm(range(len(trajectories)), "prompts")]
    held = trajectories[: HELD_CHUNKS * CHUNK : 4].float()
    held_prompts = prompts[: HELD_CHUNKS * CHUNK : 4]
    training = Distillation(load("mini-unet", "cpu", threads=config.threads), config)
    if (config.out / "checkpoint.safetensors").exists():
        training.resume(config.out)
    hours = max((row["hours"] for row in logged(config.out / LOG).values()), default=0.0)
    rng = np.random.default_rng(config.seed + training.samples)
    start, total, saved, losses, step = time.monotonic(), config.minutes * 60, 0.0, [], 0
    bar = tqdm(total=round(total), unit="s", desc="student")
    while True:
        spent = time.monotonic() - start
        chosen = rng.integers(HELD_CHUNKS * CHUNK, len(trajectories), size=config.batch)
        lr = config.lr * min(1, (step + 1) / 100) * max(0.02, 1 - spent / total)
        losses.append(training.train_step(trajectories[chosen].float(), [prompts[i] for i in chosen], rng, lr))
        step += 1
        bar.update(round(spent) - bar.n)
        finished = spent >= total
        if finished or spent - saved >= 60:
            saved = spent
            training.save(config.out)
            row = dict(samples=training.samples, hours=round(hours + spent / 3600, 3), loss=round(float(np.mean(losses)), 6))
            row |= dict(held_out_error=round(training.held_out_error(held, held_prompts), 5), lr=lr)
            with (config.out / LOG).open("a") as file:
                print(json.dumps(row), file=file, flush=True)
            bar.set_postfix(samples=training.samples, held=row["held_out_error"])
            losses = []
        if finished:
            return


if __name__ == "__main__":
    train(tyro.cli(Config, description=__doc__))
