"""What a picture of the scene world shows: place, time and style first, then one object after another.

    python -m probe.world.recogniser --count 500 --model runs/train_mini_unet/base

Nothing is learnt. The picture minus the nearest empty scene leaves the objects; every sprite in every colour and
size is laid over that difference, and the one that explains most of it is taken, removed, and so on. Pictures and
sprites are softened first, so that the blur of a decoder costs little.
"""

from dataclasses import dataclass

import numpy as np

from probe.world.matching import Canvas, Fit, shortlist
from probe.world.scenes import SIDE
from probe.world.templates import BACKGROUNDS, Background, backgrounds, variants

THRESHOLD = 0.01  # of Found.score
_UNLIKE = 90  # grey levels, over three channels, at which a pixel is none of the background
_MOST = 4  # objects looked for in one picture


@dataclass(frozen=True)
class Found:
    """`colour` None is the icon's own; `x`, `y` the centre and `pixels` the side of its square. `score` is the share
    of the difference from the empty scene that the sprite explains, within its square and a margin: 1 is all."""

    kind: str
    colour: str | None
    pixels: int
    x: int
    y: int
    score: float


@dataclass(frozen=True)
class Seen:
    """Objects from the most to the least conspicuous."""

    place: str
    time: str
    style: str
    objects: tuple[Found, ...]


def recognise(picture: np.ndarray, count: int | None = None, threshold: float = THRESHOLD) -> Seen:
    """What is seen in a picture uint8 [64, 64, 3]; at most `count` objects, each with at least this score."""
    if picture.shape != (SIDE, SIDE, 3) or picture.dtype != np.uint8:
        raise ValueError(f"expected a picture uint8 [64, 64, 3], got {picture.dtype} {list(picture.shape)}")
    pixels = picture.astype(np.float32)
    ground = nearest_background(pixels, _outside([]))
    found = _objects(pixels, ground, count or _MOST, threshold)
    for _ in range(2):
        again = nearest_background(pixels, _outside(found))
        if again == ground:
            break
        ground = again
        found = _objects(pixels, ground, count or _MOST, threshold)
    return Seen(*ground, tuple(found))


def nearest_background(pixels: np.ndarray, weight: np.ndarray) -> Background:
    """The empty scene that most pixels [64, 64, 3] agree with; `weight` [64, 64] is 0 where objects stand."""
    far = np.abs(_thinned(backgrounds()) - _thinned(pixels)).reshape(len(BACKGROUNDS), 3, -1)
    far = np.minimum(far[:, 0] + far[:, 1] + far[:, 2], _UNLIKE)
    return BACKGROUNDS[int((far @ weight[::2, ::2].ravel()).argmin())]


def _thinned(planes: np.ndarray) -> np.ndarray:
    """Every other pixel each way, [..., y, x, 3] as [..., 3, y, x]."""
    return np.moveaxis(planes[..., ::2, ::2, :], -1, -3)


def _outside(found: list[Found]) -> np.ndarray:
    weight = np.ones((SIDE, SIDE), np.float32)
    for thing in found:
        left, top = thing.x - thing.pixels // 2, thing.y - thing.pixels // 2
        weight[max(top, 0) : top + thing.pixels, max(left, 0) : left + thing.pixels] = 0
    return weight if weight.mean() > 0.1 else np.ones_like(weight)


def _objects(pixels: np.ndarray, ground: Background, count: int, threshold: float) -> list[Found]:
    canvas, fits = Canvas(pixels, ground), []
    while len(fits) < count:
        better = [fit for fit in map(canvas.refined, shortlist(canvas)) if fit.score > threshold / 2]
        if not better:
            break
        fits.append(max(better, key=lambda fit: fit.worth))
        canvas.take(fits[-1])
    if len(fits) > 1:
        for i, fit in enumerate(fits):
            canvas.give(fit)
            fits[i] = canvas.refined(fit)
            canvas.take(fits[i])
    names = variants(ground.style, ground.light.dark)
    found = (Found(*names[fit.variant], fit.pixels, *fit.centre, round(fit.score, 3)) for fit in fits)
    return [thing for thing in found if thing.score >= threshold]
