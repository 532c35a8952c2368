"""Linear probes: what a classifier reads from the states of each layer, and how much of it is only memorised.

Arrays in, an xarray.Dataset over `layer` out. A *unit* is one word in a sentence. It has a label (what is read), a type
(what a probe could memorise: the word itself, the phrase, the whole prompt) and a group (the template of its sentence).
Sentences of a group are never on both sides of a split, so knowing the template does not help.
"""

import itertools
import warnings
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import require

COMPONENTS = (8, 32, 64)  # numbers of principal components that a probe may see
STRENGTHS = (1.0, 100.0)  # of the ridge penalty, on components of standardised states
PORTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # ends of the blocks of the online code, in shares of the units
PRIOR = 0.1  # the logistic regression's C in the online code

States = Float[np.ndarray, "layer unit feature"]
Numbers = Int[np.ndarray, " unit"]  # labels, types or groups, numbered
Split = tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]  # indices of units


def linear_probe(
    states: ArrayLike,
    labels: ArrayLike,
    types: ArrayLike,
    groups: ArrayLike,
    *,
    controls: int = 4,
    folds: int = 5,
    inner: int = 2,
    components: Sequence[int] = COMPONENTS,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> xr.Dataset:
    """How well a linear probe names the labels in sentences of unseen templates: a Dataset of states [layer, unit, feature].

    right             [layer, unit], 1 where the probe, trained on the other folds, names the label
    control           [layer, unit], the same for control tasks, mean over `controls` of them
    accuracy, control_accuracy, selectivity   [layer], the means of these two, and their difference
    components        [layer], number of components that the probes saw, mean over folds
    chance            attribute: share of the most frequent label

    In a control task each type has a random label, with the frequencies of the true labels, the same wherever the type
    occurs (Hewitt and Liang, "Designing and Interpreting Probes with Control Tasks", 2019). What is right there was
    memorised.

    The probe is ridge regression to one-hot labels on the first principal components of standardised states. Number of
    components and strength are chosen in each fold, by StratifiedGroupKFold inside its training part, for the largest
    selectivity, as Hewitt and Liang advise; labels and control tasks then get the same probe. Raises ToushiError for
    one label only, a label that occurs in a single group, or fewer than three groups.
    """
    require("sklearn")
    states, label, kind, group, names = _as_units(states, labels, types, groups)
    random = np.random.default_rng(seed)
    targets = [label, *(_control_labels(random, label, kind) for _ in range(controls))]
    size = len(names)
    outer = _splits(label, group, folds, seed)
    right = np.full((len(states), len(targets), len(label)), np.nan)
    component_counts = np.zeros((len(states), len(outer)))
    for layer, state in enumerate(states):
        for fold, (train, test) in enumerate(outer):
            scores = np.zeros((len(components), len(strengths)))
            for fit, check in _splits(label[train], group[train], inner, seed):
                hits = _hits(state, targets, size, (train[fit], train[check]), components, strengths)
                scores += (hits[:, :, 0] - hits[:, :, 1:].mean(2) if controls else hits[:, :, 0]).sum(-1)
            row, column = divmod(int(np.argmax(scores.round(9))), len(strengths))
            count, strength = components[row], strengths[column]
            right[layer][:, test] = _hits(state, targets, size, (train, test), [count], [strength])[0, 0]
            component_counts[layer, fold] = min(count, *state[train].shape)
    control = right[:, 1:].mean(1) if controls else np.full_like(right[:, 0], np.nan)
    accuracy, memorised = right[:, 0].mean(1), control.mean(1)
    return xr.Dataset(
        {
            "right": (("layer", "unit"), right[:, 0]),
            "control": (("layer", "unit"), control),
            "accuracy": ("layer", accuracy),
            "control_accuracy": ("layer", memorised),
            "selectivity": ("layer", accuracy - memorised),
            "components": ("layer", component_counts.mean(1)),
        },
        coords={"layer": np.arange(len(states))},
        attrs={"chance": float(np.bincount(label).max() / len(label)), "labels": [str(name) for name in names]},
    )


def code_length(
    states: ArrayLike, labels: ArrayLike, groups: ArrayLike, *, components: int = 32, seed: int = 0
) -> xr.Dataset:
    """Length of an online code of all labels, given the states [layer, unit, feature]: a Dataset over `layer`.

    bits          [layer], the length of the code
    compression   [layer], uniform / bits: about 1 if neither states nor frequencies say anything of the labels
    uniform       attribute: bits of the uniform code, without the states

    Voita and Titov, "Information-Theoretic Probing with Minimum Description Length", 2020, section 2.2. The units come
    in blocks of whole groups, in random order. The first block has the uniform code. Each later block has the code of a
    classifier that was trained on the blocks before it, or of the labels' frequencies so far, if that is shorter; one
    bit says which. So the length says how early the labels can be read, not only how well in the end, and a classifier
    that has learnt only noise costs no more than the bit.

    The classifier is logistic regression on `components` principal components of standardised states. It may not have
    met a label yet. So its probabilities, and the frequencies, are those of n observations and one more of each label.
    """
    require("sklearn")
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    states, label, _, group, names = _as_units(states, labels, labels, groups)
    random, size = np.random.default_rng(seed), len(names)
    order = np.argsort(random.permutation(group.max() + 1)[group], kind="stable")
    edges = np.flatnonzero(np.diff(group[order])) + 1  # where a block may end
    ends = sorted({int(edges[np.abs(edges - share * len(order)).argmin()]) for share in PORTIONS} | {len(order)})
    bits = np.full(len(states), ends[0] * np.log2(size))
    for layer, state in enumerate(states):
        for start, end in itertools.pairwise(ends):
            before, block = order[:start], order[start:end]
            seen = np.unique(label[before])
            codes = [np.tile(np.bincount(label[before], minlength=size) + 1.0, (len(block), 1))]
            if len(seen) > 1:
                count = min(components, len(before) - 1, state.shape[1])
                # A layer of equal states, such as embeddings at <s>, has no variance: only the prior counts there.
                solver = _solver(len(before), state.shape[1])
                reduce = make_pipeline(StandardScaler(), PCA(count, svd_solver=solver, random_state=0))
                model = make_pipeline(reduce, LogisticRegression(C=PRIOR, max_iter=100, tol=1e-3))
                with _ignore_warnings():
                    probabilities = model.fit(state[before], label[before]).predict_proba(state[block])
                codes.append(np.ones((len(block), size)))
                codes[1][:, seen] += len(before) * probabilities
            shares = (code[np.arange(len(block)), label[block]] / code.sum(1) for code in codes)
            bits[layer] += 1 + min(-np.log2(share).sum() for share in shares)
    uniform = len(label) * np.log2(size)
    return xr.Dataset(
        {"bits": ("layer", bits), "compression": ("layer", uniform / bits)},
        coords={"layer": np.arange(len(states))},
        attrs={"uniform": float(uniform), "blocks": len(ends)},
    )


def onset_layer(curve: ArrayLike, share: float) -> Int[np.ndarray, "*curves"]:
    """The first layer [...] whose value is at least `share` of the largest, of curves [..., layer]. -1 if none is above 0."""
    curve = np.asarray(curve, dtype=np.float64)
    largest = curve.max(-1, keepdims=True)
    first = (curve >= share * largest - 1e-12).argmax(-1)
    return np.where(largest[..., 0] > 0, first, -1)


# --- inside ---------------------------------------------------------------------------------------------


def _hits(
    state: Float[np.ndarray, "unit feature"],
    targets: Sequence[Numbers],
    size: int,
    split: Split,
    components: Sequence[int],
    strengths: Sequence[float],
) -> Float[np.ndarray, "components strengths targets test"]:
    """1 where a probe that was trained on one side of the split names the target on the other. `size` labels exist."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = split
    most = min(max(components), len(train) - 1, state.shape[1])
    reduce = make_pipeline(StandardScaler(), PCA(most, svd_solver=_solver(len(train), state.shape[1]), random_state=0))
    with _ignore_warnings():
        x_train = reduce.fit_transform(state[train])
        x_test = reduce.transform(state[test])
    # RidgeClassifier is Ridge to targets of -1 and 1; this fits all tasks at once.
    y_train = np.concatenate([np.eye(size)[target[train]] * 2 - 1 for target in targets], axis=1)
    y_test = np.stack([target[test] for target in targets])
    hits = np.empty((len(components), len(strengths), len(targets), len(test)))
    for i, count in enumerate(components):
        for j, strength in enumerate(strengths):
            model = Ridge(alpha=strength, solver="cholesky").fit(x_train[:, :count], y_train)
            predicted = model.predict(x_test[:, :count]).reshape(len(test), len(targets), size).argmax(2).T
            hits[i, j] = predicted == y_test
    return hits


def _solver(rows: int, features: int) -> str:
    """The fastest way to the first principal components; the last one is approximate, but always the same."""
    if features <= 256 and rows > features:
        return "covariance_eigh"
    return "full" if min(rows, features) <= 256 else "randomized"


def _control_labels(random: np.random.Generator, label: Numbers, kind: Numbers) -> Numbers:
    """A random label for each type."""
    return random.choice(label, size=kind.max() + 1)[kind]


def _splits(label: Numbers, group: Numbers, folds: int, seed: int) -> list[Split]:
    from sklearn.model_selection import StratifiedGroupKFold

    groups, most = len(np.unique(group)), int(np.bincount(label).max())
    folds = min(folds, groups, most)  # scikit-learn stratifies no more
    if folds < 2:
        raise ToushiError(
            f"expected at least two groups to split, and a label that occurs twice, but {groups} group(s) with a label "
            f"{most} time(s) are left for training; give more groups"
        )
    with _ignore_warnings():  # a label in fewer groups than folds is fine, and checked
        split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(label[:, None], label, group)
        return [(train, test) for train, test in split if len(test)]


def _ignore_warnings() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="ignore")


def _as_units(
    states: ArrayLike, labels: ArrayLike, types: ArrayLike, groups: ArrayLike
) -> tuple[States, Numbers, Numbers, Numbers, Shaped[np.ndarray, " label"]]:
    """States, the number of each unit's label, type and group, and the names of the labels."""
    states = np.asarray(states, dtype=np.float64)
    if states.ndim != 3 or not np.isfinite(states).all():
        raise ToushiError(f"expected finite states [layer, unit, feature], but an array of {states.shape} came")
    labels, types, groups = np.asarray(labels), np.asarray(types), np.asarray(groups)
    counts = [len(labels), len(types), len(groups)]
    if set(counts) != {states.shape[1]}:
        raise ToushiError(
            f"expected a label, a type and a group for each of {states.shape[1]} units, but {counts} came"
        )
    names, label = np.unique(labels, return_inverse=True)
    kind = np.unique(types, return_inverse=True)[1]
    group = np.unique(groups, return_inverse=True)[1]
    if len(names) < 2:
        raise ToushiError(f"a probe needs at least two labels, but only {', '.join(map(str, names))} came")
    for index, name in enumerate(names):
        own = len(np.unique(group[label == index]))
        if own < 2:
            raise ToushiError(
                f"label {str(name)!r} occurs in {own} group; at least two are needed, one for training and one for testing"
            )
    return states, label, kind, group, names
