"""From a scene to its picture and to the exact mask of every object.

Sprites are resized and recoloured once and then kept, so that a scene is a handful of numpy operations. The
backgrounds are flat on purpose: a small model must be able to learn them.
"""

import colorsys
import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from toushi.experiments.scene_world.objects import COLOURS, KINDS
from toushi.experiments.scene_world.scenes import SIDE, Scene

_SPRITES = Path(__file__).parent / "sprites"


def render(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The picture, uint8 [64, 64, 3], and the visible pixels of each object, bool [objects, 64, 64].

    A later object lies over an earlier one; a pixel belongs to at most one object."""
    around, gain, offset = tones(scene.place, scene.time, scene.style)
    canvas = background(scene.place, scene.time) * around[0] + np.float32(around[1])
    masks = np.zeros((len(scene.objects), SIDE, SIDE), dtype=bool)
    for index, thing in enumerate(scene.objects):
        left, top, right, bottom = thing.box
        colour, alpha = sprite(thing.kind, thing.colour, thing.pixels)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, SIDE), min(bottom, SIDE)
        cut = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        here = slice(y0, y1), slice(x0, x1)
        a = alpha[cut]
        canvas[here] = canvas[here] * (1 - a) + (colour[cut] * gain + offset) * a
        solid = a[..., 0] > 0.5
        masks[(slice(None), *here)] &= ~solid
        masks[(index, *here)] |= solid
    picture = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return apply_style(picture, scene.style), masks


def is_dark(place: str, time: str) -> bool:
    return time == "night" or place == "space"


def tones(place: str, time: str, style: str) -> tuple[tuple[float, float], np.ndarray, np.float32]:
    """Gain and offset of the background's brightness, then the gain [3] and the offset of the objects' colours."""
    around, upon = _CONTRAST.get((style, is_dark(place, time)), ((1, 0), (1, 0)))
    return around, _TINTS[time] * np.float32(upon[0]), np.float32(upon[1])


# Objects are tinted less than their surroundings, so that their colours keep their names.
_TINTS = {
    "day": np.array([1, 1, 1], np.float32),
    "dusk": np.array([1, 0.93, 0.86], np.float32),
    "night": np.array([0.82, 0.85, 0.95], np.float32),
}


# By style and darkness: gain and offset of the background's brightness and of the objects'. Without colours an
# object would often vanish in front of a place of the same brightness.
_CONTRAST = {
    ("ink", False): ((0.4, 150), (0.62, 0)), ("ink", True): ((0.4, 140), (0.42, 0)),
    ("blueprint", False): ((0.4, 0), (0.55, 115)), ("blueprint", True): ((0.35, 0), (0.55, 100)),
    ("sepia", False): ((0.5, 125), (0.68, 0)), ("sepia", True): ((0.7, 0), (0.75, 70)),
}  # fmt: skip


@cache
def _sheet() -> tuple[Image.Image, dict]:
    index = json.loads((_SPRITES / "sprites.json").read_text(encoding="utf-8"))
    return Image.open(_SPRITES / "sprites.png").convert("RGBA"), index


def icon(name: str) -> np.ndarray:
    """One sprite as it is kept: float32 RGBA [64, 64, 4], colours 0..255, alpha 0..1."""
    sheet, index = _sheet()
    place, side = index["names"].index(name), index["size"]
    left, top = place % index["columns"] * side, place // index["columns"] * side
    pixels = np.asarray(sheet.crop((left, top, left + side, top + side)), dtype=np.float32).copy()
    pixels[..., 3] /= 255
    return pixels


@cache
def sprite(kind: str, colour: str | None, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour float32 [pixels, pixels, 3] and alpha float32 [pixels, pixels, 1] of a kind, at this side in pixels."""
    rgba = _premultiplied(kind, colour)
    planes = [Image.fromarray(rgba[..., c]).resize((pixels, pixels), Image.Resampling.BOX) for c in range(4)]
    small = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    alpha = np.clip(small[..., 3:], 0, 1)
    return small[..., :3] / np.maximum(alpha, 1e-4), alpha


@cache
def _premultiplied(kind: str, colour: str | None) -> np.ndarray:
    rgba = icon(KINDS[kind].icon)
    if kind == "bird" and colour is None:
        colour = "blue"  # the icon is crimson, and so near the flower that 杜鹃 also means
    if colour is not None:
        rgba[..., :3] = recolour(rgba, COLOURS[colour])
    rgba[..., :3] *= rgba[..., 3:]
    return rgba


def recolour(rgba: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The icon's main hue changed to `colour`, its shading kept; outlines, eyes and other hues stay."""
    rgb = rgba[..., :3] / 255
    high, low = rgb.max(-1), rgb.min(-1)
    saturation = np.where(high > 0, (high - low) / np.maximum(high, 1e-6), 0)
    hue = np.array([[colorsys.rgb_to_hsv(*p)[0] for p in row] for row in rgb])
    coloured = (rgba[..., 3] > 0.5) & (saturation > 0.3)
    counts = np.bincount((hue[coloured] * 24).astype(int) % 24, minlength=24)
    main = (int((counts + np.roll(counts, 1) + np.roll(counts, -1)).argmax()) + 0.5) / 24
    distance = np.abs((hue - main + 0.5) % 1 - 0.5)
    chosen = (saturation > 0.25) & (distance < 0.11) & (rgba[..., 3] > 0)
    light = rgb @ np.array([0.3, 0.59, 0.11], np.float32)
    middle = np.median(light[chosen & coloured])
    shade = np.clip(1 + 0.8 * (light - middle) / max(middle, 0.25), 0.55, 1.25)[..., None]
    return np.where(chosen[..., None], np.clip(np.array(colour, np.float32) * shade, 0, 255), rgba[..., :3])


@cache
def background(place: str, time: str) -> np.ndarray:
    """The empty scene, float32 [64, 64, 3], before the tones of a style are applied."""
    scale = 4
    image = Image.new("RGB", (SIDE * scale, SIDE * scale))
    pen = ImageDraw.Draw(image)
    _PLACES[place](lambda kind, points, fill: _mark(pen, kind, points, fill, scale), time)
    canvas = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32).copy()
    if time != "day" and place not in ("plain", "space"):
        canvas *= np.array([1.0, 0.86, 0.78] if time == "dusk" else [0.36, 0.42, 0.62], np.float32)
    canvas.setflags(write=False)
    return canvas


def _mark(pen, kind, points, fill, scale):
    points = [(x * scale, y * scale) for x, y in points]
    pen.rectangle(points, fill=fill) if kind == "box" else pen.polygon(points, fill=fill)


def _fill(mark, top, bottom, colour):
    mark("box", [(0, top), (64, bottom)], colour)


def _plain(mark, time):
    _fill(mark, 0, 64, {"day": (238, 238, 234), "dusk": (252, 204, 164), "night": (34, 40, 82)}[time])


def _sky(mark, time):
    _fill(mark, 0, 64, {"day": (166, 214, 248), "dusk": (255, 212, 174), "night": (92, 104, 150)}[time])


def _grass(mark, time):
    _sky(mark, time)
    _fill(mark, 42, 64, (136, 200, 98))


def _beach(mark, time):
    _sky(mark, time)
    _fill(mark, 28, 38, (64, 156, 216))
    _fill(mark, 38, 64, (244, 222, 166))


def _desert(mark, time):
    _fill(mark, 0, 64, (252, 236, 196) if time == "day" else (255, 216, 180) if time == "dusk" else (110, 110, 150))
    mark("polygon", [(0, 46), (20, 30), (42, 44), (64, 34), (64, 64), (0, 64)], (232, 176, 98))
    mark("polygon", [(0, 56), (30, 46), (64, 54), (64, 64), (0, 64)], (216, 150, 76))


def _snow(mark, time):
    _fill(mark, 0, 64, (188, 208, 226) if time == "day" else (250, 206, 190) if time == "dusk" else (96, 108, 150))
    mark("polygon", [(4, 40), (16, 16), (28, 40)], (150, 172, 198))
    mark("polygon", [(34, 40), (50, 10), (66, 40)], (150, 172, 198))
    _fill(mark, 38, 64, (248, 251, 255))


def _city(mark, time):
    _sky(mark, time)
    for left, right, top in ((0, 10, 18), (11, 21, 8), (22, 34, 24), (35, 44, 12), (45, 55, 20), (56, 64, 6)):
        mark("box", [(left, top), (right, 50)], (150, 158, 176))
        lamp = (190, 198, 212) if time == "day" else (255, 232, 140)
        for y in range(top + 3, 44, 6):
            for x in range(left + 2, right - 2, 4):
                mark("box", [(x, y), (x + 1.6, y + 2.4)], lamp)
    _fill(mark, 48, 64, (112, 114, 124))
    for x in range(2, 64, 14):
        mark("box", [(x, 55), (x + 7, 57)], (232, 232, 220))


def _room(mark, time):
    _fill(mark, 0, 64, (250, 224, 200))
    pane = {"day": (166, 214, 248), "dusk": (255, 170, 110), "night": (50, 60, 120)}[time]
    mark("box", [(22, 4), (42, 22)], (255, 255, 255))
    mark("box", [(24, 6), (31, 20)], pane)
    mark("box", [(33, 6), (40, 20)], pane)
    _fill(mark, 46, 64, (176, 120, 78))
    _fill(mark, 44, 46, (255, 248, 238))


def _sea(mark, time):
    _sky(mark, time)
    _fill(mark, 26, 64, (44, 128, 204))
    for y, start in ((32, 4), (40, 14), (48, 2), (56, 18)):
        for x in range(start, 64, 24):
            mark("box", [(x, y), (x + 9, y + 1.2)], (150, 206, 240))


def _forest(mark, time):
    _fill(mark, 0, 64, (206, 232, 190) if time == "day" else (250, 206, 150) if time == "dusk" else (110, 124, 140))
    for x, top in ((2, 12), (13, 4), (24, 14), (35, 6), (46, 13), (57, 3)):
        mark("polygon", [(x - 8, 46), (x + 3, top), (x + 14, 46)], (62, 124, 80))
    _fill(mark, 46, 64, (110, 128, 62))


def _space(mark, time):
    _fill(mark, 0, 64, (18, 14, 40))
    for x, y in ((6, 8), (18, 20), (30, 5), (44, 13), (57, 7), (9, 36), (25, 47), (38, 33), (53, 42), (60, 27),
                 (4, 56), (17, 60), (46, 57), (59, 60), (33, 59), (50, 25)):  # fmt: skip
        mark("box", [(x, y), (x + 1.4, y + 1.4)], (255, 255, 235))


_PLACES = {"plain": _plain, "grass": _grass, "beach": _beach, "desert": _desert, "snow": _snow, "city": _city,
           "room": _room, "sea": _sea, "forest": _forest, "space": _space}  # fmt: skip

# Darkest and lightest tone of each style, between which the picture's brightness is laid.
_TONES = {"ink": ((22, 24, 26), (246, 240, 226)), "blueprint": ((16, 48, 128), (226, 240, 255)),
          "sepia": ((66, 36, 14), (252, 222, 164))}  # fmt: skip


@cache
def _ramp(style: str) -> np.ndarray:
    dark, light = (np.array(tone, np.float32) for tone in _TONES[style])
    share = np.arange(256, dtype=np.float32)[:, None] / 255
    return (dark + (light - dark) * share + 0.5).astype(np.uint8)


def apply_style(picture: np.ndarray, style: str) -> np.ndarray:
    """Colours uint8 [..., 3] in the tones of the style."""
    if style == "flat":
        return picture
    brightness = (picture @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)
    return _ramp(style)[brightness]
