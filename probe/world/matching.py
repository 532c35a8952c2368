"""Sprites laid over a picture: which of them explains most of what the empty scene does not.

With D the picture minus the empty scene B, and M = alpha (sprite - B) what a sprite adds there, the squared error
that the sprite takes away at contrast k is |D|^2 - |D - kM|^2 = 2k D.M - k^2 M.M: its gain. Every variant, size and
place is tried at half resolution, the best again at full resolution. Both products are linear in fields of the
picture and of the sprite, so that a size is one matrix product.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from probe.world.scenes import SIDE
from probe.world.templates import BACKGROUNDS, PIXELS, SOFT, Background, Light, backgrounds, soften, template, variants

PAD = 16  # pixels of nothing around the picture, so that sprites may reach over its edge
_SHIFT = 1  # pixels by which a place found at half resolution may be off
_RESIZE = 2  # and by which its size may be
_LEAST_CONTRAST = 0.6  # a decoder fades what is faint, a white cloud in a pale sky
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
        self.rest = _framed(soften(picture - backgrounds()[BACKGROUNDS.index(ground)]))

    def take(self, fit: Fit) -> None:
        self.rest -= self.layer(fit)

    def give(self, fit: Fit) -> None:
        self.rest += self.layer(fit)

    def layer(self, fit: Fit) -> np.ndarray:
        """What the sprite adds to the empty scene: [y, x, 3], nothing elsewhere."""
        sheet = template(self.ground.light, fit.variant, fit.pixels)
        here = slice(fit.y, fit.y + len(sheet)), slice(fit.x, fit.x + len(sheet))
        layer = np.zeros_like(self.rest)
        layer[here] = fit.contrast * (sheet[..., :3] - sheet[..., 3:] * self.empty[here]) * self.inside[here]
        return layer

    def refined(self, fit: Fit) -> Fit:
        """The fit at the best place near by."""
        sheet = template(self.ground.light, fit.variant, fit.pixels)
        side = len(sheet)
        area = slice(fit.y - _SHIFT, fit.y + _SHIFT + side), slice(fit.x - _SHIFT, fit.x + _SHIFT + side)
        product = _slid(_fields(self.rest[area], self.empty[area]), sheet)
        norm = _slid(_norm_fields(self.empty[area], self.inside[area]), _norm_weights(sheet))
        gain, contrast = gains(product, norm)
        dy, dx = np.unravel_index(gain.argmax(), gain.shape)
        moved = replace(fit, x=fit.x + int(dx) - _SHIFT, y=fit.y + int(dy) - _SHIFT, contrast=float(contrast[dy, dx]))
        ring = _around(moved, fit.pixels // 10)
        energy = float(np.square(self.rest[ring]).sum() + _NOISE * self.inside[ring].sum())
        gain = float(gain[dy, dx])
        return replace(moved, worth=float(worth(gain, energy)), share=gain / energy)

    def resized(self, fit: Fit) -> Fit:
        """The fit at the best size near by, and its best place."""
        x, y = fit.centre
        sizes = (size for size in range(fit.pixels - _RESIZE, fit.pixels + _RESIZE + 1) if size != fit.pixels)
        others = (replace(fit, pixels=size, x=x - SOFT + PAD - size // 2, y=y - SOFT + PAD - size // 2) for size in sizes)
        return max(fit, *map(self.refined, others), key=lambda fit: fit.worth)

    def likeness(self, fit: Fit) -> float:
        """The share of the differences between neighbouring pixels that the sprite explains, around it: 1 is all, 0
        or less is nothing. Unlike the share of the colours it is low for a plain sprite inside a large plain blot. Softened
        again, since the outlines of generated pictures are."""
        ring = _around(fit, fit.pixels // 8)
        rest, layer = (soften(field, 2)[ring] for field in (self.rest, self.layer(fit)))
        whole, left = 0.0, 0.0
        for axis in (0, 1):
            within = np.diff(self.inside[ring], axis=axis) == 0
            whole += float((np.square(np.diff(rest, axis=axis)) * within).sum())
            left += float((np.square(np.diff(rest - layer, axis=axis)) * within).sum())
        return 1 - left / (whole + float(self.inside[ring].sum()))


def gains(product: np.ndarray, norm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What sprites with these D.M and M.M gain (0 rather than less), and the contrast at which they do."""
    contrast = np.clip(product / np.maximum(norm, 1.0), _LEAST_CONTRAST, 1)
    return np.maximum(contrast * (2 * product - contrast * norm), 0), contrast


def worth(gain, energy):
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
    searched = [_searched(canvas, pixels) for pixels in PIXELS]
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


def _searched(canvas: Canvas, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each variant's greatest worth at this size, and the corner x, y of its sheet there: [variants] each."""
    weights, _ = _half_weights(canvas.ground.light, pixels)
    rest = _halved(canvas.rest)
    windows, first = _windows(_fields(rest, _halved(canvas.empty)), pixels)
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
    gain, _ = gains(product, _half_norms(canvas.ground, pixels)[loud])
    value = worth(gain, energy[loud, None] + _NOISE * side**2)
    best = value.argmax(axis=0)
    return value[best, np.arange(len(weights))], 2 * (x[best] + first), 2 * (y[best] + first)


def _around(fit: Fit, margin: int) -> tuple[slice, slice]:
    side = fit.pixels + 2 * SOFT + fit.pixels % 2
    y, x = (slice(max(at - margin, 0), at + side + margin) for at in (fit.y, fit.x))
    return y, x


def _framed(planes: np.ndarray) -> np.ndarray:
    return np.pad(planes, ((PAD, PAD), (PAD, PAD), (0, 0)))


@lru_cache(maxsize=112)
def _scene(ground: Background) -> tuple[np.ndarray, np.ndarray]:
    """The softened empty scene [y, x, 3], and 1 inside the picture [y, x, 1]."""
    edge = np.pad(backgrounds()[BACKGROUNDS.index(ground)], ((SOFT, SOFT), (SOFT, SOFT), (0, 0)), "edge")
    return _framed(soften(edge)[SOFT:-SOFT, SOFT:-SOFT]), _framed(np.ones((SIDE, SIDE, 1), np.float32))


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


def _slid(fields: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The product of weights [h, w, c] with fields [y, x, c] at each place where they fit."""
    return np.tensordot(sliding_window_view(fields, weights.shape[:2], (0, 1)), weights.transpose(2, 0, 1), 3)


def _halved(planes: np.ndarray) -> np.ndarray:
    """[..., y, x, c] at half resolution."""
    rows = planes[..., ::2, :, :] + planes[..., 1::2, :, :]
    return (rows[..., ::2, :] + rows[..., 1::2, :]) / 4


def _windows(fields: np.ndarray, pixels: int) -> tuple[np.ndarray, int]:
    """Every place [y, x, c, side, side] at half resolution where a sheet may lie, and the first of them."""
    side, reach = (pixels + 2 * SOFT + 1) // 2, pixels // 6
    first, last = (PAD - SOFT - reach + 1) // 2, (PAD - SOFT + SIDE - pixels + reach) // 2
    return sliding_window_view(fields, (side, side), (0, 1))[first : last + 1, first : last + 1], first


@lru_cache(maxsize=200)
def _half_weights(light: Light, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Every variant's sheet and its norm weights, flat: [variants, c side side] each."""
    every = range(len(variants(light.style, light.dark)))
    sheets = _halved(np.stack([template(light, variant, pixels) for variant in every]))
    colours, norms = (np.moveaxis(w, -1, 1).reshape(len(w), -1) for w in (sheets, _norm_weights(sheets)))
    return colours, norms


@lru_cache(maxsize=200)
def _half_norms(ground: Background, pixels: int) -> np.ndarray:
    """M.M of every variant at every place: [places, variants]."""
    empty, inside = _scene(ground)
    windows, _ = _windows(_norm_fields(_halved(empty), _halved(inside)), pixels)
    return windows.reshape(windows.shape[0] ** 2, -1) @ _half_weights(ground.light, pixels)[1].T
