"""One training example: a scene, what is said of it, its picture, and where each word of the caption lies."""

from dataclasses import dataclass

import numpy as np

from toushi.experiments.scene_world.captions import Caption, describe
from toushi.experiments.scene_world.draw import render
from toushi.experiments.scene_world.scenes import Pick, Scene, draw_scene
from toushi.experiments.scene_world.senses import SENSES


@dataclass(frozen=True)
class Example:
    """`picture` uint8 [64, 64, 3]; `masks` bool [objects, 64, 64], the visible pixels of each object."""

    scene: Scene
    caption: Caption
    picture: np.ndarray
    masks: np.ndarray


def example(seed: int, split: str = "train", language: str | None = None) -> Example:
    """The example of this seed. Without `language` seven in ten are Chinese, and a scene with a polysemous word is mostly
    described in the language in which the word has two meanings."""
    scene = draw_scene(seed, split)
    caption = describe(scene, language or language_of(scene, seed), seed)
    return Example(scene, caption, *render(scene))


def language_of(scene: Scene, seed: int) -> str:
    senses = [SENSES[thing.sense].language for thing in scene.objects if thing.sense]
    chinese = 0.72 if not senses else 0.88 if senses[0] == "zh" else 0.12
    return "zh" if Pick(seed, 30).chance(chinese) else "en"
