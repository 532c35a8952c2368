"""Linear probes: what can be read off the states of each layer, beside what a probe could merely have memorised.

Numpy arrays go in, an xarray.Dataset over `layer` comes out. A *unit* is one place that is read: a word in a sentence.
It has a label (what is to be read off), a type (what a probe could know it by: the word itself, the phrase, the whole
prompt) and a group (the template of its sentence). Sentences of a group are never on both sides of a split, so
nothing is read off by knowing the template.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import xarray as xr

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import require

COMPONENTS = (8, 32, 64)  # how many principal components a probe may see
STRENGTHS = (1.0, 100.0)  # of the ridge penalty, on components of standardised states
PORTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # ends of the blocks of the online code, in shares of the units
PRIOR = 0.1  # the logistic regression's C in the online code


def probe(
    states,
    labels: Sequence,
    types: Sequence,
    groups: Sequence,
    *,
    controls: int = 4,
    folds: int = 5,
    inner: int = 2,
    components: Sequence[int] = COMPONENTS,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> xr.Dataset:
    """How well labels are read off the states [layer, unit, feature] of sentences from templates never seen.

    `right` [layer, unit]: 1 where the probe, trained on the other folds, names the label. `control` [layer, unit]: the
    same of control tasks, mean over `controls` of them: each type gets a random label, drawn as the labels are
    distributed, the same wherever the type stands (Hewitt and Liang, "Designing and Interpreting Probes with Control
    Tasks", 2019). What is right there was memorised. `accuracy`, `control_accuracy`, `selectivity` [layer]: their
    means and the difference. `components` [layer]: how many the probes saw, mean over folds. `chance`: share of the
    most frequent label.

    The probe is ridge regression to one-hot labels on the first principal components of standardised states. How many
    components and which strength is chosen anew in each fold, by StratifiedGroupKFold inside its training part, for the
    largest *selectivity* there, as Hewitt and Liang advise; both tasks are then given that same probe. Raises
    ToushiError for one label only, one that stands in a single group, or fewer than three groups.
    """
    require("sklearn")
    states, label, kind, group, names = _checked(states, labels, types, groups)
    random = np.random.default_rng(seed)
    targets = [label, *(_control(random, label, kind) for _ in range(controls))]
    size = len(names)
    outer = _splits(label, group, folds, seed)
    right = np.full((len(states), len(targets), len(label)), np.nan)
    chosen = np.zeros((len(states), len(outer)))
    for layer, state in enumerate(states):
        for fold, (train, test) in enumerate(outer):
            scores = np.zeros((len(components), len(strengths)))
            for fit, check in _splits(label[train], group[train], inner, seed):
                hits = _hits(state, targets, size, train[fit], train[check], components, strengths)
                scores += (hits[:, :, 0] - hits[:, :, 1:].mean(2) if controls else hits[:, :, 0]).sum(-1)
            best = np.unravel_index(np.argmax(scores.round(9)), scores.shape)
            count, strength = components[best[0]], strengths[best[1]]
            right[layer][:, test] = _hits(state, targets, size, train, test, [count], [strength])[0, 0]
            chosen[layer, fold] = min(count, *state[train].shape)
    control = right[:, 1:].mean(1) if controls else np.full_like(right[:, 0], np.nan)
    accuracy, memorised = right[:, 0].mean(1), control.mean(1)
    return xr.Dataset(
        {
            "right": (("layer", "unit"), right[:, 0]),
            "control": (("layer", "unit"), control),
            "accuracy": ("layer", accuracy),
            "control_accuracy": ("layer", memorised),
            "selectivity": ("layer", accuracy - memorised),
            "components": ("layer", chosen.mean(1)),
        },
        coords={"layer": np.arange(len(states))},
        attrs={"chance": float(np.bincount(label).max() / len(label)), "labels": [str(name) for name in names]},
    )


def code_length(states, labels: Sequence, groups: Sequence, *, components: int = 32, seed: int = 0) -> xr.Dataset:
    """Bits that tell all labels to someone who has the states, by an online code, for each layer.

    `bits` [layer]; `uniform`: the bits without the states; `compression` [layer] uniform / bits: about 1 if neither the
    states nor the labels' frequencies say anything. Voita and Titov, "Information-Theoretic Probing with Minimum Description Length", 2020, section 2.2: the
    units come in blocks, the first in the uniform code, each later one in the code of a classifier trained on those
    before it, or, where that is shorter, in that of the labels' frequencies so far; one bit says in which. So it counts
    how soon the labels can be read off, not only how well in the end, and a classifier that has learnt nothing but noise
    costs no more than the bit. Blocks are whole groups, in random order. The classifier is logistic regression on
    `components` principal components of standardised states; as it may not have met a label yet, its probabilities, and
    the frequencies, are those of n observations with one more of each label.
    """
    require("sklearn")
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    states, label, _, group, names = _checked(states, labels, labels, groups)
    random, size = np.random.default_rng(seed), len(names)
    order = np.argsort(random.permutation(group.max() + 1)[group], kind="stable")
    edges = np.flatnonzero(np.diff(group[order])) + 1  # where a block may end
    ends = sorted({int(edges[np.abs(edges - share * len(order)).argmin()]) for share in PORTIONS} | {len(order)})
    bits = np.full(len(states), ends[0] * np.log2(size))
    for layer, state in enumerate(states):
        for start, end in itertools.pairwise(ends):
            known, coming = order[:start], order[start:end]
            seen = np.unique(label[known])
            codes = [np.tile(np.bincount(label[known], minlength=size) + 1.0, (len(coming), 1))]
            if len(seen) > 1:
                few = min(components, len(known) - 1, state.shape[1])
                # Single layers of one state, such as embeddings at <s>, have no variance: then the prior speaks.
                solver = _solver(len(known), state.shape[1])
                reduce = make_pipeline(StandardScaler(), PCA(few, svd_solver=solver, random_state=0))
                model = make_pipeline(reduce, LogisticRegression(C=PRIOR, max_iter=100, tol=1e-3))
                with _calm():
                    told = model.fit(state[known], label[known]).predict_proba(state[coming])
                codes.append(np.ones((len(coming), size)))
                codes[1][:, seen] += len(known) * told
            shares = (code[np.arange(len(coming)), label[coming]] / code.sum(1) for code in codes)
            bits[layer] += 1 + min(-np.log2(share).sum() for share in shares)
    uniform = len(label) * np.log2(size)
    return xr.Dataset(
        {"bits": ("layer", bits), "compression": ("layer", uniform / bits)},
        coords={"layer": np.arange(len(states))},
        attrs={"uniform": float(uniform), "blocks": len(ends)},
    )


def first_reaching(curve, share: float) -> np.ndarray:
    """The first layer whose value is at least `share` of the curve's largest: int [...] of [..., layer].

    -1 where nothing is above 0.
    """
    curve = np.asarray(curve, dtype=np.float64)
    top = curve.max(-1, keepdims=True)
    first = (curve >= share * top - 1e-12).argmax(-1)
    return np.where(top[..., 0] > 0, first, -1)


# --- inside ---------------------------------------------------------------------------------------------


def _hits(state, targets, size, train, test, components, strengths) -> np.ndarray:
    """1 where each target is named: [components, strengths, target, test unit]."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    room = min(max(components), len(train) - 1, state.shape[1])
    reduce = make_pipeline(StandardScaler(), PCA(room, svd_solver=_solver(len(train), state.shape[1]), random_state=0))
    with _calm():
        known = reduce.fit_transform(state[train])
        asked = reduce.transform(state[test])
    # RidgeClassifier is Ridge to targets of -1 and 1; all tasks are so fitted at once.
    wanted = np.concatenate([np.eye(size)[target[train]] * 2 - 1 for target in targets], axis=1)
    truth = np.stack([target[test] for target in targets])
    found = np.empty((len(components), len(strengths), len(targets), len(test)))
    for i, count in enumerate(components):
        for j, strength in enumerate(strengths):
            fitted = Ridge(alpha=strength, solver="cholesky").fit(known[:, :count], wanted)
            said = fitted.predict(asked[:, :count]).reshape(len(test), len(targets), size).argmax(2).T
            found[i, j] = said == truth
    return found


def _solver(rows: int, features: int) -> str:
    """The fastest way to the first principal components; the last one is approximate, but always the same."""
    if features <= 256 and rows > features:
        return "covariance_eigh"
    return "full" if min(rows, features) <= 256 else "randomized"


def _control(random: np.random.Generator, label: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """A random label for each type."""
    return random.choice(label, size=kind.max() + 1)[kind]


def _splits(label: np.ndarray, group: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedGroupKFold

    groups, most = len(np.unique(group)), int(np.bincount(label).max())
    folds = min(folds, groups, most)  # scikit-learn stratifies no more
    if folds < 2:
        raise ToushiError(
            f"expected at least two groups to split, and a label that stands twice, but {groups} group(s) with a label "
            f"{most} time(s) are left to learn from; give more groups"
        )
    with _calm():  # a label in fewer groups than folds is fine, and checked
        split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(label[:, None], label, group)
        return [(train, test) for train, test in split if len(test)]


def _calm():
    import warnings

    return warnings.catch_warnings(action="ignore")


def _checked(states, labels, types, groups):
    states = np.asarray(states, dtype=np.float64)
    if states.ndim != 3 or not np.isfinite(states).all():
        raise ToushiError(f"expected finite states [layer, unit, feature], but an array of {states.shape} came")
    counts = [len(labels), len(types), len(groups)]
    if set(counts) != {states.shape[1]}:
        raise ToushiError(
            f"expected a label, a type and a group for each of {states.shape[1]} units, but {counts} came"
        )
    names, label = np.unique(np.asarray(labels), return_inverse=True)
    kind = np.unique(np.asarray(types), return_inverse=True)[1]
    group = np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(names) < 2:
        raise ToushiError(f"a probe needs at least two labels, but only {', '.join(map(str, names))} came")
    for index, name in enumerate(names):
        own = len(np.unique(group[label == index]))
        if own < 2:
            raise ToushiError(
                f"label {str(name)!r} stands in {own} group; at least two are needed, one to learn from and one to ask"
            )
    return states, label, kind, group, names
