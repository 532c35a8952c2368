"""Maps that know nothing of the word. An explanation is worth something only if it scores above all of them."""

import numpy as np
from jaxtyping import Float

from toushi.probe.attribution.denoising import CannotExplain

WordMaps = Float[np.ndarray, "word y x"]


def centred_blob(words: int, grid: tuple[int, int]) -> WordMaps:
    """A Gaussian in the middle of the picture, with a quarter of each side as its standard deviation.

    Pictures have their objects near the middle, so this is the baseline that is hardest to beat.
    """
    y, x = ((np.arange(cells) + 0.5) / cells - 0.5 for cells in grid)
    blob = np.exp(-((y[:, None] / 0.25) ** 2 + (x[None] / 0.25) ** 2) / 2)
    return np.repeat(blob[None], words, axis=0)


def noise(words: int, grid: tuple[int, int], seed: int) -> WordMaps:
    """Uniform random numbers in 0..1."""
    return np.random.default_rng(seed).random((words, *grid))


def other_word(maps: WordMaps) -> WordMaps:
    """To each word the map of the next one, to the last that of the first. A map of any object scores as high."""
    if len(maps) < 2:
        raise CannotExplain("another word's map needs at least two words in the prompt, but it has one")
    return np.roll(maps, -1, axis=0)
