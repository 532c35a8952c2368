"""What is explained: a score of the predicted clean latents, as a function of which words the prompt has.

A word is left out by writing the prompt without it: 左边是猫 without 猫 is 左边是. So every evaluation is of a text that a
user could have typed. The tokens of the other words may change place.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import SupportsIndex, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toushi.probe.analysis.maps import as_mask, resample
from toushi.probe.attribution.denoising import CannotExplain, Denoised, Denoising
from toushi.probe.text.alignment import Word, WordSpec, find_word, list_words, segment, word_labels
from toushi.probe.text.word_changes import replace_words

Score = Callable[[Denoised], Float[Tensor, " b"]]  # of the predicted clean latents of each row
Target = Score | tuple[int, int, int, int] | np.ndarray  # a score, a box (y0, x0, y1, x1) in latent cells, or a mask
BATCH = 16  # prompts in one evaluation


class WordScores:
    """The score for each choice of words. A choice is a row of 1 (written) and 0 (left out) [word]."""

    def __init__(self, denoising: Denoising, target: Target, words: WordSpec | Iterable[WordSpec] | None = None):
        self.denoising = denoising
        self.words = words_of(denoising.prompt, words)
        self.score = score_of(denoising, target, self.words)
        self.known: dict[tuple[bool, ...], float] = {}  # Shapley values ask for each choice many times

    @property
    def labels(self) -> list[str]:
        return word_labels(self.words, segment(self.denoising.prompt))

    def __call__(self, present: Float[Tensor, "b word"]) -> Float[Tensor, " b"]:
        choices = [tuple(row) for row in (present > 0.5).tolist()]
        new = list(dict.fromkeys(choice for choice in choices if choice not in self.known))
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            prompts = [without(self.denoising.prompt, self.words, choice) for choice in batch]
            scores = check_scores(self.score(self.denoising.denoised(prompts)), len(batch))
            self.known |= zip(batch, scores.tolist())
        return torch.tensor([self.known[choice] for choice in choices])


def words_of(prompt: str, words: WordSpec | Iterable[WordSpec] | None) -> list[Word]:
    """These words of the prompt in order; all of them if `words` is None. Raises CannotExplain if there are none."""
    every = segment(prompt)
    if words is None:
        chosen = every
    else:
        spans = sorted(find_word(prompt, every, word) for word in list_words(words))
        chosen = [Word(prompt[start:end], start, end) for start, end in spans]
    if not chosen:
        raise CannotExplain(f"the prompt {prompt!r:.40} has no words to explain by; expected at least one")
    return chosen


def without(prompt: str, words: Sequence[Word], present: Sequence[bool]) -> str:
    """The prompt without the words that are not present. Raises OverlappingWords."""
    return replace_words(prompt, [(word, "") for word, is_there in zip(words, present) if not is_there])


def score_of(denoising: Denoising, target: Target, words: Sequence[Word]) -> Score:
    """The target itself if it is a function, else the change of the region between no words and the whole prompt.

    With d the change of the predicted clean latents in the region from the prompt without its words to the whole prompt,
    a prediction scores the mean of (prediction - prediction without words) * d, divided by the root mean square of d. So
    the prompt without words has 0, the whole prompt that root mean square, in latent units. Raises CannotExplain for a
    region that is empty or outside the picture.
    """
    if callable(target):
        return target
    empty = without(denoising.prompt, words, [False] * len(words))
    start, end = denoising.denoised([empty, denoising.prompt])
    region = torch.from_numpy(_region(target, (start.shape[-2], start.shape[-1]))).to(start)
    change = (end - start) * region
    cells = region.sum() * len(start)
    size = (change.square().sum() / cells).sqrt().clamp(min=torch.finfo(change.dtype).tiny)

    def score(denoised: Tensor) -> Tensor:
        return ((denoised - start) * change).sum((1, 2, 3)) / (cells * size)

    return score


def _region(target: object, grid: tuple[int, int]) -> Float[np.ndarray, "y x"]:
    """1 inside the box or the mask, 0 outside, on the grid of the latents."""
    if isinstance(target, np.ndarray):
        inside = resample(np.nan_to_num(as_mask(target)) >= 0.5, grid) >= 0.5
        if not inside.any():
            raise CannotExplain(
                f"the mask of shape {target.shape} covers half of no latent cell: there is no region to explain"
            )
        return inside.astype(np.float32)
    rows, columns = grid
    expected = f"a box (y0, x0, y1, x1) with 0 <= y0 < y1 <= {rows} and 0 <= x0 < x1 <= {columns}"
    try:
        y0, x0, y1, x1 = map(operator.index, cast(Iterable[SupportsIndex], target))
    except (TypeError, ValueError):
        raise CannotExplain(f"expected a function of latents, a mask, or {expected}, but {target!r:.60} came") from None
    if not (0 <= y0 < y1 <= rows and 0 <= x0 < x1 <= columns):
        raise CannotExplain(f"the box {target} is empty or outside the picture; expected {expected}")
    region = np.zeros(grid, np.float32)
    region[y0:y1, x0:x1] = 1
    return region


def check_scores(scores: Tensor, rows: int) -> Tensor:
    """The scores, one for each row. Raises CannotExplain otherwise."""
    if not isinstance(scores, Tensor) or scores.shape != (rows,):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise CannotExplain(f"the target must return one number for each of {rows} rows, but {shape} came")
    return scores
