"""Scenes to learn from: drawn once, put through the VAE once, described anew each time they come up."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
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

    def batch(self, size: int, rng: np.random.Generator, dropped: float) -> tuple[Tensor, list[str]]:
        """Latents [size, c, h, w] and a fresh caption each; the share `dropped` of the captions is empty."""
        chosen = rng.integers(len(self.scenes), size=size)
        captions = ["" if rng.random() < dropped else caption(self.scenes[i], int(rng.integers(2**31))) for i in chosen]
        return self.latents[torch.from_numpy(chosen)].float(), captions


@torch.no_grad()
def make_pool(vae: VAE, first: int, count: int, cache: Path) -> Pool:
    """Scenes first .. first + count - 1 of the training split; latents are kept in the file `cache`."""
    scenes = [draw_scene(seed, split="train") for seed in tqdm(range(first, first + count), desc="scenes")]
    if not cache.exists():
        parts = []
        for start in tqdm(range(0, count, 500), desc="latents"):
            pixels = np.stack([render(scene)[0] for scene in scenes[start : start + 500]])
            parts.append(vae.encode(unit(torch.from_numpy(pixels).permute(0, 3, 1, 2))).half().contiguous())
        temporary = cache.with_suffix(".tmp")
        save_file({"latents": torch.cat(parts).contiguous()}, temporary)
        temporary.replace(cache)
    return Pool(scenes, load_file(cache)["latents"])
