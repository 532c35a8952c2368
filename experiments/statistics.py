"""Intervals for shares, when several answers come from one scene and so are no independent trials."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest


def share(right: pd.Series, scene: pd.Series, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """The share of True, and a 95% percentile interval from resampling whole scenes: (share, low, high) in 0..1.

    Where every answer is the same, resampling knows no doubt; then the interval is Wilson's, a scene being a trial.
    """
    by_scene = right.astype(float).groupby(scene.to_numpy()).agg(["sum", "count"]).to_numpy()
    mean = by_scene[:, 0].sum() / by_scene[:, 1].sum()
    if mean in (0.0, 1.0):
        interval = binomtest(round(mean) * len(by_scene), len(by_scene)).proportion_ci(method="wilson")
        return mean, interval.low, interval.high
    chosen = np.random.default_rng(seed).integers(len(by_scene), size=(resamples, len(by_scene)))
    sums, counts = by_scene[chosen].sum(axis=1).T
    low, high = np.percentile(sums / counts, [2.5, 97.5])
    return mean, float(low), float(high)
