"""Scenes to learn from: drawn once, put through the VAE once, described anew each time they come up."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from probe.models.vae import VAE
from probe.world.captions import describe
from probe.world.draw import render
from probe.world.example import language_of
from probe.world.scenes import Scene, draw_scene


def pictures(scenes: list[Scene]) -> Tensor:
    """uint8 [n, 3, 64, 64]"""
    return torch.from_numpy(np.stack([render(scene)[0] for scene in tqdm(scenes, desc="drawing scenes")])).permute(
        0, 3, 1, 2
    )


def grid(some: list[Image.Image], columns: int = 20) -> Image.Image:
    """Pictures of one size, row by row on one page."""
    side = some[0].width
    page = Image.new("RGB", (columns * side, -(-len(some) // columns) * side))
    for i, picture in enumerate(some):
        page.paste(picture, (i % columns * side, i // columns * side))
    return page


def unit(pixels: Tensor) -> Tensor:
    """uint8 pictures as floats in -1..1."""
    return pixels.float() / 127.5 - 1


def caption(scene: Scene, seed: int) -> str:
    """One of the many things that can be said of a scene, mostly in Chinese."""
    return describe(scene, language_of(scene, seed), seed).text


@dataclass
class Pool:
    scenes: list[Scene]
    latents: Tensor  # fp16 [n, c, h, w], normalised
    covered: Tensor  # fp16 [n, 1, h, w], the share of each cell that objects cover

    def batch(self, size: int, rng: np.random.Generator, dropped: float) -> tuple[Tensor, Tensor, list[str]]:
        """Latents [size, c, h, w], what objects cover of them, and a fresh caption each, `dropped` of them empty."""
        chosen = rng.integers(len(self.scenes), size=size)
        captions = ["" if rng.random() < dropped else caption(self.scenes[i], int(rng.integers(2**31))) for i in chosen]
        rows = torch.from_numpy(chosen)
        return self.latents[rows].float(), self.covered[rows].float(), captions


@torch.no_grad()
def make_pool(vae: VAE, first: int, count: int, cache: Path) -> Pool:
    """Scenes first .. first + count - 1 of the training split; latents are kept in the file `cache`."""
    scenes = [draw_scene(seed, split="train") for seed in tqdm(range(first, first + count), desc="scenes")]
    if not cache.exists():
        latents, covered = [], []
        for start in tqdm(range(0, count, 500), desc="latents"):
            drawn = [render(scene) for scene in scenes[start : start + 500]]
            pixels = torch.from_numpy(np.stack([picture for picture, _ in drawn])).permute(0, 3, 1, 2)
            latents.append(vae.encode(unit(pixels)).half().contiguous())
            masks = torch.from_numpy(np.stack([masks.any(axis=0) for _, masks in drawn]))
            covered.append(F.avg_pool2d(masks[:, None].float(), vae.factor).half())
        temporary = cache.with_suffix(".tmp")
        save_file({"latents": torch.cat(latents), "covered": torch.cat(covered)}, temporary)
        temporary.replace(cache)
    kept = load_file(cache)
    return Pool(scenes, kept["latents"], kept["covered"])
