"""Trains mini-unet-edit: a picture and an instruction, such as 把猫换成狗, become the changed picture.

    python -m toushi.experiments.training.train_edit --minutes 100

The design is that of InstructPix2Pix (Brooks et al. 2023, section 3.2): the source picture's latents stand beside the
noisy ones at the U-Net's first convolution, whose new weights begin at zero; the instruction takes the prompt's place. The
source or the instruction is left out now and then, so that each has a guidance of its own. Pairs are scenes before
and after a drawn instruction (`scene_world/instructions.py`), alike in every pixel that it does not speak of.

Everything else is mini-unet's; only low-rank updates of its encoder and U-Net are trained. Everything lies in
`runs/train_edit`: the pairs' latents, a checkpoint every minute, a log. Started again it goes on from there.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from toushi.experiments.scene_world.instructions import draw_instruction
from toushi.experiments.training.fine_tuning import FineTuning, FineTuningConfig, train_for_minutes
from toushi.experiments.training.losses import Noise, read_captions
from toushi.experiments.training.scene_batches import stack_pictures, unit
from toushi.probe.base.atomic_io import atomic_path
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.load import load

HELD = 256  # pairs of the held-out loss, of other seeds


@dataclass(frozen=True)
class Config(FineTuningConfig):
    """What the model sees, and for how long."""

    out: Path = Path("runs/train_edit")
    pairs: int = 30_000
    rank: int = 16
    changed_weight: float = 3.0
    """How much more the loss counts cells that the instruction changes."""
    dropped: tuple[float, float, float] = (0.05, 0.05, 0.05)
    """Shares of the batch without instruction, without source, without both."""


@dataclass
class Pairs:
    before: Tensor  # fp16 [n, c, h, w], normalised latents
    after: Tensor  # the same of the changed picture
    changed: Tensor  # fp16 [n, 1, h, w], the share of each cell's pixels that differ
    instructions: list[str]


@torch.no_grad()
def make_pairs(model: MiniUNet, seeds: range, split: str, cache: Path) -> Pairs:
    """The pairs of these seeds; latents are kept in the file `cache`."""
    drawn = [draw_instruction(seed, split) for seed in tqdm(seeds, f"pairs of {split}")]
    if not cache.exists():
        parts: dict[str, list[Tensor]] = {"before": [], "after": [], "changed": []}
        for start in tqdm(range(0, len(drawn), 200), "latents"):
            pictures = zip(*(instruction.pictures() for instruction in drawn[start : start + 200]))
            before, after = map(stack_pictures, pictures)
            parts["before"].append(model.vae.encode(unit(before)).half())
            parts["after"].append(model.vae.encode(unit(after)).half())
            differs = (before != after).any(1, keepdim=True).float()
            parts["changed"].append(F.avg_pool2d(differs, model.vae.factor).half())
        with atomic_path(cache) as temporary:
            save_file({name: torch.cat(tensors).contiguous() for name, tensors in parts.items()}, temporary)
    return Pairs(**load_file(cache), instructions=[instruction.text for instruction in drawn])


def first_model() -> MiniUNet:
    """mini-unet with a U-Net that takes a source picture, too, and does not look at it yet."""
    base = load("mini-unet", "cpu")
    config = replace(base.config, unet=replace(base.config.unet, source_channels=base.config.unet.latent_channels))
    model = MiniUNet(config, base.tokenizer)
    weights = base.state_dict()
    weights["unet.conv_in.weight"] = F.pad(weights["unet.conv_in.weight"], (0, 0, 0, 0, 0, config.unet.source_channels))
    model.load_state_dict(weights)
    return model.eval()


class EditTraining(FineTuning):
    """Encoder and U-Net, trained for the velocity of the changed picture beside its source."""

    def __init__(self, model: MiniUNet, config: Config):
        super().__init__(model, ["encoder", "unet"], config, whole=["conv_in"])
        self.dropped, self.changed_weight = config.dropped, config.changed_weight

    def loss(self, pairs: Pairs, rows: np.ndarray, rng: np.random.Generator, train: bool = True) -> Tensor:
        """Mean squared error of the velocity; changed cells count 1 + changed_weight times as much."""
        before, after = pairs.before[rows].float(), pairs.after[rows].float()
        texts = [pairs.instructions[row] for row in rows]
        if train:
            fate = rng.choice(4, size=len(rows), p=[*self.dropped, 1 - sum(self.dropped)])
            texts = ["" if f in (0, 2) else text for f, text in zip(fate, texts)]
            before[torch.from_numpy((fate == 1) | (fate == 2))] = 0
        noise = Noise.like(after, generator=torch.Generator().manual_seed(int(rng.integers(2**63))))
        t = noise.time[:, None, None, None]
        noisy = torch.cat([(1 - t) * after + t * noise.noise, before], dim=1)
        velocity = self.model.unet(noisy, noise.time, read_captions(self.model, texts))
        weight = 1 + self.changed_weight * pairs.changed[rows].float()
        return (weight * (velocity - (noise.noise - after)).square()).sum() / weight.sum() / after.shape[1]


def train(config: Config) -> None:
    torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    model = first_model()
    pairs = make_pairs(model, range(config.pairs), "train", config.out / f"pairs_{config.pairs}.safetensors")
    held = make_pairs(model, range(HELD), "held_out", config.out / "pairs_held.safetensors")
    training = EditTraining(model, config)

    def loss_of(rng: np.random.Generator) -> Tensor:
        return training.loss(pairs, rng.integers(config.pairs, size=config.batch), rng)

    @torch.no_grad()
    def evaluate() -> dict:
        rng = np.random.default_rng(1)
        with training.average_in_place():
            losses = [
                training.loss(held, np.arange(first, first + 64), rng, train=False) for first in range(0, HELD, 64)
            ]
        return {"held_out_loss": round(float(np.mean(losses)), 5)}

    train_for_minutes(training, config.out, loss_of, evaluate)


if __name__ == "__main__":
    train(tyro.cli(Config, description=__doc__))
