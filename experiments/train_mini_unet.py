"""Trains mini-unet on the scene world: tokenizer, VAE, then text encoder and U-Net together.

    python -m experiments.train_mini_unet --minutes 100

Everything lies in `runs/train_mini_unet`: checkpoints every ten minutes, a sheet of samples beside each, a log.
Started again it goes on from the last checkpoint; where there is none, `--begin shipped` goes on from the
weights in the repository. The averaged fp16 weights are written where `load("mini-unet")` finds them by `--ship`.
"""

import json
import time
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from experiments.muon import optimizers
from experiments.train_vae import train_vae
from experiments.training_data import Batch, Pool, caption, make_pool
from probe.models.load import SHIPPED, load
from probe.models.mini_unet import MiniUNet, MiniUNetConfig
from probe.models.text import Text, padded_ids
from probe.models.text_encoder import FeedForward
from probe.text.bpe import Tokenizer
from probe.world.objects import COLOURS, KINDS
from probe.world.scenes import draw_scene
from probe.world.sheet import contact_sheet

SHOWN = (
    "左边是猫，右边是月亮，夜晚", "河边的银行在左边，树在右边", "存钱的银行", "一个香甜的苹果", "新发布的苹果", "红色的圆和蓝色的方块",
    "一只河马", "一匹斑马在草地上", "猫头鹰在左边，狗在右边", "水墨画，一只熊猫", "沙滩上有一把绿色的伞", "a yellow car on the left and a tree on the right",
)  # fmt: skip

LOG = "log.jsonl"


@dataclass(frozen=True)
class Recipe:
    """What every training of text encoder and U-Net together is told."""

    pool: int = 40_000
    """Scenes whose latents are kept; later runs draw others (`pool_first`)."""
    pool_first: int = 0
    batch: int = 32
    lr: float = 3e-3
    adam_share: float = 1.0
    """AdamW's learning rate, for embeddings and all that is no hidden matrix, as a share of Muon's."""
    dropped: float = 0.1
    """Share of captions that are emptied, for classifier-free guidance."""
    object_weight: float = 4.0
    """How much more the loss counts cells that objects cover; 0 for a last run on the plain loss."""
    early: float = 0.0
    """Share of the pictures that are drawn from times near the noise, see `Noise`."""
    naming_weight: float = 0.2
    """How much the loss counts the naming of the object at each cell (see `Namer`); 0 turns it off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward and backward on a copy of the weights in bf16, the weights themselves in fp32. Twice as fast on a
    CPU with AMX; on others slower."""
    threads: int | None = None
    reading_weight: float = 0.3
    """How much the loss counts what the text alone says of what lies where (see `Reader`); 0 turns it off."""
    decay: float = 0.01
    """Weight decay of the matrices."""
    average: float = 0.999
    checkpoint_minutes: float = 10.0
    seed: int = 0


@dataclass(frozen=True)
class Config(Recipe):
    """What is trained, on how much, for how long."""

    out: Path = Path("runs/train_mini_unet")
    minutes: float = 100.0
    """Time for the denoiser in this run; the learning rate falls to a tenth over the last fifth of it."""
    vae_minutes: float = 10.0
    vocab_size: int = 1200
    begin: str = "fresh"
    """`fresh`, or `shipped` to go on from the weights in the repository when there is no checkpoint."""
    ship: bool = False
    """Only write the averaged weights of the last checkpoint where load("mini-unet") finds them."""


def captions_for_tokenizer(count: int):
    return (caption(draw_scene(seed), seed) for seed in range(count))


def first_model(config: Config) -> MiniUNet:
    """What training begins with: a fresh denoiser around a tokenizer and a VAE trained first, or the shipped model."""
    folder = config.out / "base"
    if not (folder / "model.safetensors").exists():
        if config.begin == "shipped":
            model = load("mini-unet", "cpu")
        else:
            tokenizer = Tokenizer.train(captions_for_tokenizer(20_000), config.vocab_size)
            shapes = MiniUNetConfig()
            model = MiniUNet(replace(shapes, text=replace(shapes.text, vocab_size=tokenizer.vocab_size)), tokenizer)
            train_vae(model.vae, config.vae_minutes, config.out / "vae.jsonl")
        model.save(folder, torch.float32)
    return MiniUNet.from_folder(folder)


@contextmanager
def attention_in_fp32():
    """In bf16 the backward pass of attention takes ten times as long on a CPU (torch 2.13)."""
    original = F.scaled_dot_product_attention

    def attention(query, key, value, attn_mask=None, scale=None):
        return original(query.float(), key.float(), value.float(), attn_mask, scale=scale).to(query.dtype)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def read_captions(model: MiniUNet, captions: list[str], group: int = 32) -> Text:
    """The captions' states. Read in groups of like length: padded to the longest, half of the work would be pads."""
    encodings = [model.tokenizer.encode(caption) for caption in captions]
    ids, mask = padded_ids(encodings, model.tokenizer.pad)
    lengths = mask.sum(1)
    order = lengths.argsort()
    parts = []
    for rows in order.split(group):
        longest = int(lengths[rows[-1]])
        states = model.encoder(ids[rows, :longest], mask[rows, :longest])
        parts.append(F.pad(states, (0, 0, 0, ids.shape[1] - longest)))
    return Text(torch.cat(parts)[order.argsort()], mask, tuple(encodings))


class Namer(nn.Module):
    """Names the kind of object at each cell, and its colour, from the features of the U-Net's way up. Used in training
    only.

    Naming asks for the right word at the right place, where the velocity of a noisy cell asks first for its colour;
    features that were made to mean something sooner make pictures sooner (Yu et al. 2024, REPA, in spirit). Where all
    is noise, the text alone can tell what belongs where: so sides are learnt. The attention itself is never
    supervised: heat maps stay what the model found by itself.
    """

    def __init__(self, unet: nn.Module):
        super().__init__()
        fine, middle, _ = unet.config.widths
        self.heads = nn.ModuleList([nn.Linear(middle, len(KINDS) + 1), nn.Linear(fine, len(KINDS) + 1)])
        self.colours = nn.ModuleList([nn.Linear(middle, len(COLOURS) + 1), nn.Linear(fine, len(COLOURS) + 1)])
        for head in (*self.heads, *self.colours):  # so that a new head says nothing yet, and disturbs nothing
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.features: list[Tensor] = []
        for stage in unet.up:
            stage.register_forward_hook(lambda module, args, output: self.features.append(output))

    def loss(self, kinds: Tensor, colours: Tensor) -> Tensor:
        """Mean cross-entropy of kinds and colours [b, h, w] over both grids; bare cells count a tenth."""
        weight = torch.where(kinds == 0, 0.1, 1.0)
        total = kinds.new_zeros((), dtype=torch.float32)
        for head, colour, features in zip(self.heads, self.colours, self.features):
            for linear, wanted in ((head, kinds), (colour, colours)):
                logs = linear(features.permute(0, 2, 3, 1)).float().log_softmax(-1)
                # A cell of a coarse grid answers for several of the fine one.
                fine = kinds.shape[-1] // logs.shape[2]
                names, weights = (
                    rearrange(x, "b (h i) (w j) -> b h w (i j)", i=fine, j=fine) for x in (wanted, weight)
                )
                total = total - (weights * logs.gather(-1, names)).sum() / weights.sum()
        return total / len(self.heads)


class Reader(nn.Module):
    """Says from the text alone which kind of object lies where. Used in training only.

    64 learned places ask the encoder's states by one attention of their own and name what lies there. The U-Net alone
    taught the encoder what things are in 500 thousand samples and not once which of two stood on the left.
    """

    def __init__(self, width: int):
        super().__init__()
        self.place = nn.Parameter(torch.randn(64, width) * 0.2)
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.o, self.ff = nn.Linear(width, width), FeedForward(width)
        self.n, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.out = nn.Linear(width, len(KINDS) + 1)

    def loss(self, text: Text, kinds: Tensor) -> Tensor:
        """Mean cross-entropy of the kinds [b, h, w] on a grid of 8x8; bare cells count a tenth."""
        wanted = kinds[:, :: kinds.shape[1] // 8, :: kinds.shape[2] // 8].flatten(1)
        x = self.place.expand(len(wanted), -1, -1)
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", d=32)
            for part in (self.q(self.n(x)), *self.kv(text.states).chunk(2, -1))
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=text.mask[:, None, None])
        x = x + self.o(rearrange(seen, "b h n d -> b n (h d)"))
        logits = self.out(x + self.ff(self.n2(x))).float()
        weight = torch.where(wanted == 0, 0.1, 1.0)
        loss = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
        return (weight * loss).sum() / weight.sum()


class Noise(NamedTuple):
    """What a batch is drowned in, and how deep."""

    time: Tensor  # [b]
    noise: Tensor  # [b, c, h, w]

    @classmethod
    def like(cls, latents: Tensor, early: float = 0.0, generator: torch.Generator | None = None) -> "Noise":
        """Logit-normal times of mean 0.5 (Esser et al. 2024, section 3.1), and for the share `early` of the pictures
        times from 0.85 to 1, where it is decided what goes where."""
        time = torch.sigmoid(torch.randn(len(latents), generator=generator) + 0.5)
        if early:
            near = 1 - 0.15 * torch.rand(len(time), generator=generator)
            time = torch.where(torch.rand(len(time), generator=generator) < early, near, time)
        return cls(time, torch.randn(latents.shape, generator=generator))


def velocity_loss(
    model: MiniUNet,
    batch: Batch,
    object_weight: float = 0.0,
    noise: Noise | None = None,
    text: Text | None = None,
) -> Tensor:
    """Mean squared error of the velocity, under the given noise or fresh one.

    Cells that objects cover count 1 + object_weight times as much: words mostly speak of objects, pixels mostly of
    backgrounds.
    """
    text = text or read_captions(model, batch.captions)
    noise = noise or Noise.like(batch.latents)
    t = noise.time[:, None, None, None]
    noisy = ((1 - t) * batch.latents + t * noise.noise).to(model.dtype, memory_format=torch.channels_last)
    velocity = model.unet(noisy, noise.time, text)
    error = (velocity.float() - (noise.noise - batch.latents)).square().mean(1, keepdim=True)
    weight = 1 + object_weight * batch.covered
    return (weight * error).sum() / weight.sum()


class Training:
    """Weights, their running average, the optimizers' state: everything a checkpoint holds."""

    def __init__(self, model: MiniUNet, config: Recipe):
        self.model, self.config, self.samples = model, config, 0
        model.vae.requires_grad_(False)
        self.worker = deepcopy(model)  # runs forward and backward, on a copy of the weights
        self.namer, self.reader = Namer(self.worker.unet), Reader(model.config.text.width)
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        for part in (self.worker.encoder, self.worker.unet, self.namer, self.reader):
            part.to(dtype, memory_format=torch.channels_last)
        parameters = {n: p for n, p in model.named_parameters() if not n.startswith("vae.")}
        copies = {n: p for n, p in self.worker.named_parameters() if not n.startswith("vae.")}
        copies |= {f"namer.{n}": p for n, p in self.namer.named_parameters()}
        copies |= {f"reader.{n}": p for n, p in self.reader.named_parameters()}
        parameters |= {n: nn.Parameter(p.detach().float()) for n, p in copies.items() if n not in parameters}
        self.names = list(parameters)
        self.weights = [parameters[n].requires_grad_(True) for n in self.names]
        self.copies = [copies[n].requires_grad_(True) for n in self.names]
        self.averaged = [w.detach().clone() for w in self.weights]
        self.optimizers = optimizers(zip(self.names, self.weights), config.lr, config.adam_share, config.decay)

    def step(self, batch: Batch, lr: float, noise: Noise | None = None) -> tuple[float, float, float]:
        """The loss of the velocity, of the naming and of the reading, before the step."""
        self.namer.features.clear()
        with torch.no_grad():
            torch._foreach_copy_(self.copies, self.weights)
        with attention_in_fp32():
            noise = noise or Noise.like(batch.latents, self.config.early)
            text = read_captions(self.worker, batch.captions)
            loss = velocity_loss(self.worker, batch, self.config.object_weight, noise, text)
            naming = self.namer.loss(batch.kinds, batch.colours)
            reading = self.reader.loss(text, batch.kinds)
            (loss + self.config.naming_weight * naming + self.config.reading_weight * reading).backward()
        self.namer.features.clear()
        for weight, copy in zip(self.weights, self.copies):
            weight.grad = copy.grad.to(torch.float32, memory_format=torch.contiguous_format)
            copy.grad = None
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["share"]
            optimizer.step()
            optimizer.zero_grad()
        self.samples += len(batch.captions)
        # A young average forgets its random beginning quickly.
        n = self.samples / len(batch.captions)
        torch._foreach_lerp_(
            self.averaged, [w.detach() for w in self.weights], 1 - min(self.config.average, (1 + n) / (10 + n))
        )
        return loss.item(), naming.item(), reading.item()

    def averaged_model(self) -> MiniUNet:
        model = MiniUNet(self.model.config, self.model.tokenizer)
        averaged = {n: w for n, w in zip(self.names, self.averaged) if not n.startswith(("namer.", "reader."))}
        model.load_state_dict(self.model.state_dict() | averaged)
        return model.eval().requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes, by name."""
        tensors = {f"weights.{n}": w.detach() for n, w in zip(self.names, self.weights)}
        tensors |= {f"averaged.{n}": w for n, w in zip(self.names, self.averaged)}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{key}": value for key, value in state.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor], samples: int) -> None:
        self.samples = samples
        with torch.no_grad():
            for name, weight, average in zip(self.names, self.weights, self.averaged):
                weight.copy_(tensors[f"weights.{name}"])
                average.copy_(tensors[f"averaged.{name}"])
        for i, optimizer in enumerate(self.optimizers):
            state: dict[int, dict] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{i}."):
                    _, _, index, name = key.split(".", 3)
                    state.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def save(self, folder: Path) -> None:
        write_checkpoint(folder, self.tensors(), self.samples)

    def resume(self, folder: Path) -> None:
        self.restore(*read_checkpoint(folder))


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], samples: int) -> None:
    temporary = folder / "checkpoint.tmp"
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"samples": str(samples)})
    temporary.replace(folder / "checkpoint.safetensors")


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], int]:
    file = folder / "checkpoint.safetensors"
    with safe_open(file, "pt") as f:
        samples = int(f.metadata()["samples"])
    return load_file(file), samples


def sheet(model: MiniUNet, file: Path) -> None:
    """The fixed prompts, two seeds each, one above the other."""
    drawn = np.stack([np.stack([np.asarray(p) for p in model.sample(SHOWN, seed=seed, steps=12)]) for seed in (0, 1)])
    cells = [([np.concatenate(pair)], prompt) for pair, prompt in zip(drawn.swapaxes(0, 1), SHOWN)]
    contact_sheet(cells, len(SHOWN)).save(file)


@torch.no_grad()
def held_out_loss(model: MiniUNet, pool: Pool) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        rng = np.random.default_rng(1)
        return sum(velocity_loss(model, pool.batch(64, rng, 0.0)).item() for _ in range(4)) / 4


def train(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    model = first_model(config)
    pool = make_pool(
        model.vae, config.pool_first, config.pool, config.out / f"latents_{config.pool_first}_{config.pool}.safetensors"
    )
    held = make_pool(model.vae, 10_000_000, 512, config.out / "latents_held.safetensors")
    training = Training(model, config)
    if (config.out / "checkpoint.safetensors").exists():
        training.resume(config.out)
    elif config.begin == "shipped":
        training.samples = max(logged(SHIPPED / "mini-unet" / LOG), default=0)
    before = logged(SHIPPED / "mini-unet" / LOG) | logged(config.out / LOG)
    hours = max((row["hours"] for row in before.values()), default=0.0)
    with (config.out / "configs.jsonl").open("a") as file:
        print(json.dumps(asdict(config) | {"samples": training.samples}, default=str), file=file)
    torch.manual_seed(config.seed + training.samples)
    rng = np.random.default_rng(config.seed + training.samples)
    start, total, losses, saved, step = time.monotonic(), config.minutes * 60, [], 0.0, 0
    bar = tqdm(total=round(total), unit="s", desc="denoiser")
    while True:
        spent = time.monotonic() - start
        lr = config.lr * min(1, (step + 1) / 200) * min(1, max(0.1, 5 * (1 - spent / total)))
        losses.append(training.step(pool.batch(config.batch, rng, config.dropped), lr))
        step += 1
        bar.update(round(spent) - bar.n)
        finished = spent >= total
        if finished or spent - saved >= config.checkpoint_minutes * 60:
            saved = spent
            training.save(config.out)
            averaged = training.averaged_model()
            sheet(averaged, config.out / f"samples_{training.samples:08d}.png")
            row = dict(
                samples=training.samples,
                hours=round(hours + spent / 3600, 3),
                loss=round(float(np.mean(losses, axis=0)[0]), 5),
                naming_loss=round(float(np.mean(losses, axis=0)[1]), 5),
                reading_loss=round(float(np.mean(losses, axis=0)[2]), 5),
                held_out_loss=held_out_loss(averaged, held),
                lr=lr,
            )
            with (config.out / LOG).open("a") as file:
                print(json.dumps(row), file=file, flush=True)
            bar.set_postfix(samples=training.samples, loss=f"{row['held_out_loss']:.4f}")
            losses = []
        if finished:
            return


def ship(config: Config) -> None:
    """The averaged weights, and the log of how they came about, to where `load` finds them."""
    training = Training(first_model(config), config)
    training.resume(config.out)
    training.averaged_model().save(SHIPPED / "mini-unet")
    rows = {**logged(SHIPPED / "mini-unet" / LOG), **logged(config.out / LOG)}
    (SHIPPED / "mini-unet" / LOG).write_text("".join(json.dumps(row) + "\n" for row in rows.values()))


def logged(file: Path) -> dict[int, dict]:
    """The rows of a training log by the samples seen."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {row["samples"]: row for row in rows}


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    ship(config) if config.ship else train(config)
