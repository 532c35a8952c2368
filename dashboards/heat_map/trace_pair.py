"""Two traces, or two branches of one, on common axes: words, layers and steps, so that maps can be subtracted."""

from dataclasses import dataclass

import numpy as np

from toushi.dashboards.heat_map.word_maps import Layer, WordMaps
from toushi.probe.analysis.maps import finest_grid, resample
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.prompt_units import Unit


class NothingInCommon(ToushiError):
    """The two traces have no common word or layer."""


@dataclass(frozen=True)
class Pair:
    units: tuple[Unit, ...]  # in the reading order of the first
    steps: tuple[tuple[int, int], ...]  # the step of each trace: the same one, or equally far in the run
    layers: tuple[Layer, ...]  # maps float16 [2, 1 + step, unit, y, x], shares float32 [2, 1 + step, unit]


def align_traces(first: WordMaps, second: WordMaps) -> Pair:
    """The means over heads. If the grids differ, the coarser map is resampled to the finer grid."""
    pair = _align(first, second, _slots(first.steps, second.steps))
    if not any(unit.kind in ("word", "token") for unit in pair.units):
        raise NothingInCommon("The two prompts have no common word, so they cannot be compared.")
    return pair


def align_branches(first: WordMaps, second: WordMaps) -> Pair:
    """The same of two branches of one trace, at the steps that both have. Often only special tokens are common."""
    steps = [(i, second.steps.index(step) + 1) for i, step in enumerate(first.steps, 1) if step in second.steps]
    return _align(first, second, [(0, 0), *steps])


def _align(first: WordMaps, second: WordMaps, slots: list[tuple[int, int]]) -> Pair:
    theirs = {_key(unit): i for i, unit in enumerate(second.units)}
    units = [(i, theirs[_key(unit)]) for i, unit in enumerate(first.units) if _key(unit) in theirs]
    if not units:
        raise NothingInCommon("The two prompts have no common token, so they cannot be compared.")
    others = {layer.name: layer for layer in second.layers}
    layers = tuple(_together(layer, others[layer.name], units, slots) for layer in first.layers if layer.name in others)
    if not layers:
        raise NothingInCommon("The two traces have no common layer, so they cannot be compared.")
    steps = tuple((first.steps[i - 1], second.steps[j - 1]) for i, j in slots[1:])
    return Pair(tuple(first.units[i] for i, _ in units), steps, layers)


def _key(unit: Unit) -> tuple:
    return unit.label, unit.kind, max(1, unit.occurrence)


def _slots(first: tuple[int, ...], second: tuple[int, ...]) -> list[tuple[int, int]]:
    """(index in the first, index in the second). (0, 0), the means, comes first."""
    if not first or not second:
        return [(0, 0)]
    count = max(len(first), len(second))
    place = [np.linspace(1, len(steps), count).round().astype(int).tolist() for steps in (first, second)]
    return [(0, 0), *zip(*place)]


def _together(first: Layer, second: Layer, units: list, slots: list) -> Layer:
    finest = finest_grid([first.grid, second.grid])
    maps = np.stack([
        resample(layer.maps[[slot[side] for slot in slots], 0][:, [unit[side] for unit in units]].astype(np.float32), finest)
        for side, layer in enumerate((first, second))
    ])  # fmt: skip
    return Layer(first.name, first.label, maps.astype(np.float16), maps.mean((-2, -1)))
