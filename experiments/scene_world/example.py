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


def example(seed: int, split: str = "train") -> Example:
    """The example of this seed."""
    scene = draw_scene(seed, split)
    return Example(scene, describe(scene, language_of(scene, seed), seed), *render(scene))


def language_of(scene: Scene, seed: int) -> str:
    """Seven in ten captions are Chinese. A scene with a polysemous word is mostly described in the language in which the
    word has two meanings."""
    senses = [SENSES[thing.sense].language for thing in scene.objects if thing.sense]
    chinese = 0.72 if not senses else 0.88 if senses[0] == "zh" else 0.12
    return "zh" if Pick(seed, 30).chance(chinese) else "en"
