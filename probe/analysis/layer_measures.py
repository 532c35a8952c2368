"""Measures of what the layers of an encoder hold: similarity, senses, likeness of layers, where heads look.

Numpy arrays go in; what comes out is an array, or an xarray.Dataset where a measure has several parts. Layers come
first in every array. Similarities are cosines, -1..1; attention is probability.
"""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from toushi.probe.base.errors import ToushiError

TIE = 1e-9  # squared distances of unit vectors that differ by less are alike: fp32 states are no better


# --- similarity -----------------------------------------------------------------------------------------


def cosine(a, b) -> np.ndarray:
    """Cosine of every row of `a` [..., n, feature] with every row of `b` [..., m, feature]: [..., n, m].

    NaN where a row is zero.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-1]:
        raise ToushiError(f"cosine expected two arrays [..., n, feature] of one width, but {a.shape}, {b.shape} came")
    return np.clip(_unit(a) @ np.swapaxes(_unit(b), -1, -2), -1, 1)


def across_layers(states) -> np.ndarray:
    """How alike a word is to itself at other layers: cosines [word, layer, layer] of states [layer, word, feature]."""
    by_word = np.swapaxes(_three(states, "layer, word, feature"), 0, 1)
    return cosine(by_word, by_word)


def commonness(states) -> np.ndarray:
    """Mean cosine of different rows, for each layer [layer] of states [layer, word, feature].

    What two words have in common whatever they mean: states of trained encoders lie in a narrow cone (Ethayarajh,
    "How Contextual are Contextualized Word Representations?", 2019), so a cosine says something only beside this
    number. NaN for fewer than two rows.
    """
    states = _three(states, "layer, word, feature")
    count = states.shape[1]
    if count < 2:
        return np.full(len(states), np.nan)
    alike = cosine(states, states)
    return (alike.sum((1, 2)) - np.trace(alike, axis1=1, axis2=2)) / (count * (count - 1))


# --- senses of a word -----------------------------------------------------------------------------------


def sense_separation(
    states, senses: Sequence, groups: Sequence | None = None, *, resamples: int = 1000, shuffles: int = 200, seed=0
) -> xr.Dataset:
    """How well the states of one word in many sentences tell its senses apart: a Dataset over `layer`.

    `states` [layer, sentence, feature]; `senses` and `groups` have one entry for each sentence. Sentences of a group
    (made from one template, say) are never compared with each other, are left out together, resampled together.
    Without `groups` each sentence is its own.

    `within`, `across`: mean cosine of two sentences of one sense, of two senses; senses and pairs of senses count
    alike however many sentences they have. `separation`: their difference, 0 if the layer knows nothing of senses.
    `accuracy`: of a nearest-centroid read-out of unit states, each group judged by centroids of the others, balanced
    over senses; ties share the point.

    `_low`, `_high`: 95 % percentile bootstrap over groups, with those of the same senses exchanged for each other;
    the read-out is not trained again. `_shuffled`, `_shuffled_high`: mean and 95th percentile with senses shuffled
    (inside groups that hold several, else between groups), everything else the same: the number to beat, since
    leaving one out pushes a read-out that knows nothing below chance. `_p`: share of shuffles at least as large,
    itself counted in. Neither is there for no `resamples`, no `shuffles`.
    """
    states = _three(states, "layer, sentence, feature")
    names, sense = np.unique(np.asarray(senses), return_inverse=True)
    group = np.arange(states.shape[1]) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    _check_senses(states, names, sense, group)
    random = np.random.default_rng(seed)
    gram = cosine(states, states)
    apart = group[:, None] != group  # pairs that may be compared
    one = np.eye(len(names))[sense]  # [sentence, sense]

    within, across = _contrast(gram, apart, one.T[:, None])
    right = _read_out(gram, one, group)
    found = {"separation": (within - across)[:, 0], "accuracy": _balanced(right, one, np.ones((1, len(sense))))[:, 0]}

    counts = _resampled(random, sense, group, resamples)  # [resample, sentence]
    drawn_within, drawn_across = _contrast(gram, apart, one.T[:, None] * counts)
    drawn = {"separation": drawn_within - drawn_across, "accuracy": _balanced(right, one, counts)}

    null: dict[str, list[np.ndarray]] = {"separation": [], "accuracy": []}
    for _ in range(shuffles):
        mixed = np.eye(len(names))[_shuffled(random, sense, group)]
        inside, outside = _contrast(gram, apart, mixed.T[:, None])
        null["separation"].append((inside - outside)[:, 0])
        mixed_right = _read_out(gram, mixed, group)
        null["accuracy"].append(_balanced(mixed_right, mixed, np.ones((1, len(sense))))[:, 0])

    result = {"within": within[:, 0], "across": across[:, 0]}
    for name, value in found.items():
        chance = np.array(null[name]).reshape(shuffles, len(value))
        result[name] = value
        if resamples:
            result[f"{name}_low"], result[f"{name}_high"] = np.nanquantile(drawn[name], (0.025, 0.975), axis=1)
        if shuffles:
            result |= {f"{name}_shuffled": chance.mean(0), f"{name}_shuffled_high": np.quantile(chance, 0.95, axis=0)}
            result[f"{name}_p"] = (1 + (chance >= value - TIE).sum(0)) / (1 + shuffles)
    about = {"senses": [str(name) for name in names], "sentences": len(sense), "groups": len(set(group.tolist()))}
    return xr.Dataset(
        {name: ("layer", value) for name, value in result.items()},
        coords={"layer": np.arange(len(states))},
        attrs=about | {"resamples": resamples, "shuffles": shuffles, "seed": seed},
    )


def _check_senses(states: np.ndarray, names: np.ndarray, sense: np.ndarray, group: np.ndarray) -> None:
    count = states.shape[1]
    if len(sense) != count or len(group) != count:
        raise ToushiError(
            f"expected a sense and a group for each of {count} sentences; {len(sense)}, {len(group)} came"
        )
    if not np.isfinite(states).all() or not np.linalg.norm(states, axis=-1).all():
        raise ToushiError(
            "expected states that are finite and not zero; a word without tokens has none, so leave it out"
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


def _contrast(gram: np.ndarray, apart: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean cosine within and across senses, each [layer, draw]; `counts` [sense, draw, sentence]."""
    senses, draws, _ = counts.shape
    pairs = np.einsum("sbi,tbi->stb", counts @ apart, counts)
    own, other = np.eye(senses, dtype=bool), np.triu(np.ones((senses, senses), bool), 1)
    within, across = np.empty((2, len(gram), draws))
    for layer, cosines in enumerate(gram * apart):
        sums = np.einsum("sbi,tbi->stb", counts @ cosines, counts)
        means = np.where(pairs > 0, sums / np.where(pairs > 0, pairs, 1), np.nan)
        within[layer], across[layer] = means[own].mean(0), means[other].mean(0)
    return within, across


def _read_out(gram: np.ndarray, one: np.ndarray, group: np.ndarray) -> np.ndarray:
    """1 where the nearest centroid of the other groups has the sentence's sense: [layer, sentence]; 1/k of k nearest."""
    folds, fold = np.unique(group, return_inverse=True)
    weights = one.T * (group != folds[:, None])[:, None]  # [fold, sense, sentence]
    total = weights.sum(-1, keepdims=True)
    weights = weights / np.where(total > 0, total, 1)
    right = np.empty((len(gram), len(group)))
    for layer, cosines in enumerate(gram):
        reach = weights @ cosines  # of each centroid to each sentence
        length = (reach * weights).sum(-1)  # the centroid's own squared norm
        distance = length[fold] - 2 * reach[fold, :, np.arange(len(group))]  # plus the sentence's, the same for all
        distance[total[fold, :, 0] == 0] = np.inf
        nearest = distance <= distance.min(1, keepdims=True) + TIE
        right[layer] = (nearest * one).sum(1) / nearest.sum(1)
    return right


def _balanced(right: np.ndarray, one: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean over senses of the share that is right, [layer, draw]; `counts` [draw, sentence]."""
    weights = one.T[:, None] * counts  # [sense, draw, sentence]
    total = weights.sum(-1)
    shares = np.einsum("sbi,li->lsb", weights, right) / np.where(total > 0, total, np.nan)
    return shares.mean(1)


def _resampled(random: np.random.Generator, sense: np.ndarray, group: np.ndarray, draws: int) -> np.ndarray:
    """How often each sentence is drawn, [draw, sentence]: groups drawn with replacement from those of equal senses."""
    strata: dict[tuple, list[int]] = {}
    for name in np.unique(group):
        strata.setdefault(tuple(np.unique(sense[group == name])), []).append(int(name))
    times = np.zeros((draws, int(group.max()) + 1))
    for members in strata.values():
        drawn = random.integers(len(members), size=(draws, len(members)))
        for row, places in zip(times, drawn):
            row[members] = np.bincount(places, minlength=len(members))
    return times[:, group]


def _shuffled(random: np.random.Generator, sense: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Senses exchanged inside each group that holds several, and between the groups that hold one."""
    mixed, plain = sense.copy(), []
    for name in np.unique(group):
        members = np.flatnonzero(group == name)
        if len(set(sense[members].tolist())) > 1:
            mixed[members] = random.permutation(sense[members])
        else:
            plain.append(members)
    for members, source in zip(plain, random.permutation(len(plain))):
        mixed[members] = sense[plain[source][0]]
    return mixed


# --- likeness of layers ---------------------------------------------------------------------------------


def cka(x, y) -> np.ndarray:
    """Debiased linear centred kernel alignment of every layer of `x` with every layer of `y`: [layer of x, of y].

    `x` [layer, row, feature] and `y` [layer, row, feature] hold the same rows (words or sentences) in the same order;
    widths and numbers of layers may differ. 1 for states that are equal up to rotation and scale, about 0 for
    unrelated ones (it can be below). NaN where all rows of a layer are the same.

    The plain estimate is far above 0 for few rows even when both are noise. Its three HSIC terms are replaced by the
    unbiased ones of Song et al., "Feature Selection via Dependence Maximization", 2012, as in Nguyen, Raghu and
    Kornblith, "Do Wide and Deep Networks Learn the Same Things?", 2021, section 2, and Murphy, Zylberberg and Fyshe,
    "Correcting Biased Centered Kernel Alignment Measures in Biological and Artificial Neural Networks", 2024. Computed
    as the inner product of U-centred Gram matrices (Székely and Rizzo, "Partial Distance Correlation with Methods
    for Dissimilarities", 2014), which is the same number.
    """
    x, y = _three(x, "layer, row, feature"), _three(y, "layer, row, feature")
    if x.shape[1] != y.shape[1] or x.shape[1] < 4:
        raise ToushiError(f"cka expected the same rows in both, at least 4, but {x.shape[1]} and {y.shape[1]} came")
    x, y = _u_centred_grams(x), _u_centred_grams(y)
    scale = np.sqrt(np.outer((x * x).sum(1), (y * y).sum(1)))
    return np.where(scale > 0, x @ y.T / np.where(scale > 0, scale, 1), np.nan)


def _u_centred_grams(states: np.ndarray) -> np.ndarray:
    """Linear Gram matrices with zero diagonal, U-centred and laid out flat: [layer, row * row]."""
    rows = states.shape[1]
    flat = np.empty((len(states), rows * rows))
    for layer, state in enumerate(states):
        state = state - state.mean(0)  # changes nothing but the rounding
        size = np.abs(state).max()
        if size <= 1e-6 * np.abs(states[layer]).max():  # all rows alike
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


def head_statistics(attention, special: Sequence[bool] | np.ndarray) -> xr.Dataset:
    """Where each head looks, a Dataset [layer, head], of attention [layer, head, query, token].

    `special` is True at tokens that stand for no text; all three are means over the queries that are not.
    `entropy`: Shannon's, in bits; 2 to its power is the number of tokens a head looks at. `distance`: tokens between
    the query and what it reads, mean over the part of its attention that goes to text. `special`: attention
    probability that goes to special tokens. NaN without text.
    """
    attention, special = _square(attention), np.asarray(special, dtype=bool)
    if special.shape != attention.shape[-1:]:
        raise ToushiError(f"expected one mark for each of {attention.shape[-1]} tokens, but {special.shape} came")
    queries = np.flatnonzero(~special)
    shape = attention.shape[:2]
    if not len(queries):
        nothing = {name: (("layer", "head"), np.full(shape, np.nan)) for name in ("entropy", "distance", "special")}
        return xr.Dataset(nothing)
    read = attention[:, :, queries]
    bits = -(read * np.log2(np.where(read > 0, read, 1))).sum(-1).mean(-1)
    steps = np.abs(queries[:, None] - queries)
    text = read[..., queries]
    mass = text.sum(-1)
    reach = (text * steps).sum(-1) / np.where(mass > 0, mass, np.nan)
    counted = np.isfinite(reach)
    distance = np.where(counted.any(-1), np.where(counted, reach, 0).sum(-1) / np.maximum(counted.sum(-1), 1), np.nan)
    parts = {"entropy": bits, "distance": distance, "special": read[..., special].sum(-1).mean(-1)}
    return xr.Dataset({name: (("layer", "head"), values) for name, values in parts.items()})


def rollout(attention) -> np.ndarray:
    """How much of each input token is in each state, were attention all that mixes: [layer, token, input token].

    `attention` [layer, head, query, token] of all layers from the first. Heads are averaged and half of each state is
    taken to come through the residual path; rows sum to 1. Abnar and Zuidema, "Quantifying Attention Flow in
    Transformers", 2020, section 3. It knows nothing of values and feed-forward layers: a bound on where
    information can have come from, no proof that it did.
    """
    mixing = 0.5 * _square(attention).mean(1) + 0.5 * np.eye(np.shape(attention)[-1])
    mixing /= mixing.sum(-1, keepdims=True)
    so_far = [mixing[0]]
    for layer in mixing[1:]:
        so_far.append(layer @ so_far[-1])
    return np.stack(so_far)


# --- inside ---------------------------------------------------------------------------------------------


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length > 0, length, math.nan)


def _three(states, axes: str) -> np.ndarray:
    states = np.asarray(states, dtype=np.float64)
    if states.ndim != 3:
        raise ToushiError(f"expected states [{axes}], but an array of shape {states.shape} came")
    return states


def _square(attention) -> np.ndarray:
    attention = np.asarray(attention, dtype=np.float64)
    if attention.ndim != 4 or attention.shape[-1] != attention.shape[-2] or not len(attention):
        raise ToushiError(
            f"expected attention [layer, head, query, token], but an array of shape {attention.shape} came"
        )
    return attention
