"""A trace of a picture as datasets of xarray, one for each site, whose values are read when they are asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import Word, word_labels
from toushi.probe.trace.lazy_array import Key, LazyArray, lazy_variable, select
from toushi.probe.trace.manifest import Site
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.safetensors_reader import SafetensorsFile
from toushi.probe.trace.selection import MapReader, WordSpec, cell_coordinates, layer_coordinates
from toushi.probe.trace.trace_errors import DamagedTrace, NotRecorded
from toushi.probe.trace.trace_format import ENCODER, PADS, map_key, numbered_keys

ENCODER_NODE = "encoder"
ATTENTION = "attention probability"


def picture_datasets(trace: Trace, words: "BranchWords | None" = None) -> dict[str, xr.Dataset]:
    """Site -> its dataset: `attention` [step, branch, head?, token, y, x] and `rest` [step, branch, head?, y, x].

    The token axis holds the columns of all branches. With `words` (see `choose_words`), a `word` axis takes its place,
    and `rest` and image self-attention, which have no words, are left out. Else `encoder` is one more dataset, if the
    text encoder was recorded: `states` [branch, layer, token, feature], `attention` [branch, layer, head, query, token].

    Values are NaN where the trace holds none: at a step without the branch, at a column of another branch, at a layer
    that was not recorded. A summed trace has one step, the last one; its values are the mean over the steps.
    """
    if reserved := {".", "..", ENCODER_NODE} & {name for name, site in trace.sites.items() if site.kind != "encoder"}:
        raise DamagedTrace(f"{trace.folder}: a site cannot be called {reserved.pop()!r}.")
    places = _tokens(trace) if words is None else _words(trace, words)
    datasets = {}
    for name, site in trace.sites.items():
        if site.kind == "cross" or (site.kind == "self" and words is None):
            datasets[name] = _site_dataset(trace, name, site, places if site.kind == "cross" else _keys(trace))
    if words is None and (encoder := _encoder_dataset(trace)) is not None:
        datasets[ENCODER_NODE] = encoder
    return datasets


def picture_attributes(trace: Trace) -> dict[str, str | int | float | list[int]]:
    """What the root of the tree says about the picture. Only what netCDF can hold: no null, no boolean."""
    manifest = trace.manifest
    attributes = {
        "kind": "picture",
        "prompt": manifest.prompt,
        "negative_prompt": manifest.negative_prompt,
        "model": manifest.name_of_model,
        "sampler": manifest.sampler,
        "seed": manifest.seed,
        "guidance": manifest.guidance,
        "size": manifest.size and list(manifest.size),
        "keep": trace.keep,
        "complete": int(trace.complete),
    }
    return {name: value for name, value in attributes.items() if value is not None}


# --- words ----------------------------------------------------------------------------------------------

BranchWords = Mapping[str, Mapping[str, Word]]  # branch -> label, unique in the branch -> word


def choose_words(trace: Trace, words: Sequence[WordSpec] | None) -> tuple[dict[str, dict[str, Word]], dict[str, str]]:
    """The words of each branch by their labels (猫, or 猫#2 where a word is repeated), and what is left out, with the
    reason.

    `words` are of the branch `cond`; None means every word of every branch to which the trace holds attention.
    """
    if words is not None:
        spans = dict.fromkeys(trace.span(word) for word in words)
        if not spans:
            raise ToushiError("At least one word is needed; the list of words is empty.")
        asked = [Word((trace.prompt or "")[slice(*span)], *span) for span in spans]
        for word in asked:
            MapReader(trace.files, word, "cond")  # raises NotRecorded for a word without attention
        return {"cond": _labelled(asked, trace.words("cond"))}, {}
    chosen, left_out = {}, {}
    for branch in trace.branches:
        there = []
        for word in trace.words(branch):
            try:
                MapReader(trace.files, word, branch)
                there.append(word)
            except NotRecorded as missing:
                left_out[f"{branch}: {word.text}"] = str(missing)
        if there:
            chosen[branch] = _labelled(there, trace.words(branch))
    return chosen, left_out


def _labelled(words: Sequence[Word], among: Sequence[Word]) -> dict[str, Word]:
    result: dict[str, Word] = {}
    for word, label in zip(words, word_labels(words, among)):
        result[label if label not in result else f"{label} {word.start}–{word.end}"] = word
    return result


# --- the axis of tokens or words ------------------------------------------------------------------------


@dataclass(frozen=True)
class PlaceAxis:
    """The axis of the maps that is neither time nor image: tokens, words, or the image cells of self-attention."""

    name: str
    branches: list[str]
    coordinates: dict[str, object]
    size: int | None  # None: as many as the site has cells
    readers: Sequence[MapReader]  # of all columns, one for each branch; none where only words are asked for
    read: Callable[[int, str, int, Key], np.ndarray | None]  # branch, site, step, places -> [head?, place, y, x]


def _tokens(trace: Trace) -> PlaceAxis:
    """The columns of all branches in order, the sum over the pads last."""
    readers = [MapReader(trace.files, None, branch) for branch in trace.branches]
    columns = sorted({column for reader in readers for column in reader.columns}, key=lambda c: (c == PADS, c))
    # Places of the union in each branch; -1 where the branch lacks the column.
    own = np.full((len(readers), len(columns)), -1)
    text, kind = np.full(own.shape, "", object), np.full(own.shape, "", object)
    for branch, reader in enumerate(readers):
        for place, (column, token) in enumerate(zip(reader.columns, trace.places(reader.branch))):
            union = columns.index(column)
            own[branch, union], text[branch, union], kind[branch, union] = place, token.text, token.kind

    def read(branch: int, site: str, step: int, key: Key) -> np.ndarray | None:
        places = own[branch][key]
        there = np.flatnonzero(places >= 0)
        if not there.size:
            return None
        first, last = int(places[there].min()), int(places[there].max())
        maps = readers[branch].step(site, step, slice(first, last + 1))
        if maps is None:
            return None
        if there.size == places.size and np.array_equal(places, np.arange(first, last + 1)):
            return maps
        spread = np.full((*maps.shape[:-3], places.size, *maps.shape[-2:]), np.nan, np.float32)
        spread[..., there, :, :] = maps[..., places[there] - first, :, :]
        return spread

    coordinates = {"token": columns, "text": (("branch", "token"), text), "kind": (("branch", "token"), kind)}
    return PlaceAxis("token", trace.branches, coordinates, len(columns), readers, read)


def _words(trace: Trace, words: BranchWords) -> PlaceAxis:
    """The words of all branches, each label once."""
    names = list(dict.fromkeys(label for chosen in words.values() for label in chosen))
    readers = [
        {label: MapReader(trace.files, word, branch) for label, word in chosen.items()}
        for branch, chosen in words.items()
    ]
    spans = np.full((2, len(readers), len(names)), -1)
    unknown = np.zeros(spans.shape[1:], bool)
    for branch, own in enumerate(readers):
        lacking = {word.span for word in trace.unknown_words(list(words)[branch])}
        for place, label in enumerate(names):
            if label in own:
                spans[:, branch, place] = own[label].span
                unknown[branch, place] = own[label].span in lacking

    def read(branch: int, site: str, step: int, key: Key) -> np.ndarray | None:
        asked = [readers[branch].get(names[place]) for place in np.arange(len(names))[key]]
        maps = [None if reader is None else reader.step(site, step) for reader in asked]
        shape = next((one.shape for one in maps if one is not None), None)
        if shape is None:
            return None
        return np.stack([np.full(shape, np.nan, np.float32) if one is None else one for one in maps], -3)

    dims = ("branch", "word")
    coordinates = {"word": np.array(names, object), "start": (dims, spans[0]), "end": (dims, spans[1])}
    coordinates["unknown"] = (dims, unknown)
    return PlaceAxis("word", list(words), coordinates, len(names), [], read)


def _keys(trace: Trace) -> PlaceAxis:
    """The image cells that self-attention looks at, row by row. They are without coordinate: there can be many."""
    readers = [MapReader(trace.files, None, branch) for branch in trace.branches]

    def read(branch: int, site: str, step: int, key: Key) -> np.ndarray | None:
        maps = readers[branch].step(site, step)
        return None if maps is None else maps[..., key, :, :]

    return PlaceAxis("key", trace.branches, {}, None, readers, read)


# --- datasets -------------------------------------------------------------------------------------------


def _site_dataset(trace: Trace, name: str, site: Site, places: PlaceAxis) -> xr.Dataset:
    assert site.grid is not None  # the manifest has been checked: only encoder sites have none
    steps = trace.steps[-1:] if trace.keep == "sum" else trace.steps
    heads = _heads(trace, name, site)
    outer = {"step": len(steps), "branch": len(places.branches)}
    by_head = {} if heads is None else {"head": heads}
    cells = dict(zip(("y", "x"), site.grid))
    place_count = site.grid[0] * site.grid[1] if places.size is None else places.size

    def checked(maps: np.ndarray | None, step: int, axes: int) -> np.ndarray | None:
        """The maps, if they have the heads that other steps have."""
        if maps is not None and (maps.ndim != axes or (heads is not None and len(maps) != heads)):
            raise DamagedTrace(f"{trace.folder}: the heads of {name} at step {step} differ from those of other steps.")
        return maps

    def read_attention(at: tuple[int, ...], inner: Sequence[Key]) -> np.ndarray | None:
        *head, place, y, x = inner
        step = steps[at[0]]
        maps = checked(places.read(at[1], name, step, place), step, len(inner))
        return None if maps is None else select(maps, [*head, slice(None), y, x])

    def read_rest(at: tuple[int, ...], inner: Sequence[Key]) -> np.ndarray | None:
        step = steps[at[0]]
        maps = checked(places.readers[at[1]].rest(name, step), step, len(inner))
        return None if maps is None else select(maps, inner)

    dims = {**outer, **by_head, places.name: place_count, **cells}
    array = LazyArray(tuple(dims.values()), 2, read_attention)
    variables = {"attention": lazy_variable(list(dims), array, ATTENTION)}
    if places.readers:
        dims = {**outer, **by_head, **cells}
        array = LazyArray(tuple(dims.values()), 2, read_rest)
        variables["rest"] = lazy_variable(list(dims), array, f"{ATTENTION} of all that is no text")
    times = dict(zip(trace.steps, trace.times))
    coordinates = {
        "step": steps,
        "time": ("step", [times[step] for step in steps]),
        "branch": np.array(places.branches, object),
        **({} if heads is None else {"head": np.arange(heads)}),
        **places.coordinates,
        **cell_coordinates(trace.manifest, site.grid),
        "layer": ((), np.array(name, object)),
    }
    return xr.Dataset(variables, coordinates)


def _heads(trace: Trace, name: str, site: Site) -> int | None:
    """Heads of the stored maps, None for their mean. A step file is looked into only if the manifest leaves it open."""
    if trace.keep == "mean" or (trace.keep == "heads" and site.heads is not None):
        return None if trace.keep == "mean" else site.heads
    for step in trace.steps[-1:] if trace.keep == "sum" else trace.steps:
        file = trace.files.step(step)
        for key in (map_key(name, branch) for branch in trace.branches):
            if key in file.keys:
                shape = trace.files.shape(file, key)
                return shape[0] if len(shape) == 4 else None
    return None


def _encoder_dataset(trace: Trace) -> xr.Dataset | None:
    """States and attention of the text encoder. Only the header of its file is read now."""
    if ENCODER not in trace.manifest.files:
        return None
    file = trace.encoder_file()
    states = [numbered_keys(file.keys, "state", branch) for branch in trace.branches]
    attention = [numbered_keys(file.keys, "attention", branch) for branch in trace.branches]
    layers = sorted({k for keys in states for k in keys} | {k + 1 for keys in attention for k in keys})
    if not layers:
        return None
    state_shapes = [shape for keys in states if (shape := _one_shape(file, keys, ("token", "feature")))]
    attention_shapes = [shape for keys in attention if (shape := _one_shape(file, keys, ("head", "query", "token")))]
    tokens = max((shape[-1 if len(shape) == 3 else 0] for shape in [*state_shapes, *attention_shapes]), default=0)
    outer = {"branch": len(trace.branches), "layer": len(layers)}

    def variable(inner: dict[str, int], keys: list[dict[int, str]], first: int, description: str) -> xr.Variable:
        """Of tensors that are numbered from the layer `first`."""

        def read(at: tuple[int, ...], wanted: Sequence[Key]) -> np.ndarray | None:
            key = keys[at[0]].get(layers[at[1]] - first)
            if key is None:
                return None
            block = np.full(tuple(inner.values()), np.nan, np.float32)
            stored = trace.encoder_file().read(key)
            block[tuple(map(slice, stored.shape))] = stored
            return select(block, wanted)

        dims = outer | inner
        return lazy_variable(list(dims), LazyArray(tuple(dims.values()), 2, read), description)

    variables = {}
    if state_shapes:
        sizes = {"token": tokens, "feature": max(shape[1] for shape in state_shapes)}
        variables["states"] = variable(sizes, states, 0, "hidden states")
    if attention_shapes:
        sizes = {"head": max(shape[0] for shape in attention_shapes), "query": tokens, "token": tokens}
        variables["attention"] = variable(sizes, attention, 1, ATTENTION)
    text = np.full((len(trace.branches), tokens), "", object)
    for row, branch in zip(text, trace.branches):
        for token in trace.encoder_tokens(branch):
            if token.position < tokens:
                row[token.position] = token.text
    coordinates = {
        "branch": np.array(trace.branches, object),
        **layer_coordinates(layers),
        "token": np.arange(tokens),
        "text": (("branch", "token"), text),
    }
    if attention_shapes:
        coordinates |= {"head": np.arange(sizes["head"]), "query": np.arange(tokens)}
    return xr.Dataset(variables, coordinates)


def _one_shape(file: SafetensorsFile, keys: Mapping[int, str], axes: tuple[str, ...]) -> tuple[int, ...] | None:
    """The shape that all these tensors have; None if there are none."""
    shapes = {file.shape(key) for key in keys.values()}
    if len(shapes) > 1 or any(len(shape) != len(axes) or shape[1:-1] != shape[2:] for shape in shapes):
        raise DamagedTrace(f"{file.path}: {next(iter(keys.values()))} and its like must all be [{', '.join(axes)}].")
    return next(iter(shapes), None)
