"""Explanations by leaving words out, with Captum's algorithms: what the score loses without a word.

Ablation leaves out one word, so it misses words that say the same. Shapley values average what a word adds over all
orders of the words, and add up to the score of the whole prompt minus that of the prompt without words.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from toushi.probe.attribution.word_scores import WordScores
from toushi.probe.base.extras import require

EXACT_WORDS = 6  # up to here 2^n prompts are few
SAMPLED_ORDERS = 25


def ablation(scores: WordScores) -> Float[Tensor, " word"]:
    """Score of the whole prompt minus that without the word. `captum.attr.FeatureAblation`."""
    require("captum")
    from captum.attr import FeatureAblation

    return FeatureAblation(scores).attribute(*_all_and_none(scores), perturbations_per_eval=len(scores.words))[0]


def shapley(scores: WordScores, seed: int = 0) -> Float[Tensor, " word"]:
    """Shapley values: exact up to six words, else the mean over 25 random orders that `seed` draws.

    `captum.attr.ShapleyValues` and `ShapleyValueSampling` (Castro et al., "Polynomial calculation of the Shapley value
    based on sampling", 2009). Each choice of words is evaluated once.
    """
    require("captum")
    from captum.attr import ShapleyValues, ShapleyValueSampling

    count = len(scores.words)
    if count <= EXACT_WORDS:
        scores(torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * count).reshape(-1, count))  # all in few evaluations
        return ShapleyValues(scores).attribute(*_all_and_none(scores))[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ShapleyValueSampling(scores).attribute(*_all_and_none(scores), n_samples=SAMPLED_ORDERS)[0]


def _all_and_none(scores: WordScores) -> tuple[Tensor, Tensor]:
    everything = torch.ones(1, len(scores.words))
    return everything, torch.zeros_like(everything)
