"""Sprites laid over a picture: which of them explains most of what the empty scene does not.

With D the picture minus the empty scene B, and M = premultiplied sprite minus alpha B what a sprite adds there, the
squared error that the sprite takes away is |D|^2 - |D - M|^2 = 2 D.M - M.M, its gain. Every variant, size and place
is tried at half resolution, the best at full resolution.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from probe.world.scenes import SIDE
from probe.world.templates import BACKGROUNDS, PIXELS, Background, Light, backgrounds, soften, templates, variants

PAD = 12  # pixels of nothing around the picture, so that sprites may reach over its edge
_LEAST_CONTRAST = 0.6
_NOISE = 5.0  # squared error of a pixel, summed over colours, that is put down to the decoder
_FAINT = 15.0  # squared error of a pixel, over a whole sprite, below which nothing is looked for
_SHIFTS = 5  # places tried each way at full resolution


@dataclass(frozen=True)
class Fit:
    """A variant (its index) `pixels` wide, the corner of its sheet at x, y of the padded canvas. `gain` in squared
    grey levels; `score` is the share of the difference that it explains, in its square and a margin."""

    variant: int
    pixels: int
    x: int
    y: int
    contrast: float = 1.0
    score: float = 0.0
    worth: float = 0.0

    @property
    def centre(self) -> tuple[int, int]:
        """x, y in the picture, as scenes.Object has them."""
        return self.x + 1 - PAD + self.pixels // 2, self.y + 1 - PAD + self.pixels // 2


class Canvas:
    """A padded, softened empty scene (`empty`) and what of the picture is not yet explained (`rest`): [y, x, 3]."""

    def __init__(self, picture: np.ndarray, ground: Background):
        self.ground = ground
        empty = backgrounds()[BACKGROUNDS.index(ground)]
        frame = ((PAD, PAD), (PAD, PAD), (0, 0))
        self.empty, self.inside = _scene(ground)
        self.rest = np.pad(soften(picture - empty), frame)

    def layer(self, fit: Fit) -> np.ndarray:
        """What the sprite adds to the empty scene at its place."""
        sheet, here = self._sheet(fit), self._window(fit)
        return fit.contrast * (sheet[..., :3] - sheet[..., 3:] * self.empty[here]) * self.inside[here]

    def take(self, fit: Fit) -> None:
        self.rest[self._window(fit)] -= self.layer(fit)

    def give(self, fit: Fit) -> None:
        self.rest[self._window(fit)] += self.layer(fit)

    def refined(self, fit: Fit) -> Fit:
        """The fit at the best of the places up to two pixels away, with its gain and score."""
        sheet = self._sheet(fit)
        side, half = len(sheet), _SHIFTS // 2
        area = slice(fit.y - half, fit.y + half + side), slice(fit.x - half, fit.x + half + side)
        fields = _fields(self.rest[area], self.empty[area])
        grounds = _grounds(self.empty[area], self.inside[area])
        colours, norms = _weights(sheet)
        gain, contrast = gains(_slid(fields, colours), _slid(grounds, norms))
        dy, dx = np.unravel_index(gain.argmax(), gain.shape)
        moved = replace(fit, y=fit.y + int(dy) - half, x=fit.x + int(dx) - half)
        margin = 1 + fit.pixels // 10
        ring = slice(max(moved.y - margin, 0), moved.y + side + margin), slice(max(moved.x - margin, 0), moved.x + side + margin)
        energy = float((self.rest[ring] ** 2).sum() + _NOISE * self.inside[ring].sum())
        gain = float(gain[dy, dx])
        return replace(moved, contrast=float(contrast[dy, dx]), score=gain / energy, worth=worth(gain, energy))

    def _sheet(self, fit: Fit) -> np.ndarray:
        return templates(self.ground.light, fit.pixels)[fit.variant]

    def _window(self, fit: Fit) -> tuple[slice, slice]:
        side = len(self._sheet(fit))
        return slice(fit.y, fit.y + side), slice(fit.x, fit.x + side)


def shortlist(canvas: Canvas, kinds: int = 10, each: int = 3) -> list[Fit]:
    """The best variants and sizes at their rough places, of the kinds that explain most."""
    names = [kind for kind, _ in variants(canvas.ground.light.style, canvas.ground.light.dark)]
    starts = [i for i, kind in enumerate(names) if i == 0 or names[i - 1] != kind]
    searched = [_searched(canvas, pixels) for pixels in PIXELS]
    gains = np.stack([gain for gain, _, _ in searched])  # [sizes, variants]
    kind_of = np.repeat(np.arange(len(starts)), np.diff([*starts, len(names)]))
    best = np.maximum.reduceat(gains.max(axis=0), starts).argsort()[::-1][:kinds]
    fits = []
    for kind in best:
        part = np.where(kind_of == kind, gains, 0)
        for index in part.ravel().argsort()[::-1][:each]:
            size, variant = divmod(int(index), len(names))
            if part[size, variant] > 0:
                _, x, y = searched[size]
                fits.append(Fit(variant, PIXELS[size], int(x[variant]), int(y[variant])))
    return fits


def gains(product: np.ndarray, norm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What sprites with these D.M and M.M gain (at least 0), and the contrast at which they do: a faint sprite fades
    in the decoder, so up to half of M may be missing."""
    contrast = np.clip(product / np.maximum(norm, 1.0), _LEAST_CONTRAST, 1)
    return np.maximum(contrast * (2 * product - contrast * norm), 0), contrast


def worth(gain, energy):
    """What fits are ranked by. The fourth power of the score, because one large sprite laid over two objects can gain
    more than the right sprite over one of them."""
    score = gain / energy
    score *= score
    score *= score
    return gain * score


def _searched(canvas: Canvas, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each variant's greatest worth at this size, and the corner x, y of its sheet there: [variants] each."""
    colours, _ = _halved_weights(canvas.ground.light, pixels)
    rest = _halved(canvas.rest)
    windows, first = _windows(_fields(rest, _halved(canvas.empty)), pixels)
    across, side = windows.shape[1], windows.shape[-1]
    sums = np.pad(_dot(rest, rest)[..., 0], (1, 0)).cumsum(0).cumsum(1)
    energy = (sums[side:, side:] - sums[side:, :-side] - sums[:-side, side:] + sums[:-side, :-side])
    energy = energy[first : first + across, first : first + across].ravel()
    loud = np.flatnonzero(energy > max(_FAINT * side**2, energy.max() / 4))  # no gain is greater than the energy
    if not len(loud):
        return (np.zeros(len(colours), np.float32), *np.zeros((2, len(colours)), int))
    y, x = np.divmod(loud, across)
    patches = windows[y, x].reshape(len(loud), -1)
    gain, _ = gains(patches @ colours.T, _halved_norms(canvas.ground, pixels)[loud])
    gain = worth(gain, energy[loud, None] + _NOISE * side**2)
    best = gain.argmax(axis=0)
    return gain[best, np.arange(len(colours))], 2 * (x[best] + first), 2 * (y[best] + first)


def _windows(fields: np.ndarray, pixels: int) -> tuple[np.ndarray, int]:
    """Every place [y, x, c, side, side] at half resolution where a sheet may lie, and the first of them."""
    side = (pixels + 3) // 2
    reach = pixels // 6
    first, last = (PAD - reach) // 2, (PAD + SIDE - pixels + reach - 1) // 2
    return sliding_window_view(fields, (side, side), (0, 1))[first : last + 1, first : last + 1], first


def _fields(rest: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """[y, x, 4] such that the product with a sprite's colours and alpha is D.M."""
    return np.concatenate([rest, -_dot(rest, empty)], axis=-1)


def _grounds(empty: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """[y, x, 5] such that the product with `_weights`' norms is M.M."""
    return np.concatenate([np.ones_like(inside), empty, _dot(empty, empty)], axis=-1) * inside


def _weights(sheet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of sheets [..., y, x, 4]: the same, and [..., y, x, 5] for M.M."""
    colour, alpha = sheet[..., :3], sheet[..., 3:]
    return sheet, np.concatenate([_dot(colour, colour), -2 * alpha * colour, np.square(alpha)], -1)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[..., 1]; several times faster than a sum over so short an axis."""
    return np.einsum("...c,...c->...", a, b)[..., None]


def _slid(fields: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The product of weights [h, w, c] with fields [y, x, c] at each place where they fit."""
    windows = sliding_window_view(fields, weights.shape[:2], (0, 1))
    return np.tensordot(windows, weights.transpose(2, 0, 1), 3)


def _halved(planes: np.ndarray) -> np.ndarray:
    """[..., y, x, c] at half resolution."""
    rows = planes[..., ::2, :, :] + planes[..., 1::2, :, :]
    return (rows[..., ::2, :] + rows[..., 1::2, :]) / 4


@lru_cache(maxsize=200)
def _halved_weights(light: Light, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """`_weights` of every variant, flat: [variants, c side side] each."""
    pair = _weights(_halved(templates(light, pixels)))
    return tuple(np.ascontiguousarray(np.moveaxis(w, -1, 1)).reshape(len(w), -1) for w in pair)


@lru_cache(maxsize=200)
def _halved_norms(ground: Background, pixels: int) -> np.ndarray:
    """M.M of every variant at every place: [places, variants]."""
    empty, inside = _scene(ground)
    windows, _ = _windows(_grounds(_halved(empty), _halved(inside)), pixels)
    return windows.reshape(windows.shape[0] ** 2, -1) @ _halved_weights(ground.light, pixels)[1].T


@lru_cache(maxsize=20)
def _scene(ground: Background) -> tuple[np.ndarray, np.ndarray]:
    """The softened empty scene [y, x, 3] and 1 inside the picture [y, x, 1], padded."""
    frame = ((PAD, PAD), (PAD, PAD), (0, 0))
    edge = np.pad(backgrounds()[BACKGROUNDS.index(ground)], ((1, 1), (1, 1), (0, 0)), "edge")
    return np.pad(soften(edge)[1:-1, 1:-1], frame), np.pad(np.ones((SIDE, SIDE, 1), np.float32), frame)
