"""Arms that take turns: the one fair way to time things on a machine that others use too."""

import time
from collections.abc import Callable, Mapping
from statistics import median

from tqdm import tqdm


def ratios(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    between: Callable[[], object] = lambda: None,
    seconds: float = float("inf"),
) -> list[dict]:
    """For each arm the median of its time over that of the first arm in the same round, and the range.

    Each round runs every arm once, every other round in the opposite order; one round before is not counted, nor is
    what `between` does after every arm. After so many `seconds` no further round begins, if there were three.
    """
    bare, *_ = arms
    times: dict[str, list[float]] = {name: [] for name in arms}
    begun = time.perf_counter()
    for turn in tqdm(range(-1, rounds), unit="round"):
        if turn >= 3 and time.perf_counter() - begun > seconds:
            break
        for name in arms if turn % 2 else reversed(list(arms)):
            start = time.perf_counter()
            arms[name]()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
            between()
    rows = []
    for name, mine in times.items():
        ratio = [a / b for a, b in zip(mine, times[bare])]
        row = dict(arm=name, ratio=median(ratio), lowest=min(ratio), highest=max(ratio), seconds=median(mine))
        row = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        rows.append(row | {"rounds": len(mine)})
    return rows
