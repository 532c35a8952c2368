"""Whether two sets of states pair up: one word in two languages, or a character inside a word and alone.

Arrays in, an xarray.Dataset over `layer` out.
"""

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from toushi.probe.analysis.layer_measures import cosine
from toushi.probe.base.errors import ToushiError

TIE = 1e-9  # cosines that differ by less are equal


def cross_retrieval(
    a: ArrayLike,
    b: ArrayLike,
    *,
    names: ArrayLike | None = None,
    pools: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    centred: bool = True,
    resamples: int = 1000,
    shuffles: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """How well row i of `a` [layer, pair, feature] retrieves row i of `b` (same shape): a Dataset over `layer`.

    retrieval         share of rows whose most similar row (cosine) of the other side is their partner, mean of both
                      directions; ties share the point
    right             [layer, pair], what `retrieval` is the mean of
    same, different   mean cosine of partners, and of rows with other names
    margin            their difference
    …_low, …_high     95 % percentile bootstrap over groups; the candidates stay
    retrieval_shuffled, retrieval_shuffled_high   mean and 95th percentile with the partners exchanged

    `names`, `pools` and `groups` have one entry for each pair. Rows of one name are all partners, such as a phrase that
    occurs in several sentences; by default each pair has its own name. Candidates are all rows, or those of the same
    pool. `groups` are the sentences that pairs come from; each pair by default.

    `centred` subtracts each side's mean in each layer. What all words of a language have in common does not say which
    word it is (Libovický, Rosa and Fraser, "How Language-Neutral is Multilingual BERT?", 2019).
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 3 or a.shape != b.shape or a.shape[1] < 2:
        raise ToushiError(
            f"expected two arrays [layer, pair, feature] of at least 2 pairs, but {a.shape}, {b.shape} came"
        )
    count = a.shape[1]
    name, pool, group = (_numbers(labels, count) for labels in (names, pools, groups))
    if pools is None:
        pool = np.zeros(count, int)
    if centred:
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    cosines = np.nan_to_num(cosine(a, b))  # 0 for a row that is the mean itself
    candidate = pool[:, None] == pool
    partner = name[:, None] == name
    other = candidate & ~partner
    if not other.any():
        raise ToushiError("expected rows with other names in a pool, but each row would be the only candidate")
    nearest_b, nearest_a = _nearest(cosines, candidate), _nearest(np.swapaxes(cosines, 1, 2), candidate)
    right = ((nearest_b * partner).sum(-1) + (nearest_a * partner).sum(-1)) / 2
    same = np.einsum("lii->li", cosines)
    different = (cosines * other).sum(-1) / np.maximum(other.sum(-1), 1)
    margin = np.where(other.any(-1), same - different, np.nan)

    random = np.random.default_rng(seed)
    samples = random.integers(group.max() + 1, size=(resamples, group.max() + 1))
    counts = np.stack([np.bincount(sample, minlength=group.max() + 1) for sample in samples])[:, group].astype(float)
    result = {"retrieval": right.mean(1), "margin": np.nanmean(margin, 1), "same": same.mean(1)}
    result["different"] = (cosines * other).sum((1, 2)) / other.sum()
    for key, values in (("retrieval", right), ("margin", margin)):
        finite = np.isfinite(values).all(0)
        means = values[:, finite] @ counts[:, finite].T / np.maximum(counts[:, finite].sum(1), 1)
        result[f"{key}_low"], result[f"{key}_high"] = np.quantile(means, (0.025, 0.975), axis=1)
    if shuffles:
        chance = np.empty((shuffles, len(cosines)))
        for index in range(shuffles):
            hit = name[_shuffle_within(random, pool)][:, None] == name
            chance[index] = ((nearest_b * hit).sum(-1).mean(1) + (nearest_a * hit.T).sum(-1).mean(1)) / 2
        result["retrieval_shuffled"] = chance.mean(0)
        result["retrieval_shuffled_high"] = np.quantile(chance, 0.95, axis=0)
    sizes = {"pairs": count, "candidates": float(candidate.sum(1).mean()), "centred": centred}
    return xr.Dataset(
        {key: ("layer", value) for key, value in result.items()} | {"right": (("layer", "pair"), right)},
        coords={"layer": np.arange(len(cosines))},
        attrs=sizes,
    )


def _nearest(
    cosines: Float[np.ndarray, "layer row column"], candidate: Bool[np.ndarray, "row column"]
) -> Float[np.ndarray, "layer row column"]:
    """1 at the most similar candidate of each row, 1/k at each of k equal ones."""
    cosines = np.where(candidate, cosines, -np.inf)
    best = cosines >= cosines.max(-1, keepdims=True) - TIE
    return best / best.sum(-1, keepdims=True)


def _shuffle_within(random: np.random.Generator, pool: Int[np.ndarray, " pair"]) -> Int[np.ndarray, " pair"]:
    """The indices of all pairs, shuffled inside each pool."""
    result = np.arange(len(pool))
    for name in np.unique(pool):
        indices = np.flatnonzero(pool == name)
        result[indices] = random.permutation(indices)
    return result


def _numbers(labels: ArrayLike | None, count: int) -> Int[np.ndarray, " {count}"]:
    """A number for each label: equal ones have equal numbers. Without labels, the numbers from 0."""
    if labels is None:
        return np.arange(count)
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise ToushiError(f"expected an entry for each of {count} pairs, but {labels.size} came")
    return np.unique(labels, return_inverse=True)[1]
