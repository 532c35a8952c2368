"""Two traces side by side: their pictures, the maps of their common words, and what differs in how they were made."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from toushi.probe.analysis.maps import correlation, finest_grid, mass, resample, total_variation
from toushi.probe.text.alignment import Span
from toushi.probe.text.prompt_units import units_of
from toushi.probe.trace.manifest import Manifest
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.trace_errors import NotRecorded

CHANGE = 16  # of 255: a pixel has changed if one of its channels differs by more
FACTS = (  # fields of the manifest
    *("prompt", "negative_prompt", "model", "loras", "edits", "seed", "generator_state", "guidance", "true_guidance"),
    *("strength", "source_image_sha256", "sampler", "size", "batch", "batch_index", "arguments", "components", "keep"),
    *("safety", "loading", "dtype", "device", "gpu", "autocast", "torch_settings", "kernel", "threads"),
    *("attention_switched", "versions", "git"),
)


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns."""

    a: Trace
    b: Trace
    mean_difference: float | None  # of the pictures, absolute, 0..255; None if they cannot be compared
    changed_pixels: float | None  # share of the pixels with a channel that differs by more than CHANGE, 0..1
    words: pd.DataFrame  # word -> share_a, share_b, correlation, total_variation
    facts: pd.DataFrame  # each fact of the manifests that differs -> a, b
    maps: dict[str, tuple[xr.DataArray, xr.DataArray]]  # word -> heat maps [y, x] of a and b on one grid
    notes: tuple[str, ...]  # a sentence for everything that could not be compared, or not as it is


def compare(
    a: Trace | str | Path, b: Trace | str | Path, *, words: str | Sequence[str] | None = None, branch: str = "cond"
) -> Comparison:
    """The differences of two traces of pictures, which are given as folders or opened.

    `words` are compared by their heat maps; by default all common words of the branch. Both maps are on the finer one of
    their grids. `correlation` is Pearson's over cells, -1..1. `total_variation` is 0 where two maps, each divided by its
    sum, are equal, and 1 where they do not overlap. The shares are the means of the maps. NaN: a map is constant, or 0.

    Raises UnknownWord for a word that one of the prompts does not have, and what `open_trace` raises.
    """
    first, second = (trace if isinstance(trace, Trace) else open_trace(trace) for trace in (a, b))
    notes = [
        f"{name} is not complete: it has {len(trace.steps)} of {trace.manifest.steps.count} steps."
        for name, trace in (("A", first), ("B", second))
        if not trace.complete
    ]
    words = [words] if isinstance(words, str) else words
    if first.manifest.edits != second.manifest.edits:
        edited = " and ".join(name for name, trace in (("A", first), ("B", second)) if trace.manifest.edits)
        notes.append(f"The maps of {edited} show the attention before each edit at its site, so an edit may not show.")
    difference, changed = _compare_pictures(first, second, notes)
    maps = _common_maps(first, second, words, branch, notes)
    columns = {
        "share_a": [float(mass(one.values)) for one, _ in maps.values()],
        "share_b": [float(mass(other.values)) for _, other in maps.values()],
        "correlation": [float(correlation(one.values, other.values)) for one, other in maps.values()],
        "total_variation": [float(total_variation(one.values, other.values)) for one, other in maps.values()],
    }
    table = pd.DataFrame(columns, pd.Index(list(maps), name="word", dtype=object), dtype=float)
    facts = _differing_facts(first.manifest, second.manifest)
    return Comparison(first, second, difference, changed, table, facts, maps, tuple(notes))


def _compare_pictures(first: Trace, second: Trace, notes: list[str]) -> tuple[float | None, float | None]:
    """Mean absolute difference, 0..255, and share of changed pixels."""
    one, other = first.image(), second.image()
    if one is None or other is None:
        missing = " and ".join(name for name, picture in (("A", one), ("B", other)) if picture is None)
        notes.append(f"The pictures are not compared: {missing} has none, because the run ended before.")
        return None, None
    if one.shape != other.shape:
        sizes = " and ".join(f"{picture.shape[0]}x{picture.shape[1]}" for picture in (one, other))
        notes.append(f"The pictures are not compared: they have different sizes, {sizes} pixels.")
        return None, None
    difference = np.abs(one.astype(np.int16) - other)
    return float(difference.mean()), float((difference.max(-1) > CHANGE).mean())


def _common_maps(
    first: Trace, second: Trace, words: Sequence[str] | None, branch: str, notes: list[str]
) -> dict[str, tuple[xr.DataArray, xr.DataArray]]:
    """Word -> the two heat maps on one grid."""
    try:
        spans = [_spans(trace, branch) for trace in (first, second)]
        if words is not None:
            pairs = {word: (first.span(word, branch), second.span(word, branch)) for word in words}
        else:
            keys = [key for key in spans[0] if key in spans[1]]
            pairs = {_name(key, spans): (spans[0][key], spans[1][key]) for key in keys}
            for name, own, theirs in (("A", *spans), ("B", *spans[::-1])):
                if only := [_name(key, spans) for key in own if key not in theirs]:
                    notes.append(f"Only {name} has a map of: {', '.join(only)}.")
            if not pairs:
                notes.append("No map is compared: the traces have no common word.")
        maps = {
            word: (first.heat_map(one, branch=branch), second.heat_map(other, branch=branch))
            for word, (one, other) in pairs.items()
        }
    except NotRecorded as error:
        notes.append(f"No map is compared: {error}")
        return {}
    grids = sorted({heat.shape for pair in maps.values() for heat in pair})
    if len(grids) > 1:
        listed = " and ".join("x".join(map(str, grid)) for grid in grids)
        notes.append(
            f"The grids of the maps differ ({listed} cells): the coarser maps are resampled to the finer grid."
        )
        finest = finest_grid(grids)
        maps = {word: (resample(one, finest), resample(other, finest)) for word, (one, other) in maps.items()}
    if len({tuple(heat.attrs["sites"]) for pair in maps.values() for heat in pair}) > 1:
        notes.append("The maps of A and B are means over different sites.")
    return maps


def _spans(trace: Trace, branch: str) -> dict[tuple[str, int], Span]:
    """(text, number among equal words) -> span, for each word that the trace has a map of."""
    units, _ = units_of(trace.places(branch), trace.words(branch))
    return {
        (unit.label, max(1, unit.occurrence)): unit.span
        for unit in units
        if unit.kind == "word" and unit.span is not None
    }


def _name(key: tuple[str, int], spans: Sequence[dict[tuple[str, int], Span]]) -> str:
    """The word, with #1, #2, … if one of the prompts repeats it."""
    text, number = key
    return f"{text}#{number}" if any((text, 2) in of_trace for of_trace in spans) else text


def _differing_facts(first: Manifest, second: Manifest) -> pd.DataFrame:
    """Fact -> a, b, where they differ. Parts of a fact are named versions.torch; None: the manifest does not have it."""
    one, other = _facts(first), _facts(second)

    def is_default(name: str) -> bool:
        """Whether one call gave an argument the value that the other call took by default."""
        field = name.removeprefix("arguments.")
        values = (None, one.get(field)) if field != name and one.get(field) == other.get(field) else ()
        return one.get(name) in values and other.get(name) in values

    differing = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    names = [name for name in differing if not is_default(name)]
    index = pd.Index(names, name="fact", dtype=object)
    return pd.DataFrame(
        {"a": [one.get(name) for name in names], "b": [other.get(name) for name in names]}, index, dtype=object
    )


def _facts(manifest: Manifest) -> dict[str, object]:
    fields = manifest.as_dict()
    facts: dict[str, object] = {"steps": manifest.steps.count}
    for name in FACTS:
        facts |= _flat(name, fields.get(name))
    return facts


def _flat(name: str, value: object) -> dict[str, object]:
    """{"components.unet.dtype": …} for objects in objects."""
    if isinstance(value, dict):
        return {key: leaf for part, inner in value.items() for key, leaf in _flat(f"{name}.{part}", inner).items()}
    return {name: value or None if isinstance(value, list) else value}
