"""Finds the sprites that explain most of the difference between a picture and the empty scene.

With D the picture minus the empty scene B, and M = alpha (sprite - B) what a sprite adds there, the squared error
that the sprite takes away at contrast k is |D|^2 - |D - kM|^2 = 2k D.M - k^2 M.M: its gain. Every variant, size and
place is tried at a half or a quarter of the resolution, the best again at the whole. Both products are linear in
fields of the picture and of the sprite, so that a size is one matrix product. (There the sprite's softened edge is
laid over a softened scene; what is taken away in the end is softened as a whole.)
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from toushi.experiments.scene_world.scenes import SIDE
from toushi.experiments.scene_world.templates import (
    BACKGROUNDS,
    PIXELS,
    SOFT,
    Background,
    Light,
    backgrounds,
    soften,
    softened_template,
    template,
    variants,
)

Values = TypeVar("Values", float, np.ndarray)
PAD = 20  # pixels of nothing around the picture, so that sprites may reach over its edge
_RESIZE = 2  # pixels by which a size that was searched may be off
_LEAST_CONTRAST = 0.75  # a decoder fades what is faint, a white cloud in a pale sky
_NOISE = 5.0  # squared error of a pixel, over three channels, that is put down to the decoder
_FAINT = 15.0  # the same of a sprite's whole square, below which nothing is looked for


@dataclass(frozen=True)
class Fit:
    """A variant (its index) `pixels` wide, the corner of its sheet at x, y of the padded canvas; what it is worth
    (see `worth`), and the share of the squared error in its square and a margin that it explains."""

    variant: int
    pixels: int
    x: int
    y: int
    contrast: float = 1.0
    worth: float = 0.0
    share: float = 0.0

    @property
    def centre(self) -> tuple[int, int]:
        """x, y in the picture, as scenes.Object has them."""
        return self.x + SOFT - PAD + self.pixels // 2, self.y + SOFT - PAD + self.pixels // 2


class Canvas:
    """An empty scene, and `rest`, what of the picture is not yet explained: softened, padded, [y, x, 3]."""

    def __init__(self, picture: np.ndarray, ground: Background):
        self.ground = ground
        self.empty, self.inside = _scene(ground)
        self.sharp = _frame(backgrounds()[BACKGROUNDS.index(ground)])
        self.rest = _frame(soften(picture - backgrounds()[BACKGROUNDS.index(ground)]))

    def take(self, fit: Fit) -> None:
        self.rest -= self.layer(fit)

    def give(self, fit: Fit) -> None:
        self.rest += self.layer(fit)

    def layer(self, fit: Fit) -> np.ndarray:
        """What the sprite adds to the empty scene: [y, x, 3], nothing elsewhere."""
        sheet = template(self.ground.light, fit.variant, fit.pixels)
        here = slice(fit.y, fit.y + len(sheet)), slice(fit.x, fit.x + len(sheet))
        change = (sheet[..., :3] - sheet[..., 3:] * self.sharp[here]) * self.inside[here]
        layer = np.zeros_like(self.rest)
        layer[here] = fit.contrast * soften(change) * self.inside[here]
        return layer

    def refine(self, fit: Fit) -> Fit:
        """The fit at the best place near by."""
        sheet = softened_template(self.ground.light, fit.variant, fit.pixels)
        side, off = len(sheet), _cell(fit.pixels) // 2
        last = len(self.rest) - side - off
        fit = replace(fit, x=min(max(fit.x, off), last), y=min(max(fit.y, off), last))
        area = slice(fit.y - off, fit.y + off + side), slice(fit.x - off, fit.x + off + side)
        product = _slide(_fields(self.rest[area], self.empty[area]), sheet)
        norm = _slide(_norm_fields(self.empty[area], self.inside[area]), _norm_weights(sheet))
        gain, contrast = gains(product, norm)
        dy, dx = np.unravel_index(gain.argmax(), gain.shape)
        moved = replace(fit, x=fit.x + int(dx) - off, y=fit.y + int(dy) - off, contrast=float(contrast[dy, dx]))
        ring = _around(moved, fit.pixels // 10)
        energy = float(np.square(self.rest[ring]).sum() + _NOISE * self.inside[ring].sum())
        gain = float(gain[dy, dx])
        return replace(moved, worth=float(worth(gain, energy)), share=gain / energy)

    def resize(self, fit: Fit) -> Fit:
        """The fit at the best size near by, and its best place."""
        x, y = fit.centre
        sizes = range(max(fit.pixels - _RESIZE, PIXELS[0]), fit.pixels + _RESIZE + 1)
        corners = ((size, x - SOFT + PAD - size // 2, y - SOFT + PAD - size // 2) for size in sizes)
        others = (replace(fit, pixels=size, x=left, y=top) for size, left, top in corners if size != fit.pixels)
        return max(fit, *map(self.refine, others), key=lambda fit: fit.worth)

    def likeness(self, fit: Fit) -> float:
        """The share of the differences between neighbouring pixels that the sprite explains, around it: 1 is all, 0
        or less is nothing. Unlike the share of the colours it is low for a plain sprite inside a large plain blot.
        Softened again, since the outlines of generated pictures are."""
        ring = _around(fit, fit.pixels // 8)
        rest, layer = (soften(field, 2)[ring] for field in (self.rest, self.layer(fit)))
        whole, left = 0.0, 0.0
        for axis in (0, 1):
            within = np.diff(self.inside[ring], axis=axis) == 0
            whole += float((np.square(np.diff(rest, axis=axis)) * within).sum())
            left += float((np.square(np.diff(rest - layer, axis=axis)) * within).sum())
        return (whole - left) / (whole + float(self.inside[ring].sum()))


def gains(product: np.ndarray, norm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What sprites with these D.M and M.M gain (0 rather than less), and the contrast at which they do."""
    contrast = np.clip(product / np.maximum(norm, 1.0), _LEAST_CONTRAST, 1)
    return np.maximum(contrast * (2 * product - contrast * norm), 0), contrast


def worth(gain: Values, energy: Values) -> Values:
    """What fits are ranked by. The fourth power of the share, because one large sprite laid over two objects can gain
    more than the right sprite over one of them."""
    share = gain / energy
    share *= share
    share *= share
    return gain * share


def shortlist(canvas: Canvas, kinds: int = 8, each: int = 3) -> list[Fit]:
    """The best variants and sizes of the best kinds, at their rough places."""
    light = canvas.ground.light
    kinds_of = [kind for kind, _ in variants(light.style, light.dark)]
    rests = {cell: _shrink(canvas.rest, cell) for cell in (2, 4)}
    fields = {cell: _fields(rest, _shrink(canvas.empty, cell)) for cell, rest in rests.items()}
    searched = [_search(canvas.ground, pixels, rests[_cell(pixels)], fields[_cell(pixels)]) for pixels in PIXELS]
    worths = np.stack([worth for worth, _, _ in searched])  # [sizes, variants]
    order = np.argsort(worths, axis=None)[::-1]
    taken: dict[str, int] = {}
    fits = []
    for size, variant in zip(*np.unravel_index(order, worths.shape)):
        kind = kinds_of[int(variant)]
        if worths[size, variant] <= 0 or len(fits) == kinds * each:
            break
        if taken.get(kind, 0) < each and (kind in taken or len(taken) < kinds):
            taken[kind] = taken.get(kind, 0) + 1
            _, x, y = searched[size]
            fits.append(Fit(int(variant), PIXELS[size], int(x[variant]), int(y[variant])))
    return fits


def _search(
    ground: Background, pixels: int, rest: np.ndarray, fields: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each variant's greatest worth at this size, and the corner x, y of its sheet there: [variants] each."""
    weights, _ = _coarse_weights(ground.light, pixels)
    windows, first = _windows(fields, pixels)
    across, side = windows.shape[1], windows.shape[-1]
    sums = np.pad(_dot(rest, rest)[..., 0], (1, 0)).cumsum(0).cumsum(1)
    energy = sums[side:, side:] - sums[side:, :-side] - sums[:-side, side:] + sums[:-side, :-side]
    energy = energy[first : first + across, first : first + across].ravel()
    # No gain is greater than the energy, so that quiet places need no search (or a later one).
    loud = np.flatnonzero(energy > max(_FAINT * side**2, energy.max() / 6))
    if not len(loud):
        return np.zeros(len(weights), np.float32), np.zeros(len(weights), int), np.zeros(len(weights), int)
    y, x = np.divmod(loud, across)
    product = windows[y, x].reshape(len(loud), -1) @ weights.T
    gain, _ = gains(product, _coarse_norms(ground, pixels)[loud])
    value = worth(gain, energy[loud, None] + _NOISE * side**2)
    best = value.argmax(axis=0)
    cell = _cell(pixels)
    return cell**2 * value[best, np.arange(len(weights))], cell * (x[best] + first), cell * (y[best] + first)


def _around(fit: Fit, margin: int) -> tuple[slice, slice]:
    side = fit.pixels + 2 * SOFT + fit.pixels % 2
    y, x = (slice(max(at - margin, 0), at + side + margin) for at in (fit.y, fit.x))
    return y, x


def _frame(planes: np.ndarray) -> np.ndarray:
    return np.pad(planes, ((PAD, PAD), (PAD, PAD), (0, 0)))


@lru_cache(maxsize=112)
def _scene(ground: Background) -> tuple[np.ndarray, np.ndarray]:
    """The softened empty scene [y, x, 3], and 1 inside the picture [y, x, 1]."""
    edge = np.pad(backgrounds()[BACKGROUNDS.index(ground)], ((SOFT, SOFT), (SOFT, SOFT), (0, 0)), "edge")
    return _frame(soften(edge)[SOFT:-SOFT, SOFT:-SOFT]), _frame(np.ones((SIDE, SIDE, 1), np.float32))


def _fields(rest: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """[y, x, 4] whose product with a sheet is D.M."""
    return np.concatenate([rest, -_dot(rest, empty)], axis=-1)


def _norm_fields(empty: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """[y, x, 5] whose product with the sheet's `_norm_weights` is M.M."""
    return np.concatenate([np.ones_like(inside), empty, _dot(empty, empty)], axis=-1) * inside


def _norm_weights(sheets: np.ndarray) -> np.ndarray:
    colour, alpha = sheets[..., :3], sheets[..., 3:]
    return np.concatenate([_dot(colour, colour), -2 * alpha * colour, np.square(alpha)], axis=-1)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[..., 1]; several times faster than a sum over so short an axis."""
    return np.einsum("...c,...c->...", a, b)[..., None]


def _slide(fields: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The product of weights [h, w, c] with fields [y, x, c] at each place where they fit."""
    return np.tensordot(sliding_window_view(fields, weights.shape[:2], (0, 1)), weights.transpose(2, 0, 1), 3)


def _cell(pixels: int) -> int:
    """Pixels each way that are searched as one; large sprites need less resolution."""
    return 4 if pixels > 28 else 2


def _shrink(planes: np.ndarray, cell: int) -> np.ndarray:
    """[..., y, x, c] with each cell x cell pixels averaged; cells may reach over the lower and the right edge."""
    height, width = planes.shape[-3] % cell, planes.shape[-2] % cell
    if height or width:
        whole = ((0, 0),) * (planes.ndim - 3)
        planes = np.pad(planes, (*whole, (0, -height % cell), (0, -width % cell), (0, 0)))
    rows = np.mean([planes[..., y::cell, :, :] for y in range(cell)], axis=0)
    return np.mean([rows[..., x::cell, :] for x in range(cell)], axis=0)


def _windows(fields: np.ndarray, pixels: int) -> tuple[np.ndarray, int]:
    """Every place [y, x, c, side, side] in cells where a sheet may lie, and the first of them."""
    cell, start, reach = _cell(pixels), PAD - SOFT, pixels // 6
    side = -(-(pixels + 2 * SOFT) // cell)
    first, last = -(-(start - reach) // cell), (start + SIDE - pixels + reach) // cell
    return sliding_window_view(fields, (side, side), (0, 1))[first : last + 1, first : last + 1], first


@lru_cache(maxsize=200)
def _coarse_weights(light: Light, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Every variant's sheet and its norm weights, in cells, flat: [variants, c side side] each."""
    every = range(len(variants(light.style, light.dark)))
    sheets = _shrink(np.stack([softened_template(light, variant, pixels) for variant in every]), _cell(pixels))
    colours, norms = (np.moveaxis(w, -1, 1).reshape(len(w), -1) for w in (sheets, _norm_weights(sheets)))
    return colours, norms


@lru_cache(maxsize=300)
def _coarse_norms(ground: Background, pixels: int) -> np.ndarray:
    """M.M of every variant at every place: [places, variants]."""
    empty, inside = (_shrink(plane, _cell(pixels)) for plane in _scene(ground))
    windows, _ = _windows(_norm_fields(empty, inside), pixels)
    return windows.reshape(windows.shape[0] ** 2, -1) @ _coarse_weights(ground.light, pixels)[1].T
