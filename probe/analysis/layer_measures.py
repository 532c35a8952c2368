"""Measures of what the layers of an encoder hold: similarity, senses, CKA, where heads look.

Arrays in, an array out, or an xarray.Dataset where a measure has several parts. The first axis of every array is the
layer. Similarities are cosines, -1..1; attention is probability. Arrays of wrong shape raise ToushiError.
"""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from toushi.probe.base.errors import ToushiError

TIE = 1e-9  # squared distances of unit vectors that differ by less are equal: fp32 states are no better

States = Float[np.ndarray, "layer row feature"]


# --- similarity -----------------------------------------------------------------------------------------


def cosine(a: ArrayLike, b: ArrayLike) -> Float[np.ndarray, "... n m"]:
    """Cosine [..., n, m] of every row of `a` [..., n, feature] with every row of `b` [..., m, feature].

    NaN where a row is zero.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-1]:
        raise ToushiError(f"cosine expected two arrays [..., n, feature] of one width, but {a.shape}, {b.shape} came")
    return np.clip(_normalise_rows(a) @ np.swapaxes(_normalise_rows(b), -1, -2), -1, 1)


def mean_pairwise_cosine(states: ArrayLike) -> Float[np.ndarray, " layer"]:
    """Mean cosine [layer] of two different rows, of states [layer, word, feature]. NaN for fewer than two rows.

    This is the anisotropy of each layer, which any two words have in common: states of trained encoders lie in a narrow
    cone. So compare every cosine with this number (Ethayarajh, "How Contextual are Contextualized Word
    Representations?", 2019).
    """
    states = _as_states(states, "layer, word, feature")
    count = states.shape[1]
    if count < 2:
        return np.full(len(states), np.nan)
    cosines = cosine(states, states)
    return (cosines.sum((1, 2)) - np.trace(cosines, axis1=1, axis2=2)) / (count * (count - 1))


# --- senses of a word -----------------------------------------------------------------------------------


def sense_separation(
    states: ArrayLike,
    senses: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    resamples: int = 1000,
    shuffles: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """How well the states of one word in many sentences separate its senses: a Dataset over `layer`.

    `states` [layer, sentence, feature]; `senses` and `groups` have one entry for each sentence. Sentences of a group,
    such as those made from one template, are never compared with each other, are left out together, and are resampled
    together. Without `groups` each sentence is a group.

    within, across   mean cosine of two sentences of one sense, of two senses; each sense, and pair of senses, counts once
    separation       their difference: 0 if the layer knows nothing of senses
    accuracy         of a nearest-centroid classifier of unit states, balanced over senses; each group is judged by the
                     centroids of the others, and ties share the point
    …_low, …_high    95 % percentile bootstrap over groups of equal senses; the classifier is not trained again
    …_shuffled       mean with shuffled senses: inside groups that have several, else between groups
    …_shuffled_high  95th percentile of the same
    …_p              share of shuffles that are at least as large; the true senses count as one of them

    Compare the accuracy with the shuffled one: leaving a group out puts a classifier that knows nothing below chance.
    Without `resamples` or `shuffles` their variables are missing.
    """
    states = _as_states(states, "layer, sentence, feature")
    names, sense = np.unique(np.asarray(senses), return_inverse=True)
    group = np.arange(states.shape[1]) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    _check_senses(states, names, sense, group)
    random = np.random.default_rng(seed)
    gram = cosine(states, states)
    comparable = group[:, None] != group  # pairs of sentences
    one_hot = np.eye(len(names))[sense]  # [sentence, sense]
    every = np.ones((1, len(sense)))

    within, across = _mean_cosines(gram, comparable, one_hot.T[:, None])
    correct = _nearest_centroid(gram, one_hot, group)
    measures = {"separation": (within - across)[:, 0], "accuracy": _balanced_accuracy(correct, one_hot, every)[:, 0]}

    counts = _resample_groups(random, sense, group, resamples)  # [resample, sentence]
    bootstrap_within, bootstrap_across = _mean_cosines(gram, comparable, one_hot.T[:, None] * counts)
    bootstrap = {
        "separation": bootstrap_within - bootstrap_across,
        "accuracy": _balanced_accuracy(correct, one_hot, counts),
    }

    null: dict[str, list[np.ndarray]] = {"separation": [], "accuracy": []}
    for _ in range(shuffles):
        shuffled = np.eye(len(names))[_shuffle_senses(random, sense, group)]
        null_within, null_across = _mean_cosines(gram, comparable, shuffled.T[:, None])
        null["separation"].append((null_within - null_across)[:, 0])
        null_correct = _nearest_centroid(gram, shuffled, group)
        null["accuracy"].append(_balanced_accuracy(null_correct, shuffled, every)[:, 0])

    result = {"within": within[:, 0], "across": across[:, 0]}
    for name, value in measures.items():
        chance = np.array(null[name]).reshape(shuffles, len(value))
        result[name] = value
        if resamples:
            result[f"{name}_low"], result[f"{name}_high"] = np.nanquantile(bootstrap[name], (0.025, 0.975), axis=1)
        if shuffles:
            result |= {f"{name}_shuffled": chance.mean(0), f"{name}_shuffled_high": np.quantile(chance, 0.95, axis=0)}
            result[f"{name}_p"] = (1 + (chance >= value - TIE).sum(0)) / (1 + shuffles)
    sizes = {"senses": [str(name) for name in names], "sentences": len(sense), "groups": len(set(group.tolist()))}
    return xr.Dataset(
        {name: ("layer", value) for name, value in result.items()},
        coords={"layer": np.arange(len(states))},
        attrs=sizes | {"resamples": resamples, "shuffles": shuffles, "seed": seed},
    )


def _check_senses(states: np.ndarray, names: np.ndarray, sense: np.ndarray, group: np.ndarray) -> None:
    count = states.shape[1]
    if len(sense) != count or len(group) != count:
        raise ToushiError(
            f"expected a sense and a group for each of {count} sentences; {len(sense)}, {len(group)} came"
        )
    if not np.isfinite(states).all() or not np.linalg.norm(states, axis=-1).all():
        raise ToushiError(
            "expected states that are finite and not zero; a word without tokens has none, so leave its sentence out"
        )
    if len(names) < 2:
        raise ToushiError(
            f"expected sentences of at least two senses, but {len(names)} came: {', '.join(map(str, names))}"
        )
    for index, name in enumerate(names):
        own = len(set(group[sense == index].tolist()))
        if own < 2:
            raise ToushiError(
                f"sense {str(name)!r} has {int((sense == index).sum())} sentence(s) in {own} group; at least two groups "
                "of each sense are needed, one to look at while the other is left out"
            )


def _mean_cosines(
    gram: Float[np.ndarray, "layer sentence sentence"],
    comparable: Bool[np.ndarray, "sentence sentence"],
    counts: Float[np.ndarray, "sense draw sentence"],
) -> tuple[Float[np.ndarray, "layer draw"], Float[np.ndarray, "layer draw"]]:
    """Mean cosine within and across senses, where each draw has each sentence so many times."""
    senses, draws, _ = counts.shape
    pairs = np.einsum("sbi,tbi->stb", counts @ comparable, counts)
    own, other = np.eye(senses, dtype=bool), np.triu(np.ones((senses, senses), bool), 1)
    within, across = np.empty((2, len(gram), draws))
    for layer, cosines in enumerate(gram * comparable):
        sums = np.einsum("sbi,tbi->stb", counts @ cosines, counts)
        means = np.where(pairs > 0, sums / np.where(pairs > 0, pairs, 1), np.nan)
        within[layer], across[layer] = means[own].mean(0), means[other].mean(0)
    return within, across


def _nearest_centroid(
    gram: Float[np.ndarray, "layer sentence sentence"],
    one_hot: Float[np.ndarray, "sentence sense"],
    group: Int[np.ndarray, " sentence"],
) -> Float[np.ndarray, "layer sentence"]:
    """1 where the nearest centroid of the other groups has the sentence's sense; 1/k where k are equally near.

    scikit-learn's NearestCentroid would have to be fitted for each layer, group and shuffle.
    """
    folds, fold = np.unique(group, return_inverse=True)
    weights = one_hot.T * (group != folds[:, None])[:, None]  # [fold, sense, sentence]
    total = weights.sum(-1, keepdims=True)
    weights = weights / np.where(total > 0, total, 1)
    correct = np.empty((len(gram), len(group)))
    for layer, cosines in enumerate(gram):
        products = weights @ cosines  # of each centroid with each sentence
        length = (products * weights).sum(-1)  # squared norm of each centroid
        distance = length[fold] - 2 * products[fold, :, np.arange(len(group))]  # without the sentence's own norm
        distance[total[fold, :, 0] == 0] = np.inf
        nearest = distance <= distance.min(1, keepdims=True) + TIE
        correct[layer] = (nearest * one_hot).sum(1) / nearest.sum(1)
    return correct


def _balanced_accuracy(
    correct: Float[np.ndarray, "layer sentence"],
    one_hot: Float[np.ndarray, "sentence sense"],
    counts: Float[np.ndarray, "draw sentence"],
) -> Float[np.ndarray, "layer draw"]:
    """Mean over senses of the share that is correct, where each draw has each sentence so many times."""
    weights = one_hot.T[:, None] * counts  # [sense, draw, sentence]
    total = weights.sum(-1)
    shares = np.einsum("sbi,li->lsb", weights, correct) / np.where(total > 0, total, np.nan)
    return shares.mean(1)


def _resample_groups(
    random: np.random.Generator,
    sense: Int[np.ndarray, " sentence"],
    group: Int[np.ndarray, " sentence"],
    draws: int,
) -> Float[np.ndarray, "{draws} sentence"]:
    """How often each draw has each sentence: groups with replacement, from those of equal senses."""
    strata: dict[tuple, list[int]] = {}
    for name in np.unique(group):
        strata.setdefault(tuple(np.unique(sense[group == name])), []).append(int(name))
    times = np.zeros((draws, int(group.max()) + 1))
    for members in strata.values():
        draw = random.integers(len(members), size=(draws, len(members)))
        for row, places in zip(times, draw):
            row[members] = np.bincount(places, minlength=len(members))
    return times[:, group]


def _shuffle_senses(
    random: np.random.Generator, sense: Int[np.ndarray, " sentence"], group: Int[np.ndarray, " sentence"]
) -> Int[np.ndarray, " sentence"]:
    """Senses exchanged inside each group that has several, and between the groups that have one."""
    shuffled, single = sense.copy(), []
    for name in np.unique(group):
        members = np.flatnonzero(group == name)
        if len(set(sense[members].tolist())) > 1:
            shuffled[members] = random.permutation(sense[members])
        else:
            single.append(members)
    for members, source in zip(single, random.permutation(len(single))):
        shuffled[members] = sense[single[source][0]]
    return shuffled


# --- similarity of layers -------------------------------------------------------------------------------


def cka(x: ArrayLike, y: ArrayLike) -> Float[np.ndarray, "layer_x layer_y"]:
    """Debiased linear centred kernel alignment of every layer of `x` with every layer of `y`.

    `x` [layer, row, feature] and `y` [layer, row, feature] hold the same rows (words or sentences) in the same order;
    widths and numbers of layers may differ. 1 for states that are equal up to rotation and scale, about 0 for
    unrelated ones (also negative). NaN where all rows of a layer are the same.

    The plain estimate is far above 0 for few rows, even of noise. Its three HSIC terms are replaced by the
    unbiased ones of Song et al., "Feature Selection via Dependence Maximization", 2012, as in Nguyen, Raghu and
    Kornblith, "Do Wide and Deep Networks Learn the Same Things?", 2021, section 2, and Murphy, Zylberberg and Fyshe,
    "Correcting Biased Centered Kernel Alignment Measures in Biological and Artificial Neural Networks", 2024. Computed
    as the inner product of U-centred Gram matrices (Székely and Rizzo, "Partial Distance Correlation with Methods
    for Dissimilarities", 2014), which is the same number.
    """
    x, y = _as_states(x, "layer, row, feature"), _as_states(y, "layer, row, feature")
    if x.shape[1] != y.shape[1] or x.shape[1] < 4:
        raise ToushiError(f"cka expected the same rows in both, at least 4, but {x.shape[1]} and {y.shape[1]} came")
    x, y = _u_centred_grams(x), _u_centred_grams(y)
    scale = np.sqrt(np.outer((x * x).sum(1), (y * y).sum(1)))
    return np.where(scale > 0, x @ y.T / np.where(scale > 0, scale, 1), np.nan)


def _u_centred_grams(states: States) -> Float[np.ndarray, "layer row*row"]:
    """Linear Gram matrices with zero diagonal, U-centred and flat."""
    rows = states.shape[1]
    flat = np.empty((len(states), rows * rows))
    for layer, state in enumerate(states):
        state = state - state.mean(0)  # changes nothing but the rounding
        size = np.abs(state).max()
        if size <= 1e-6 * np.abs(states[layer]).max():  # all rows are the same
            flat[layer] = 0
            continue
        gram = (state / size) @ (state / size).T
        np.fill_diagonal(gram, 0)
        means = gram.sum(0) / (rows - 2)
        gram = gram - means[:, None] - means + gram.sum() / ((rows - 1) * (rows - 2))
        np.fill_diagonal(gram, 0)
        flat[layer] = gram.ravel()
    return flat


# --- attention ------------------------------------------------------------------------------------------


def head_statistics(attention: ArrayLike, special: ArrayLike) -> xr.Dataset:
    """Where each head looks: a Dataset [layer, head] of attention [layer, head, query, token].

    `special` [token] is True at tokens that stand for no text. All three variables are means over the other queries.
    `entropy`: Shannon's, in bits; 2 to its power is the number of tokens that a head looks at. `distance`: tokens
    between the query and what it looks at, mean over the attention that goes to text. `special`: attention probability
    that goes to special tokens. NaN without text.
    """
    attention, is_special = _as_attention(attention), np.asarray(special, dtype=bool)
    if is_special.shape != attention.shape[-1:]:
        raise ToushiError(f"expected one mark for each of {attention.shape[-1]} tokens, but {is_special.shape} came")
    queries = np.flatnonzero(~is_special)
    shape = attention.shape[:2]
    if not len(queries):
        nothing = {name: (("layer", "head"), np.full(shape, np.nan)) for name in ("entropy", "distance", "special")}
        return xr.Dataset(nothing)
    rows = attention[:, :, queries]
    bits = -(rows * np.log2(np.where(rows > 0, rows, 1))).sum(-1).mean(-1)
    steps = np.abs(queries[:, None] - queries)
    text = rows[..., queries]
    mass = text.sum(-1)
    means = (text * steps).sum(-1) / np.where(mass > 0, mass, np.nan)
    finite = np.isfinite(means)
    distance = np.where(finite.any(-1), np.where(finite, means, 0).sum(-1) / np.maximum(finite.sum(-1), 1), np.nan)
    parts = {"entropy": bits, "distance": distance, "special": rows[..., is_special].sum(-1).mean(-1)}
    return xr.Dataset({name: (("layer", "head"), values) for name, values in parts.items()})


def rollout(attention: ArrayLike) -> Float[np.ndarray, "layer token input"]:
    """Attention rollout: how much of each input token would be in each state if only attention mixed them. Rows sum to 1.

    `attention` [layer, head, query, token] of all layers from the first. Heads are averaged, and half of each state
    comes through the residual path (Abnar and Zuidema, "Quantifying Attention Flow in Transformers", 2020, section 3).
    Values and feed-forward layers are not counted. So it bounds where information can come from, and proves nothing.
    """
    mixing = 0.5 * _as_attention(attention).mean(1) + 0.5 * np.eye(np.shape(attention)[-1])
    mixing /= mixing.sum(-1, keepdims=True)
    flows = [mixing[0]]
    for layer in mixing[1:]:
        flows.append(layer @ flows[-1])
    return np.stack(flows)


# --- inside ---------------------------------------------------------------------------------------------


def _normalise_rows(rows: Float[np.ndarray, "*rows feature"]) -> Float[np.ndarray, "*rows feature"]:
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, math.nan)


def _as_states(states: ArrayLike, axes: str) -> States:
    states = np.asarray(states, dtype=np.float64)
    if states.ndim != 3:
        raise ToushiError(f"expected states [{axes}], but an array of shape {states.shape} came")
    return states


def _as_attention(attention: ArrayLike) -> Float[np.ndarray, "layer head query query"]:
    attention = np.asarray(attention, dtype=np.float64)
    if attention.ndim != 4 or attention.shape[-1] != attention.shape[-2] or not len(attention):
        raise ToushiError(
            f"expected attention [layer, head, query, token], but an array of shape {attention.shape} came"
        )
    return attention


def evenly_spaced(numbers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the numbers, evenly from the first to the last."""
    places = np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(int)
    return [numbers[place] for place in places]
