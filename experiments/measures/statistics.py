"""Shares and means with their intervals, where several answers come from one scene, word or sentence.

Such answers are no independent trials, so their source (an *item*) is resampled as a whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import binomtest

INTERVAL = (0.025, 0.975)


def resample_items(items: int, resamples: int, seed: int) -> np.ndarray:
    """[resample, item]: the drawn items."""
    return np.random.default_rng(seed).integers(items, size=(resamples, items))


def bounds(draws: np.ndarray, axis: int = 0) -> np.ndarray:
    """The 95% percentile interval of resamples along `axis`: [2, ...]; NaN if none is finite."""
    draws = np.asarray(draws, float)
    if not np.isfinite(draws).any():
        return np.full((2, *np.delete(draws.shape, axis)), np.nan)
    return np.nanquantile(draws, INTERVAL, axis=axis)


def interval(draws: np.ndarray, items: int) -> tuple[float, float]:
    """The 95% percentile interval of a share, and never narrower than so many items allow.

    Items that all agree do so in every resample, whose interval then has no width. So the low end is at most that of
    Wilson's interval for `items` right of `items`, and the high end at least that for none. One more wrong answer never
    raises either.
    """
    low, high = bounds(draws)
    if not items or np.isnan(low):
        return np.nan, np.nan
    none = binomtest(0, items).proportion_ci(method="wilson").high
    return min(float(low), 1 - none), max(float(high), none)


def share(right: pd.Series, scene: pd.Series, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """The share of True and its interval, resampling scenes: (share, low, high) in 0..1."""
    by_scene = right.astype(float).groupby(scene.to_numpy()).agg(["sum", "count"]).to_numpy()
    sums, counts = by_scene[resample_items(len(by_scene), resamples, seed)].sum(axis=1).T
    return right.astype(float).mean(), *interval(sums / counts, len(by_scene))


def shares(right: np.ndarray, cases: np.ndarray, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share right [...] of counts [..., item], and the same of every resample [resample, ...]: `picks` [resample,
    item] are the items drawn. NaN where there are no cases."""
    times = np.stack([np.bincount(row, minlength=right.shape[-1]) for row in picks]).astype(float)
    sums = np.moveaxis(right @ times.T, -1, 0), np.moveaxis(cases @ times.T, -1, 0)
    with np.errstate(invalid="ignore"):
        return right.sum(-1) / cases.sum(-1), sums[0] / sums[1]


def rates(
    rows: pd.DataFrame, keys: Mapping[str, Sequence], resamples: int, seed: int
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """The share `right` of each combination of the keys' values, with its interval (`low`, `high`), its `cases`, and
    the number of `items`; the same shares as an array [*keys], and those of every resample of items [resample, *keys].

    `rows` have the keys, and an item's numbers `right` and `cases`. They are 0 where an item has none.
    """
    items = list(dict.fromkeys(rows.item))
    index = pd.MultiIndex.from_product([*keys.values(), items])
    counts = rows.set_index([*keys, "item"]).loc[:, ["right", "cases"]].reindex(index, fill_value=0)
    shape = [len(values) for values in keys.values()] + [len(items)]
    answers, cases = (counts[name].to_numpy(float).reshape(shape) for name in ("right", "cases"))
    right, draws = shares(answers, cases, resample_items(len(items), resamples, seed))
    table = []
    for at, values in zip(np.ndindex(right.shape), product(*keys.values())):
        low, high = interval(draws[(slice(None), *at)], int((cases[at] > 0).sum()))
        numbers = {"right": right[at], "low": low, "high": high, "cases": int(cases[at].sum()), "items": len(items)}
        table.append(dict(zip(keys, values)) | numbers)
    return pd.DataFrame(table), right, draws


def groups(table: pd.DataFrame, keys: list[str]) -> Iterator[tuple[tuple, pd.DataFrame]]:
    """The values of the keys with their rows, in the order in which they first occur. A missing value is a value."""
    for values, rows in table.groupby(keys, sort=False, dropna=False):
        assert isinstance(values, tuple)  # it is, for a list of keys
        yield values, rows


def means(table: pd.DataFrame, keys: list[str], numbers: list[str], resamples: int, seed: int) -> pd.DataFrame:
    """Means over words of each combination of `keys`, the first number with an interval that resamples words (`low`,
    `high`), and how many `words` there are."""
    rows = []
    for values, part in groups(table, keys):
        by_word = part.loc[:, ["word", *numbers]].groupby("word").mean().to_numpy()
        low, high = bounds(by_word[resample_items(len(by_word), resamples, seed), 0].mean(1))
        numbered = dict(zip(numbers, by_word.mean(0)))
        rows.append(dict(zip(keys, values)) | numbered | {"low": low, "high": high, "words": len(by_word)})
    return pd.DataFrame(rows).round(5)
