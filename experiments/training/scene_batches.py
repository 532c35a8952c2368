"""Scenes for training: drawn and encoded by the VAE once, described anew in each batch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from toushi.experiments.scene_world.captions import Caption, describe
from toushi.experiments.scene_world.draw import render
from toushi.experiments.scene_world.example import language_of
from toushi.experiments.scene_world.objects import COLOURS, KINDS
from toushi.experiments.scene_world.scenes import Scene, draw_scene
from toushi.probe.base.atomic_io import atomic_path
from toushi.probe.models.vae import VAE


def stack_pictures(pictures: Iterable[np.ndarray]) -> Tensor:
    """uint8 [n, 3, y, x] of pictures [y, x, 3]."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2)


def unit(pixels: Tensor) -> Tensor:
    """uint8 pictures as floats in -1..1."""
    return pixels.float() / 127.5 - 1


def caption(scene: Scene, seed: int) -> Caption:
    """One of the many captions of a scene, mostly in Chinese."""
    return describe(scene, language_of(scene, seed), seed)


def garble_caption(caption: Caption, share: float, rng: np.random.Generator) -> str:
    """The caption with a `share` of the text between its parts (objects, colours, positions, contexts, …) left out or
    replaced by random characters, so that a new form of sentence does not hide its content."""
    if not share or "%" in caption.template:  # there the text between the parts decides whose position it is
        return caption.text
    text, at = "", 0
    for start, end in [*sorted((part.start, part.end) for part in caption.parts), (len(caption.text),) * 2]:
        between = caption.text[at:start]
        if rng.random() < share:
            count = int(rng.integers(4))
            between = "".join(map(chr, rng.integers(0x4E00, 0x9FA6, size=count)))
            if caption.language == "en":
                between = f" {''.join(map(chr, rng.integers(ord('a'), ord('z') + 1, size=2 * count)))} "
        text, at = text + between + caption.text[max(start, at) : end], max(at, end)
    return text


class Batch(NamedTuple):
    latents: Tensor  # [b, c, h, w]
    covered: Tensor  # [b, 1, h, w]
    kinds: Tensor  # int64 [b, h, w]
    colours: Tensor  # int64 [b, h, w]
    captions: list[str]


@dataclass
class Pool:
    scenes: list[Scene]
    latents: Tensor  # fp16 [n, c, h, w], normalised
    covered: Tensor  # fp16 [n, 1, h, w], the share of each cell that objects cover
    kinds: Tensor  # uint8 [n, h, w], which kind covers most of the cell: its place in KINDS plus one, 0 for none

    def __post_init__(self):
        self.tables = torch.stack([colour_of_kind(scene) for scene in self.scenes])  # uint8 [n, kinds + 1]

    def batch(self, size: int, rng: np.random.Generator, dropped: float, garble: float = 0.0) -> "Batch":
        """Random scenes with a new caption each; a share `dropped` of them is empty, a share `garble` of the text is garbled."""
        chosen = rng.integers(len(self.scenes), size=size)
        captions = []
        for i in chosen:
            if rng.random() < dropped:
                captions.append("")
                continue
            said = caption(self.scenes[i], int(rng.integers(2**31)))
            captions.append(garble_caption(said, garble, rng))
        rows = torch.from_numpy(chosen)
        kinds = self.kinds[rows].long()
        colours = self.tables[rows].long().gather(1, kinds.flatten(1)).view_as(kinds)
        return Batch(self.latents[rows].float(), self.covered[rows].float(), kinds, colours, captions)


@torch.no_grad()
def make_pool(vae: VAE, first: int, count: int, cache: Path) -> Pool:
    """Scenes first .. first + count - 1 of the training split; latents are kept in the file `cache`."""
    scenes = [draw_scene(seed, split="train") for seed in tqdm(range(first, first + count), desc="scenes")]
    if not cache.exists():
        latents, covered, kinds = [], [], []
        for start in tqdm(range(0, count, 500), desc="latents"):
            drawn = [render(scene) for scene in scenes[start : start + 500]]
            latents.append(vae.encode(unit(stack_pictures(picture for picture, _ in drawn))).half().contiguous())
            shares = [F.avg_pool2d(torch.from_numpy(masks).float(), vae.factor) for _, masks in drawn]
            covered.append(torch.stack([share.sum(0, keepdim=True) for share in shares]).half())
            kinds += [cell_kinds(scene, share) for scene, share in zip(scenes[start : start + 500], shares)]
        pool = {"latents": torch.cat(latents), "covered": torch.cat(covered), "kinds": torch.stack(kinds)}
        with atomic_path(cache) as temporary:
            save_file(pool, temporary)
    return Pool(scenes, **load_file(cache))


def colour_of_kind(scene: Scene) -> Tensor:
    """uint8 [kinds + 1]: the colour in which a kind was asked for, its place in COLOURS plus one, 0 for none.

    Of two objects of one kind in two colours the second one's counts; they are rare.
    """
    table = torch.zeros(len(KINDS) + 1, dtype=torch.uint8)
    for thing in scene.objects:
        if thing.colour is not None:
            table[list(KINDS).index(thing.kind) + 1] = list(COLOURS).index(thing.colour) + 1
    return table


def cell_kinds(scene: Scene, shares: Tensor) -> Tensor:
    """uint8 [h, w]: the kind that covers most of each cell, from the share [objects, h, w] each object has of it."""
    numbers = torch.tensor([list(KINDS).index(thing.kind) + 1 for thing in scene.objects], dtype=torch.uint8)
    share, most = shares.max(dim=0)
    return torch.where(share > 0.3, numbers[most], 0).to(torch.uint8)
