"""Do two sets of states pair up? One word in two languages; a character inside a word and alone; bytes of a character.

Numpy arrays go in, an xarray.Dataset over `layer` comes out.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from toushi.probe.analysis.layer_measures import cosine
from toushi.probe.base.errors import ToushiError

TIE = 1e-9  # cosines that differ by less are alike


def matching(
    a,
    b,
    *,
    names: Sequence | None = None,
    among: Sequence | None = None,
    groups: Sequence | None = None,
    centred: bool = True,
    resamples: int = 1000,
    shuffles: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """How well row i of `a` [layer, pair, feature] finds row i of `b` (same shape), for each layer.

    `retrieval`: share of rows whose most similar row of the other side (cosine) is their partner, mean of both
    directions; ties share the point. Partners are looked for among all pairs, or those with the same entry of `among`.
    Rows of one name count as one another's partners too (`names`: a phrase that stands in several sentences).
    `same`, `different`: mean cosine of partners, and of rows with other names. `margin`: their difference.

    `centred`: each side has its mean taken off first, in each layer, for what all words of a language have in common
    says nothing of which word it is (Libovický, Rosa and Fraser, "How Language-Neutral is Multilingual BERT?", 2019).

    `_low`, `_high`: 95 % percentile bootstrap over `groups` of pairs (the sentences they come from; each pair by
    default); candidates stay. `retrieval_shuffled`, `retrieval_shuffled_high`: mean and 95th percentile with the
    partners exchanged. `right` [layer, pair]: what `retrieval` is the mean of.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 3 or a.shape != b.shape or a.shape[1] < 2:
        raise ToushiError(
            f"expected two arrays [layer, pair, feature] of at least 2 pairs, but {a.shape}, {b.shape} came"
        )
    count = a.shape[1]
    name, part, group = (_numbers(given, count) for given in (names, among, groups))
    if among is None:
        part = np.zeros(count, int)
    if centred:
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    alike = np.nan_to_num(cosine(a, b))  # a row that is the mean itself is like nothing
    open_ = part[:, None] == part
    partner = name[:, None] == name
    other = open_ & ~partner
    if not other.any():
        raise ToushiError("there is nothing to tell partners from: each would be looked for among itself alone")
    # [layer, row, candidate], both ways
    nearest = [_nearest(one, open_) for one in (alike, np.swapaxes(alike, 1, 2))]
    right = sum((near * partner).sum(-1) for near in nearest) / 2
    same = np.einsum("lii->li", alike)
    far = (alike * other).sum(-1) / np.maximum(other.sum(-1), 1)
    margin = np.where(other.any(-1), same - far, np.nan)

    random = np.random.default_rng(seed)
    drawn = random.integers(group.max() + 1, size=(resamples, group.max() + 1))
    counts = np.stack([np.bincount(row, minlength=group.max() + 1) for row in drawn])[:, group].astype(float)
    result = {"retrieval": right.mean(1), "margin": np.nanmean(margin, 1), "same": same.mean(1)}
    result["different"] = (alike * other).sum((1, 2)) / other.sum()
    for key, values in (("retrieval", right), ("margin", margin)):
        kept = np.isfinite(values).all(0)
        means = values[:, kept] @ counts[:, kept].T / np.maximum(counts[:, kept].sum(1), 1)
        result[f"{key}_low"], result[f"{key}_high"] = np.quantile(means, (0.025, 0.975), axis=1)
    if shuffles:
        chance = np.empty((shuffles, len(a)))
        for index in range(shuffles):
            mixed = name[_exchanged(random, part)]
            hit = mixed[:, None] == name
            chance[index] = ((nearest[0] * hit).sum(-1).mean(1) + (nearest[1] * hit.T).sum(-1).mean(1)) / 2
        result["retrieval_shuffled"] = chance.mean(0)
        result["retrieval_shuffled_high"] = np.quantile(chance, 0.95, axis=0)
    about = {"pairs": count, "candidates": float(open_.sum(1).mean()), "centred": centred}
    return xr.Dataset(
        {key: ("layer", value) for key, value in result.items()} | {"right": (("layer", "pair"), right)},
        coords={"layer": np.arange(len(a))},
        attrs=about,
    )


def _nearest(alike: np.ndarray, open_: np.ndarray) -> np.ndarray:
    """1 at the most similar candidate of each row, 1/k at each of k alike."""
    alike = np.where(open_, alike, -np.inf)
    best = alike >= alike.max(-1, keepdims=True) - TIE
    return best / best.sum(-1, keepdims=True)


def _exchanged(random: np.random.Generator, part: np.ndarray) -> np.ndarray:
    """Places in another order, each staying in its part."""
    result = np.arange(len(part))
    for one in np.unique(part):
        places = np.flatnonzero(part == one)
        result[places] = random.permutation(places)
    return result


def _numbers(given: Sequence | None, count: int) -> np.ndarray:
    if given is None:
        return np.arange(count)
    if len(given) != count:
        raise ToushiError(f"expected an entry for each of {count} pairs, but {len(given)} came")
    return np.unique(np.asarray(given), return_inverse=True)[1]
