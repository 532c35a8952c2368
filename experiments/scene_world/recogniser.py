"""Recognises the objects in a picture of the scene world, and judges whether the picture is what its scene asked for.

    python -m toushi.experiments.scene_world.validation --count 500 --model mini-unet     # how reliable it is

Nothing is learnt. The picture minus the nearest empty scene leaves the objects; every sprite in every colour and
size is laid over that difference (matching.py), the one that fits best is taken away, and so on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from toushi.experiments.scene_world.draw import sprite
from toushi.experiments.scene_world.matching import Canvas, shortlist
from toushi.experiments.scene_world.objects import COLOURS
from toushi.experiments.scene_world.scenes import CENTRES, SIDE, SKY, THREE, Scene
from toushi.experiments.scene_world.senses import BY_KIND, SENSES
from toushi.experiments.scene_world.templates import BACKGROUNDS, Background, backgrounds, variants

THRESHOLD = 0.6  # of Detection.score
_MOST = 4  # objects looked for in one picture
_GLIMPSE = 0.3  # share of the difference that a sprite must explain to be taken up at all; its score decides in the end
_UNLIKE = 90  # grey levels, over three channels, at which a pixel is no part of the background
_ASTRAY = 12  # pixels from where an object should be, beyond which it is nowhere
_ALIKE = 60  # grey levels between an icon's own colour and the name that it may have


@dataclass(frozen=True)
class Detection:
    """An object in a picture. `colour` None is the icon's own; `x`, `y` is the centre and `pixels` the side of its square.
    `score` is the share of the picture there that the sprite explains (Canvas.likeness): 1 is all."""

    kind: str
    colour: str | None
    pixels: int
    x: int
    y: int
    score: float


@dataclass(frozen=True)
class Recognition:
    """Objects from the most to the least conspicuous."""

    place: str
    time: str
    style: str
    objects: tuple[Detection, ...]


@dataclass(frozen=True)
class Verdict:
    """One answer for each object of the scene. `objects`: it is there, wherever; `positions`: and where it should be;
    `colours`: and in the colour that was said (None where none is said); `senses`: and nothing of the word's other
    meaning is there (None where the object is not called by a word with two meanings). `place`, `time` and `style`
    are the background's. `extra` counts the objects that nobody asked for."""

    objects: tuple[bool, ...]
    positions: tuple[bool, ...]
    colours: tuple[bool | None, ...]
    senses: tuple[bool | None, ...]
    place: bool
    time: bool
    style: bool
    extra: int

    def answers(self) -> dict[str, list[bool]]:
        """All answers to the same question, without those that are None."""
        every = {"object": self.objects, "position": self.positions, "colour": self.colours, "sense": self.senses}
        every |= {"place": (self.place,), "time": (self.time,), "style": (self.style,)}
        return {what: [right for right in given if right is not None] for what, given in every.items()}


def recognise(picture: np.ndarray, threshold: float = THRESHOLD) -> Recognition:
    """The background and objects of a picture uint8 [64, 64, 3], each object with at least this score."""
    if picture.shape != (SIDE, SIDE, 3) or picture.dtype != np.uint8:
        raise ValueError(f"expected a picture uint8 [64, 64, 3], but {picture.dtype} {list(picture.shape)} came")
    pixels = picture.astype(np.float32)
    ground = nearest_background(pixels, [])
    detections = _objects(pixels, ground, threshold)
    for _ in range(2):  # large objects may have hidden what tells two backgrounds apart
        again = nearest_background(pixels, detections)
        if again == ground:
            break
        ground, detections = again, _objects(pixels, again, threshold)
    return Recognition(*ground, tuple(detections))


def nearest_background(pixels: np.ndarray, detections: list[Detection]) -> Background:
    """The empty scene that most pixels [64, 64, 3] outside the objects agree with; every other pixel is asked."""
    free = np.ones((SIDE, SIDE), np.float32)
    for thing in detections:
        left, top = thing.x - thing.pixels // 2, thing.y - thing.pixels // 2
        free[max(top, 0) : top + thing.pixels, max(left, 0) : left + thing.pixels] = 0.02
    far = np.abs(_thin(backgrounds()) - _thin(pixels)).reshape(len(BACKGROUNDS), 3, -1)
    far = np.minimum(far[:, 0] + far[:, 1] + far[:, 2], _UNLIKE)
    return BACKGROUNDS[int((far @ free[::2, ::2].ravel()).argmin())]


def _thin(planes: np.ndarray) -> np.ndarray:
    """Every other pixel each way: [..., y, x, 3] as [..., 3, y, x]."""
    return np.moveaxis(planes[..., ::2, ::2, :], -1, -3)


def _objects(pixels: np.ndarray, ground: Background, threshold: float) -> list[Detection]:
    canvas, fits = Canvas(pixels, ground), []
    while len(fits) < _MOST:
        likely = [fit for fit in map(canvas.refine, shortlist(canvas)) if fit.share > _GLIMPSE]
        if not likely:
            break
        likely.sort(key=lambda fit: fit.worth, reverse=True)
        fits.append(max(map(canvas.resize, likely[:3]), key=lambda fit: fit.worth))
        canvas.take(fits[-1])
    detections: list[Detection] = []
    for fit in fits:  # once more, now that its neighbours are gone
        canvas.give(fit)
        fit = canvas.resize(canvas.refine(fit))
        kind, colour = variants(ground.style, ground.light.dark)[fit.variant]
        thing = Detection(kind, colour, fit.pixels, *fit.centre, round(canvas.likeness(fit), 3))
        if thing.score >= threshold and not any(_is_remnant(thing, other) for other in detections):
            detections.append(thing)
        canvas.take(fit)
    return detections


def _is_remnant(thing: Detection, other: Detection) -> bool:
    """Whether it is in the middle of another detection, and so a remnant of that one."""
    return max(abs(thing.x - other.x), abs(thing.y - other.y)) < other.pixels / 2


def judge(scene: Scene, recognition: Recognition | np.ndarray, language: str | None = None) -> Verdict:
    """The verdict on a picture, or on its recognition. In a caption of one `language` only words of that language have
    two meanings; without it the word of the scene is taken."""
    recognition = recognition if isinstance(recognition, Recognition) else recognise(recognition)
    matched = match(scene, recognition)
    pairs = list(zip(range(len(matched)), scene.objects, matched))
    return Verdict(
        objects=tuple(detection is not None for detection in matched),
        positions=tuple(detection is not None and _stands(scene, i, detection) for i, _, detection in pairs),
        colours=tuple(
            None
            if thing.colour is None or scene.style != "flat"
            else detection is not None and has_colour(detection, thing.colour)
            for _, thing, detection in pairs
        ),
        senses=tuple(_means(scene, i, recognition, detection, language) for i, _, detection in pairs),
        place=recognition.place == scene.place,
        time=recognition.time == scene.time,
        style=recognition.style == scene.style,
        extra=len(recognition.objects) - sum(detection is not None for detection in matched),
    )


def match(scene: Scene, recognition: Recognition) -> tuple[Detection | None, ...]:
    """The detection of each object of the scene: of all assignments the one with most objects, then most of them in
    place, then most colours right."""

    def merit(way: tuple[Detection | None, ...]) -> tuple[int, int, int]:
        there = [(i, thing, detection) for i, (thing, detection) in enumerate(zip(scene.objects, way)) if detection]
        in_place = sum(_stands(scene, i, detection) for i, _, detection in there)
        return len(there), in_place, sum(has_colour(detection, thing.colour) for _, thing, detection in there)

    return max(_ways(scene, recognition), key=merit)


def _ways(scene: Scene, recognition: Recognition) -> Iterator[tuple[Detection | None, ...]]:
    wanted = [thing.kind for thing in scene.objects]
    for way in permutations([*recognition.objects, *[None] * len(wanted)], len(wanted)):
        yield tuple(detection if detection and detection.kind == kind else None for detection, kind in zip(way, wanted))


def detected_masks(scene: Scene, recognition: Recognition | np.ndarray) -> list[np.ndarray | None]:
    """The mask of each object of the scene in a picture: bool [64, 64], that of the detected sprite; None without one.
    Unlike the scene's own masks they ignore that objects hide each other."""
    matched = match(scene, recognition if isinstance(recognition, Recognition) else recognise(recognition))
    return [None if detection is None else _mask(detection) for detection in matched]


def _mask(detection: Detection) -> np.ndarray:
    solid = sprite(detection.kind, detection.colour, detection.pixels)[1][..., 0] > 0.5
    around = np.zeros((3 * SIDE, 3 * SIDE), bool)
    left, top = SIDE + detection.x - detection.pixels // 2, SIDE + detection.y - detection.pixels // 2
    around[top : top + detection.pixels, left : left + detection.pixels] = solid
    return around[SIDE : 2 * SIDE, SIDE : 2 * SIDE]


@cache
def _spots(count: int) -> tuple[tuple[str, int, int], ...]:
    """Every side where one of so many objects may be, with its centre."""
    if count == 1:
        return tuple((side, *CENTRES[side][0]) for side in ("middle", "left", "right", "top", "bottom"))
    row = THREE if count == 3 else CENTRES["row"]
    names = ("left", "middle", "right") if count == 3 else ("left", "right")
    spots = [(name, x, height) for name, (x, y) in zip(names, row) for height in (y, SKY)]
    column = [] if count == 3 else [(name, *centre) for name, centre in zip(("top", "bottom"), CENTRES["column"])]
    return (*spots, *column)


def _stands(scene: Scene, index: int, detection: Detection) -> bool:
    """Whether it is on the side of this object of the scene, and on no other."""

    def side(x: int, y: int) -> str | None:
        far, name = min(((x - u) ** 2 + (y - v) ** 2, name) for name, u, v in _spots(len(scene.objects)))
        return name if far <= _ASTRAY**2 else None

    thing = scene.objects[index]
    return side(detection.x, detection.y) == side(thing.x, thing.y)


def has_colour(detection: Detection, colour: str | None) -> bool:
    """Whether it has this colour, be it the icon's own. None is any."""
    return colour is None or (detection.colour or _own_colour(detection.kind)) == colour


@cache
def _own_colour(kind: str) -> str | None:
    """The name of the icon's own colour, if one fits: a car is red."""
    own, alpha = sprite(kind, None, 38)
    far = {name: (np.square(sprite(kind, name, 38)[0] - own) * alpha).sum() / alpha.sum() for name in COLOURS}
    name = min(far, key=lambda name: far[name])
    return name if far[name] < _ALIKE**2 else None


def _means(
    scene: Scene, index: int, recognition: Recognition, detection: Detection | None, language: str | None
) -> bool | None:
    thing = scene.objects[index]
    if thing.sense is None:
        return None
    sense = SENSES[thing.sense] if language is None else BY_KIND.get((language, thing.kind))
    if sense is None:
        return None
    others = {s.kind for s in SENSES.values() if (s.word, s.language) == (sense.word, sense.language)}
    others -= {other.kind for other in scene.objects}
    return detection is not None and not any(other.kind in others for other in recognition.objects)
