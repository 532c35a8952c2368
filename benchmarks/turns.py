"""Arms that take turns: the one fair way to time things on a machine that others use too."""

import time
from collections.abc import Callable, Mapping
from statistics import median

from tqdm import tqdm


def ratios(arms: Mapping[str, Callable[[], object]], rounds: int) -> list[dict]:
    """For each arm the median of its time over that of the first arm in the same round, and the range.

    Each round runs every arm once, every other round in the opposite order; one round before is not counted.
    """
    bare, *_ = arms
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in tqdm(range(-1, rounds), unit="round"):
        for name in arms if turn % 2 else reversed(arms):
            start = time.perf_counter()
            arms[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, mine in seconds.items():
        ratio = [a / b for a, b in zip(mine, seconds[bare])]
        row = dict(arm=name, ratio=median(ratio), lowest=min(ratio), highest=max(ratio), seconds=median(mine))
        rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    return rows
