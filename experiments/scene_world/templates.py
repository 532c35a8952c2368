"""Every sprite as it looks in one light, for the recogniser.

A light is a time, a style and whether the place is dark; it fixes how sprites are tinted and apply_style (draw.render).
"""

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from toushi.experiments.scene_world.draw import apply_style, is_dark, render, sprite, tones
from toushi.experiments.scene_world.objects import COLOURS, KINDS, SHAPES
from toushi.experiments.scene_world.scenes import PLACES, STYLES, TIMES, Scene, is_invisible

# Sides to be searched, a tenth apart: those in which the world draws, and more where they leave a gap.
PIXELS = (14, 16, 19, 21, 24, 27, 30, 34, 38, 42, 46, 50)


# How often sprites and pictures are softened before they are compared: what is drawn a pixel off still agrees.
SOFT = 3


class Light(NamedTuple):
    time: str
    style: str
    dark: bool


class Background(NamedTuple):
    place: str
    time: str
    style: str

    @property
    def light(self) -> Light:
        return Light(self.time, self.style, is_dark(self.place, self.time))


BACKGROUNDS = tuple(
    Background(place, time, style)
    for place in PLACES for time in TIMES for style in STYLES if place != "space" or time == "day"
)  # fmt: skip


@cache
def backgrounds() -> np.ndarray:
    """The empty scenes, float32 [backgrounds, 64, 64, 3]."""
    return np.stack([render(Scene((), *each, layout="middle"))[0] for each in BACKGROUNDS]).astype(np.float32)


@cache
def variants(style: str, dark: bool) -> tuple[tuple[str, str | None], ...]:
    """(kind, colour) of every object that the world draws in such a light."""
    seen = [colour for colour in COLOURS if not is_invisible(colour, "space" if dark else "plain", "day")]
    pairs = []
    for kind in KINDS.values():
        own = [] if kind.name in SHAPES else [None]
        if style != "flat":
            pairs += [(kind.name, colour) for colour in own or ["blue"]]
        else:
            pairs += [(kind.name, colour) for colour in own + (seen if kind.colourable else [])]
    return tuple(pairs)


@lru_cache(maxsize=20_000)
def template(light: Light, variant: int, pixels: int) -> np.ndarray:
    """Premultiplied colour and alpha of a variant (its index): float32 [side, side, 4].

    `side` is even: the sprite with a margin of SOFT pixels, for softening (and an empty row and column
    below and right if `pixels` is odd)."""
    place = "space" if light.dark and light.time == "day" else "plain"
    _, gain, offset = tones(place, light.time, light.style)
    rgb, alpha = sprite(*variants(light.style, light.dark)[variant], pixels)
    lit = apply_style(np.clip(rgb * gain + offset + 0.5, 0, 255).astype(np.uint8), light.style)
    margin = (SOFT, SOFT + pixels % 2)
    return np.pad(np.concatenate([lit * alpha, alpha], axis=-1), (margin, margin, (0, 0)))


@lru_cache(maxsize=20_000)
def softened_template(light: Light, variant: int, pixels: int) -> np.ndarray:
    return soften(template(light, variant, pixels))


def soften(planes: np.ndarray, times: int = SOFT) -> np.ndarray:
    """[..., y, x, c] smoothed by (1 2 1)/4 both ways, so many times; nothing lies beyond the edge."""
    for axis in (-3, -2) * times:
        smooth = planes / 2
        ahead, behind = [slice(None)] * planes.ndim, [slice(None)] * planes.ndim
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        smooth[tuple(ahead)] += planes[tuple(behind)] / 4
        smooth[tuple(behind)] += planes[tuple(ahead)] / 4
        planes = smooth
    return planes
