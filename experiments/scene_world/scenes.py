"""Scenes: the objects, place, time and style of a picture, before it is drawn or described.

What a caption leaves unsaid has one fixed meaning, so that captions determine pictures: no place is a plain pale
background, no time is day, no style is flat colours, no size is medium, no colour is the icon's own, one object
stands in the middle, and two or three objects named without positions stand from left to right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar
from zlib import crc32

import numpy as np

from toushi.experiments.scene_world.objects import COLOURABLE, COLOURS, KINDS, PLAIN, SHAPES
from toushi.experiments.scene_world.senses import BY_KIND, SENSES

T = TypeVar("T")
SIDE = 64
PLACES = ("plain", "grass", "beach", "desert", "snow", "city", "room", "sea", "forest", "space")
TIMES = ("day", "dusk", "night")
STYLES = ("flat", "ink", "blueprint", "sepia")
SPLITS = ("train", "test", "held_out")


@dataclass(frozen=True)
class Object:
    """One object. `sense` names the polysemous word it is to be called by (senses.SENSES) or is None; `colour` None
    is the icon's own. `x`, `y` is the centre and `pixels` the side of its square, in pixels of the picture."""

    kind: str
    sense: str | None
    colour: str | None
    size: str  # small | medium | large
    x: int
    y: int
    pixels: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels, right and bottom exclusive; may reach over the picture's edge."""
        left, top = self.x - self.pixels // 2, self.y - self.pixels // 2
        return left, top, left + self.pixels, top + self.pixels


@dataclass(frozen=True)
class Scene:
    """Objects in reading order (left to right, or top to bottom). `layout` is middle, left, right, top or bottom for
    one object, row or column for several. `held_out` names the combinations that never occur in training: pair,
    colour, template (the caption then uses a held-out template)."""

    objects: tuple[Object, ...]
    place: str
    time: str
    style: str
    layout: str
    held_out: tuple[str, ...] = ()


def pair_is_held_out(first: str, second: str) -> bool:
    """About one in ten pairs of kinds, whatever their order; a pair of one kind never."""
    if first == second:
        return False
    return crc32(("pair 1 " + " ".join(sorted((first, second)))).encode()) % 10 == 0


def colour_is_held_out(colour: str | None, kind: str) -> bool:
    """About one in ten pairs of a colour and a kind."""
    return colour is not None and crc32(f"colour 1 {colour} {kind}".encode()) % 10 == 0


def held_out(objects: tuple[Object, ...]) -> tuple[str, ...]:
    """The rules, of pair and colour, by which these objects are held out."""
    kinds = [thing.kind for thing in objects]
    pairs = any(pair_is_held_out(a, b) for i, a in enumerate(kinds) for b in kinds[:i])
    colours = any(colour_is_held_out(thing.colour, thing.kind) for thing in objects)
    return ("pair",) * pairs + ("colour",) * colours


class Pick:
    """Weighted choices from one generator, several times faster than Generator.choice."""

    def __init__(self, seed: int, stream: int):
        self.random = np.random.Generator(np.random.PCG64([seed, stream])).random

    def choose(self, options: Sequence[T]) -> T:
        return options[int(self.random() * len(options))]

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def integer(self, low: int, high: int) -> int:
        """A number from low to high, both included."""
        return low + int(self.random() * (high - low + 1))


# Centres and sides of the objects' squares, by how many there are.
SIDES = {1: {"small": 26, "medium": 38, "large": 50}, 2: {"small": 20, "medium": 27, "large": 34},
          "aside": {"small": 24, "medium": 34, "large": 42}, 3: {"small": 14, "medium": 19, "large": 24}}  # fmt: skip
CENTRES = {"middle": ((32, 33),), "left": ((19, 33),), "right": ((45, 33),), "top": ((32, 19),),
            "bottom": ((32, 45),), "row": ((17, 36), (47, 36)), "column": ((32, 16), (32, 48))}  # fmt: skip
THREE = ((11, 36), (32, 36), (53, 36))
SKY = 20  # where the sun, the moon and clouds hang when they stand in a row

_ZH_SENSES = tuple(name for name, sense in SENSES.items() if sense.language == "zh")
_EN_SENSES = tuple(name for name, sense in SENSES.items() if sense.language == "en")
_COLOUR_NAMES = tuple(COLOURS)


def draw_scene(seed: int, split: str = "train") -> Scene:
    """The scene of this seed. The same seed in another split is another scene.

    `train` and `test` have one distribution; nothing in them is held out. Every scene of `held_out` contains at
    least one held-out pair of objects, colour of an object, or caption template."""
    if split not in SPLITS:
        raise ValueError(f"split is one of {', '.join(SPLITS)}, not {split!r}")
    pick = Pick(seed, 10 + SPLITS.index(split))
    wish = pick.choose(("pair", "colour", "template", "template")) if split == "held_out" else None
    while True:
        scene = _sample(pick)
        rules = held_out(scene.objects)
        if wish == "template" and not rules and len(scene.objects) < 3:
            return replace(scene, held_out=("template",))
        if (wish is None and not rules) or wish in rules:
            return replace(scene, held_out=rules)


def _sample(pick: Pick) -> Scene:
    place = "plain" if pick.chance(0.42) else pick.choose(PLACES[1:])
    draw = pick.random()
    time = "day" if draw < 0.6 or place == "space" else "dusk" if draw < 0.77 else "night"
    style = pick.choose(("ink", "ink", "blueprint", "sepia")) if pick.chance(0.12) else "flat"

    draw = pick.random()
    wanted: list[tuple[str, str | None, str | None]]
    if draw < 0.30:
        wanted = [_plain(pick)]
    elif draw < 0.60:
        wanted = [_plain(pick), _plain(pick)]
    elif draw < 0.75:
        wanted = [*_coloured(pick)]
    elif draw < 0.95:
        wanted = [_ambiguous(pick)]
        if pick.chance(0.45):
            wanted.insert(pick.integer(0, 1), _plain(pick))
    else:
        wanted = [_plain(pick), _plain(pick), _plain(pick)]

    count = len(wanted)
    if count == 1:
        layout = "middle" if pick.chance(0.72) else pick.choose(("left", "left", "right", "right", "top", "bottom"))
    else:
        layout = "column" if count == 2 and pick.chance(0.3) else "row"
    objects = tuple(_put(pick, wanted, i, layout, place, time, style) for i in range(count))
    if any(a.kind == b.kind and a.colour == b.colour for i, a in enumerate(objects) for b in objects[:i]):
        return _sample(pick)
    return Scene(objects, place, time, style, layout)


def _plain(pick: Pick) -> tuple[str, None, str | None]:
    kind = pick.choose(PLAIN)
    return kind, None, pick.choose(_COLOUR_NAMES) if KINDS[kind].colourable and pick.chance(0.5) else None


def _coloured(pick: Pick) -> list[tuple[str, None, str]]:
    wanted = []
    for _ in range(1 if pick.chance(0.25) else 2):
        kind = pick.choose(SHAPES) if pick.chance(0.6) else pick.choose(COLOURABLE)
        wanted.append((kind, None, pick.choose(_COLOUR_NAMES)))
    return wanted


def _ambiguous(pick: Pick) -> tuple[str, str, None]:
    sense = pick.choose(_ZH_SENSES) if pick.chance(0.8) else pick.choose(_EN_SENSES)
    return SENSES[sense].kind, sense, None


def _put(pick: Pick, wanted: list, index: int, layout: str, place: str, time: str, style: str) -> Object:
    kind, sense, colour = wanted[index]
    is_shape = kind in SHAPES
    if colour is not None:
        while is_invisible(colour, place, time):
            colour = pick.choose(_COLOUR_NAMES)
        # A style leaves no colours to see. Shapes still need one that can be told from the background.
        colour = colour if style == "flat" else "blue" if is_shape else None
    draw = pick.random()
    size = "medium" if draw < 0.74 else "large" if draw < 0.87 else "small"
    x, y = THREE[index] if len(wanted) == 3 else CENTRES[layout][index]
    if layout == "row" and KINDS[kind].group == "sky":
        y = SKY
    aside = len(wanted) == 1 and layout != "middle"
    pixels = SIDES["aside" if aside else len(wanted)][size]
    return Object(kind, sense, colour, size, x + pick.integer(-2, 2), y + pick.integer(-2, 2), pixels)


def is_invisible(colour: str, place: str, time: str) -> bool:
    """Whether an object of this colour could not be seen there."""
    dark = place == "space" or time == "night"
    return (colour == "white" and not dark) or (colour == "black" and dark)


def sense_of(thing: Object, language: str):
    """The Sense by which this object is named in this language, or None when its plain name is used."""
    return None if thing.sense is None else BY_KIND.get((language, thing.kind))
