"""The maps of all words of a trace, as the picture component draws them, within a budget of bytes.

A unit (`toushi.probe.text.prompt_units`) is a row of the shares. Index 0 of step and head is the mean over all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from toushi.probe.analysis.maps import finest_grid, mean_of_sites, nan_mean
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import Word
from toushi.probe.text.prompt_units import Unit, units_of
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.trace_errors import NotRecorded

BUDGET = 48 * 2**20  # bytes sent to the browser; above it, first single heads are omitted, then steps


@dataclass(frozen=True)
class Layer:
    name: str  # of the site; "" for the trace's own heat map, "*" for the plain mean of all sites
    label: str
    maps: np.ndarray  # float16 [1 + step, 1 + head, unit, y, x]; without single heads if they are omitted
    shares: np.ndarray  # float32 [1 + step, 1 + head, unit]: the means of the maps over the cells

    @property
    def grid(self) -> tuple[int, int]:
        return self.maps.shape[-2:]

    @property
    def heads(self) -> int:
        return self.maps.shape[1] - 1


@dataclass(frozen=True)
class WordMaps:
    units: tuple[Unit, ...]
    lost: tuple[Word, ...]  # words of the prompt without a map: cut, or not kept
    steps: tuple[int, ...]  # the steps that can be shown one by one
    layers: tuple[Layer, ...]  # the first is `trace.heat_map`
    heads_left_out: bool
    steps_left_out: bool


def read_word_maps(trace: Trace, branch: str, budget: int | None = None) -> WordMaps:
    """The image-to-text attention of one branch, in at most `budget` bytes (`BUDGET` if None). Steps are read one by
    one, which bounds the memory."""
    firsts = _firsts(trace, branch)
    tokens = trace.places(branch)
    words = trace.words(branch)
    units, weights = units_of(tokens, words, by_token=trace.manifest.prompt_of(branch) is None)
    steps = [] if trace.keep == "sum" else trace.steps
    grids = {name: maps.shape[-2:] for name, maps in firsts.items()}
    heads = {name: maps.sizes.get("head", 0) for name, maps in firsts.items()}
    means = _means(trace, list(grids))
    finest = {name: finest_grid([grids[site] for site in sites]) for name, sites in means.items()}
    heads, shown, heads_left_out = _fit(
        grids | finest, heads | dict.fromkeys(means, 0), steps, len(units), BUDGET if budget is None else budget
    )
    steps_left_out = len(shown) < len(steps)
    blocks = {
        name: _block(trace, branch, name, weights, steps or [None], shown, (1 + heads[name], len(units), *grid))
        for name, grid in grids.items()
    }
    # A branch is absent after guidance stops: such steps have no map.
    present = [i for i in range(len(shown)) if not all(np.isnan(block[1 + i]).all() for block in blocks.values())]
    blocks = {name: block[[0, *(1 + i for i in present)]] for name, block in blocks.items()}
    lost = tuple(word for word in words if word.span not in {unit.span for unit in units})
    layers = tuple(_layers(blocks, means))
    return WordMaps(tuple(units), lost, tuple(shown[i] for i in present), layers, heads_left_out, steps_left_out)


def _firsts(trace: Trace, branch: str) -> dict:
    """For each recorded site its attention at the first step that has it: DataArray [1, head?, token, y, x]."""
    firsts = {}
    for name in (name for name, site in trace.sites.items() if site.kind == "cross"):
        for step in [None] if trace.keep == "sum" else trace.steps:
            try:
                firsts[name] = _read(trace, branch, name, step)
                break
            except NotRecorded:  # guidance is off at this step, or the site was not kept
                continue
    if not firsts:
        raise NotRecorded(
            f"This trace has no image-to-text attention (branch {branch}, finished steps: "
            f"{len(trace.steps)}). Record it again with the image-to-text sites."
        )
    return firsts


def _read(trace: Trace, branch: str, site: str, step: int | None):
    """DataArray [step = 1, head?, token, y, x] on the site's own grid."""
    return trace.attention(branch=branch, sites=[site], steps=None if step is None else [step], grid="native")[site]


def _block(
    trace: Trace, branch: str, site: str, weights, steps, single_steps: list[int], shape: tuple[int, ...]
) -> np.ndarray:
    """float32 [1 + step, 1 + head, unit, y, x] of one site. The mean is over all `steps`."""
    block = np.full((1 + len(single_steps), *shape), np.nan, np.float32)

    def read_steps() -> Iterator[np.ndarray]:
        """[1 + head, unit, y, x] of each step that has the site. Writes `single_steps` into the block."""
        for step in steps:
            try:
                maps = _read(trace, branch, site, step)
            except NotRecorded:  # not kept at this step
                continue
            by_unit = np.einsum("ut,...tyx->...uyx", weights, maps.values[0].astype(np.float32))
            by_unit = by_unit if "head" in maps.dims else by_unit[None]
            by_head = np.concatenate([nan_mean(by_unit)[None], by_unit])[: shape[0]]
            if step in single_steps:
                block[1 + single_steps.index(step)] = by_head
            yield by_head

    block[0] = nan_mean(read_steps())
    return block


def _means(trace: Trace, sites: list[str]) -> dict[str, list[str]]:
    """The sites of the trace's own heat map, and those of the plain mean if the card has another rule."""
    chosen = [name for name in trace.heat_map_rule()[0] if name in sites] or sites
    return {"": chosen} if len(chosen) == len(sites) else {"": chosen, "*": sites}


def _layers(blocks: dict[str, np.ndarray], means: dict[str, list[str]]):
    """The means first, then each site."""
    for name, sites in means.items():
        yield _layer(name, name, _together(blocks, sites))
    labels = short_names(list(blocks))
    for name, block in blocks.items():
        yield _layer(name, labels[name], block)


def _layer(name: str, label: str, block: np.ndarray) -> Layer:
    return Layer(name, label, block.astype(np.float16), block.mean((-2, -1)))


def _together(blocks: dict[str, np.ndarray], names: list[str]) -> np.ndarray:
    """float32 [1 + step, 1, unit, y, x]: heads averaged within a site, then sites equally, on the finest grid."""
    return mean_of_sites([blocks[name][:, :1] for name in names])


def _fit(
    grids: dict, heads: dict[str, int], steps: list[int], units: int, budget: int
) -> tuple[dict[str, int], list[int], bool]:
    """The heads of each site and the steps that fit the budget, and whether heads are omitted."""

    def size(heads: dict[str, int]) -> int:
        return sum(2 * units * (1 + heads[name]) * grid[0] * grid[1] for name, grid in grids.items())

    left_out = any(heads.values()) and (1 + len(steps)) * size(heads) > budget
    if left_out:
        heads = dict.fromkeys(heads, 0)
    most = budget // max(1, size(heads)) - 1
    if len(steps) > most:
        if most < 1:
            raise ToushiError(
                f"The maps of one step take {size(heads) / 2**20:.0f} MB without single heads; up to "
                f"{budget / 2**20:.0f} MB can be shown. Record fewer words or sites, or read the maps with open_trace."
            )
        steps = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))]
    return heads, steps, left_out


def short_names(names: list[str]) -> dict[str, str]:
    """Site names without their common parts: unet.down.1.cross_attention -> down.1."""
    parts = [name.split(".") for name in names]
    first, last = 0, 0
    shortest = min(map(len, parts), default=0)
    while first < shortest - 1 and len({p[first] for p in parts}) == 1:
        first += 1
    while last < shortest - 1 - first and len({p[-1 - last] for p in parts}) == 1:
        last += 1
    return {name: ".".join(p[first : len(p) - last]) for name, p in zip(names, parts)}
