"""Selects steps, sites, columns and words of a trace, and reads the attention that the files hold for them."""

import difflib
import fnmatch
import math
from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr

from toushi.probe.analysis import maps
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.step_slice import parse_slice
from toushi.probe.text.alignment import Span, UnknownWord, WordSpec, find_word, same_unknown, token_shares
from toushi.probe.trace.manifest import Manifest
from toushi.probe.trace.safetensors_reader import SafetensorsFile, StepStore
from toushi.probe.trace.trace_errors import DamagedTrace, NotRecorded
from toushi.probe.trace.trace_format import map_key, rest_key
from toushi.probe.trace.trace_json import parse

Sites = str | Sequence[str] | None
Steps = int | slice | str | Iterable[int] | None  # a text is a slice: "5:11"

MAX_BYTES = 2**31  # of the values that are read at once


# --- names -> what the trace holds ----------------------------------------------------------------------


def check_branch(manifest: Manifest, branch: str) -> str:
    """The branch. Raises NotRecorded where the trace has no such branch."""
    if branch not in manifest.branches:
        there = ", ".join(manifest.branches) or "none"
        raise NotRecorded(f"There is no branch {branch!r}; this trace has {there}.")
    return branch


def select_sites(manifest: Manifest, sites: Sites = None) -> list[str]:
    """The names of the sites that the globs match, in the manifest's order; by default of every cross site."""
    known = manifest.sites
    if sites is None:
        chosen = {name for name, site in known.items() if site.kind == "cross"}
        if not chosen:
            raise NotRecorded("The trace has no image-to-text site. Choose others with sites=; trace.sites lists all.")
    else:
        chosen = set()
        for pattern in map(str, [sites] if isinstance(sites, str) else list(sites)):
            matches = {pattern} & set(known) or {name for name in known if fnmatch.fnmatchcase(name, pattern)}
            if not matches:
                near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
                listed = f"{'Nearest:' if near else 'It has'} {', '.join(near or [*known][:5])}"
                raise NotRecorded(f"No site of this trace matches {pattern!r}. {listed}.")
            chosen |= matches
        if not chosen:
            raise ToushiError("The list of sites is empty; expected at least one, or None for all image-to-text sites.")
    if encoder := [name for name in chosen if known[name].kind == "encoder"]:
        raise ToushiError(
            f"{encoder[0]} is in the text encoder, so it has no map of the picture: use trace.encoder_attention."
        )
    return [name for name in known if name in chosen]


def select_steps(files: StepStore, steps: Steps = None) -> list[int]:
    """The finished steps that an index, a list of indices or a slice selects; by default all."""
    if steps is None:
        return files.steps
    count = files.manifest.steps.count
    try:
        steps = parse_slice(steps) if isinstance(steps, str) else steps
        if isinstance(steps, slice):
            return [step for step in range(*steps.indices(count)) if step in files.lines]
        asked = [int(n.__index__()) for n in ([steps] if isinstance(steps, int | np.integer) else steps)]
    except (TypeError, AttributeError, ValueError):
        raise ToushiError(
            f'steps must be an index, a list of indices, or a slice such as "5:11"; {steps!r:.80} came.'
        ) from None
    chosen = [step + count if step < 0 else step for step in asked]
    for step, name in zip(chosen, asked):
        if step not in files.lines:
            have = f"{files.steps[0]} to {files.steps[-1]}" if files.lines else "none"
            raise NotRecorded(f"Step {name} is not in this trace, which has {len(files.lines)} steps ({have}).")
    if not chosen:
        raise ToushiError("The list of steps is empty; expected at least one, or None for all.")
    return chosen


def find_span(manifest: Manifest, word: WordSpec, branch: str = "cond") -> Span:
    """The characters that `word` means: text, "猫#2", a Word, or (start, end). See toushi.probe.text.alignment.find_word."""
    prompt = manifest.prompt_of(check_branch(manifest, branch))
    if prompt is None:
        raise NotRecorded(
            f"The text of the {branch} prompt is not known, so it has no words: the run got embeddings instead of text, "
            "or Toushi does not know the pipeline's family. Leave the word out: the maps are then by token index."
        )
    try:
        return find_word(prompt, manifest.words_of(branch), word)
    except UnknownWord as error:
        if branch == "cond":
            raise
        raise UnknownWord(f"{error} The prompt of the branch {branch!r} is {prompt!r:.80}.") from None


def cell_coordinates(manifest: Manifest, grid: Sequence[int]) -> dict[str, xr.Variable]:
    """Coordinates `y` and `x` of a grid: the centre of each cell, counted from 0 in cells of the trace's finest grid.

    So one place of the picture has the same coordinates on every grid.
    """
    grids = [site.grid for site in manifest.sites.values() if site.grid is not None]
    finest = max(grids, key=math.prod, default=grid)
    about = {"long_name": "centre of the cell, in cells of the finest grid"}
    return {
        axis: xr.Variable(axis, (np.arange(cells) + 0.5) * (most / cells) - 0.5, about)
        for axis, cells, most in zip(("y", "x"), grid, finest)
    }


def layer_coordinates(layers: Sequence[int]) -> dict[str, object]:
    """Both countings of an encoder's layers: `layer`, 0 the embeddings, and `layer_index`, which names of modules have."""
    return {"layer": list(layers), "layer_index": ("layer", [layer - 1 for layer in layers])}


# --- results --------------------------------------------------------------------------------------------


def on_finest_grid(query: "AttentionQuery") -> xr.DataArray:
    """[step, layer, head?, token?, y, x], all sites on one grid; see Trace.attention."""
    shapes = {site: query.shape(site) for site in query.sites}
    if len({shape[:-2] if query.axis == "key" else len(shape) for shape in shapes.values()}) > 1:
        raise ToushiError(
            "These sites do not fit into one array: they differ in axes. Select sites of one kind, "
            'or use grid="native".'
        )
    finest = maps.finest_grid([shape[-2:] for shape in shapes.values()])
    first = shapes[query.sites[0]]
    inner = list(first[:-2])
    if by_head := query.by_head(query.sites[0]):
        inner[0] = max(shape[0] for shape in shapes.values())
    whole = (len(query.steps), len(query.sites), *inner, *finest)
    refuse_large([whole])
    result = np.empty(whole, np.float32)
    places = {site: result[:, i, : shapes[site][0]] if by_head else result[:, i] for i, site in enumerate(shapes)}
    for site, shape in shapes.items():
        if by_head and shape[0] < inner[0]:
            result[:, query.sites.index(site), shape[0] :] = np.nan
    same = [site for site in shapes if shapes[site][-2:] == finest]
    query.read(same, into=places)
    for site in shapes:
        if site not in same:
            places[site][...] = maps.resample(query.read([site])[site], finest)
    return query.labelled(result)


def on_native_grids(query: "AttentionQuery") -> dict[str, xr.DataArray]:
    """[step, head?, token?, y, x] for each site; see Trace.attention."""
    refuse_large([(len(query.steps), *query.shape(site)) for site in query.sites])
    return {site: query.labelled(query.read([site])[site], site) for site in query.sites}


def heat_map(query: "AttentionQuery", rule: str) -> xr.DataArray:
    """[y, x]; see Trace.heat_map."""
    values = maps.heat_map(query.read([site])[site] for site in query.sites)
    cells = cell_coordinates(query.manifest, values.shape)
    result = xr.DataArray(values, dims=("y", "x"), coords=cells, name="attention")
    return result.assign_attrs(query.attributes() | {"rule": rule, "sites": query.sites})


def mass(query: "AttentionQuery") -> xr.DataArray:
    """[token]; see Trace.mass."""
    token, rest = [], []
    for site in query.sites:
        shares, others = [], []
        for step in query.steps:
            if (values := query.step(site, step)) is not None:
                of_cells = values.mean((-2, -1), dtype=np.float64)
                shares.append(maps.nan_mean(of_cells) if of_cells.ndim == 2 else of_cells)
                beside = query.rest(site, step)
                assert beside is not None  # the step has the site
                others.append(beside.mean(dtype=np.float64))
        token.append(maps.nan_mean(shares))
        rest.append(np.mean(others))
    result = xr.DataArray(maps.nan_mean(token), dims="token", coords=query.token_coordinates(), name="mass")
    return result.assign_attrs(query.attributes() | {"rest": float(np.mean(rest)), "sites": query.sites})


NO_MAP = {
    "words": "only other words were kept in this trace; record it again with this word",
    "dropped": "the model drops its tokens before the denoiser",
    "cut": "no token stands for it: it was cut from the prompt, which is too long for the text encoder",
    "changed": "no token stands for it: it was replaced or removed before the text encoder read it, or the tokenizer "
    "leaves it out",
    "other text": "no token stands for it: the text encoder read another text than the prompt",
    "older": "no token stands for it: it was cut from the prompt, or changed before the text encoder read it (an older "
    "trace does not say)",
}


def why_no_map(manifest: Manifest, branch: str, span: Span) -> str:
    """The reason, a key of NO_MAP, why the trace has no attention to these characters."""
    entry, tokens = manifest.branches[branch], manifest.tokens_of(branch)
    owned = [token for token, share in zip(tokens, token_shares(tokens, span)) if share]
    if owned:
        return "words" if any(token.column is not None for token in owned) else "dropped"
    if "cut" not in entry.model_fields_set:
        return "older"
    if entry.cut is not None and entry.cut < span[1]:
        return "cut"
    return "changed" if any(token.span for token in tokens) else "other text"


class MapReader:
    """Reads the maps of one branch, to one word or to every text column: one site and one step at a time.

    `weights` holds the share of each column that belongs to the word; None without a word.
    """

    def __init__(self, files: StepStore, word: WordSpec | None, branch: str):
        self.files, self.manifest = files, files.manifest
        self.branch = check_branch(files.manifest, branch)
        self.columns = self.manifest.branches[branch].place_columns()
        self.span = None if word is None else find_span(self.manifest, word, branch)
        self.weights = None if self.span is None else self._weights(self.span)
        places = [] if self.weights is None else np.flatnonzero(self.weights)
        # The shortest range that holds the word.
        self.column_range = slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(None)

    def _weights(self, span: Span) -> np.ndarray:
        """float32 [column]: the share of each column that belongs to the word."""
        tokens = self.manifest.tokens_of(self.branch)
        by_token = token_shares(tokens, span)
        by_column = {token.column: share for token, share in zip(tokens, by_token) if token.column is not None}
        weights = np.array([by_column.get(column, 0.0) for column in self.columns], np.float32)
        if not weights.any():
            text = (self.manifest.prompt_of(self.branch) or "")[slice(*span)]
            why = NO_MAP[why_no_map(self.manifest, self.branch, span)]
            raise NotRecorded(f"There is no attention to {text!r}: {why}.")
        return weights

    def step(self, site: str, step: int, columns: slice | None = None) -> np.ndarray | None:
        """float [head?, token?, y, x], of the stored type where nothing had to be computed; None if not there.

        Without a word, `columns` selects places of the token axis.
        """
        file, key = self.files.step(step), map_key(site, self.branch)
        if key not in file.keys:
            return None
        by_head = len(self.files.shape(file, key)) == 4
        columns = columns or self.column_range
        values = file.read(key) if columns == slice(None) else file.read(key, (slice(None),) * by_head + (columns,))
        if self.weights is not None:
            weights = self.weights[columns]
            if len(weights) == 1:
                values = values[..., 0, :, :]
                values = values if weights[0] == 1 else values * weights[0]
            else:
                values = np.einsum("t,...tyx->...yx", weights, values.astype(np.float32))
        return values / np.float32(self.count(file, key)) if self.manifest.keep == "sum" else values

    def rest(self, site: str, step: int) -> np.ndarray | None:
        """float32 [head?, y, x]: attention to no text column, zero where the file leaves it out; None if not there."""
        file, key = self.files.step(step), map_key(site, self.branch)
        if key not in file.keys:
            return None
        if (rest := rest_key(site, self.branch)) not in file.keys:
            shape = self.files.shape(file, key)
            return np.zeros(shape[:-3] + shape[-2:], np.float32)
        self.files.shape(file, rest)
        values = file.read(rest).astype(np.float32)
        return values / self.count(file, key) if self.manifest.keep == "sum" else values

    def count(self, file: SafetensorsFile, key: str) -> int:
        """How many steps a sum is of."""
        counts = parse(file.metadata.get("counts", "null").encode(), f"{file.path} metadata")
        count = counts.get(key) if isinstance(counts, dict) else None
        if not isinstance(count, int) or not 1 <= count <= len(self.files.steps):
            raise DamagedTrace(f'{file.path}: the metadata must say how many steps went into "{key}".')
        return count


class AttentionQuery(MapReader):
    """A query about attention, resolved: which steps, which sites, which columns with which weight.

    `steps` are those whose files are read, `summed` those that the result covers. With keep "sum" these are the last
    step, and all steps.
    """

    def __init__(self, files: StepStore, word: WordSpec | None, branch: str, sites: list[str], steps: Steps = None):
        super().__init__(files, word, branch)
        kinds = {files.manifest.sites[site].kind for site in sites}
        if len(kinds) > 1:
            raise ToushiError(
                "Image-to-text sites and image self-attention cannot be combined in one query. Select one kind."
            )
        self.sites, self.axis = sites, "key" if kinds == {"self"} else "token"
        if self.axis == "key" and word is not None:
            raise ToushiError("Image self-attention attends to the image, not to words. Select image-to-text sites.")
        self.steps, self.summed = self._present(steps)

    def _present(self, steps: Steps) -> tuple[list[int], list[int]]:
        """The steps whose files have the branch at these sites, and the steps that their values cover."""
        files = self.files
        chosen = select_steps(files, steps)
        if self.manifest.keep == "sum" and chosen:
            if set(chosen) != set(files.steps):
                raise NotRecorded("This trace keeps only the sum over its steps, so single steps cannot be selected.")
            chosen = files.steps[-1:]
        keys = [map_key(site, self.branch) for site in self.sites]
        present = [step for step in chosen if any(key in files.step(step).keys for key in keys)]
        explicit = steps is not None and not isinstance(steps, slice)
        if not present or (explicit and len(present) < len(chosen)):
            missing = sorted(set(chosen) - set(present))
            have = (
                f" at step {missing[0]}"
                if present
                else " at any of these steps"
                if files.steps
                else ": no step is finished"
            )
            raise NotRecorded(
                f"There is no {self.branch} attention of {self.sites[0]}{' …' * (len(self.sites) > 1)}{have}."
            )
        for site, key in zip(list(self.sites), keys):
            if not any(key in files.step(step).keys for step in present):
                self.sites = [name for name in self.sites if name != site]
        return present, files.steps if self.manifest.keep == "sum" else present

    # --- all steps

    def shape(self, site: str) -> tuple[int, ...]:
        """The shape of the maps at one step, checked against the files."""
        key = map_key(site, self.branch)
        files = [self.files.step(step) for step in self.steps]
        shapes = {self.files.shape(file, key) for file in files if key in file.keys}
        if len(shapes) > 1:
            raise DamagedTrace(
                f'{self.files.folder}: "{key}" has different shapes at different steps: {sorted(shapes)}.'
            )
        (shape,) = shapes
        return shape if self.weights is None else shape[:-3] + shape[-2:]

    def by_head(self, site: str) -> bool:
        return len(self.shape(site)) == (4 if self.weights is None else 3)

    def read(self, sites: list[str], into: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """float32 [step, head?, token?, y, x] for each site; NaN at steps that lack it."""
        if into is None:
            into = {site: np.empty((len(self.steps), *self.shape(site)), np.float32) for site in sites}
        for index, step in enumerate(self.steps):
            for site in sites:
                values = self.step(site, step)
                into[site][index] = np.nan if values is None else values
        return into

    # --- labels

    def token_coordinates(self) -> dict[str, object]:
        if self.axis == "key":
            return {}
        places = self.manifest.branches[self.branch].places()
        texts, kinds = [token.text for token in places], [token.kind for token in places]
        return {"token": self.columns, "text": ("token", texts), "kind": ("token", kinds)}

    def attributes(self) -> dict[str, object]:
        attributes: dict[str, object] = {"branch": self.branch, "unit": "probability", "steps": self.summed}
        if self.span is not None:
            prompt = self.manifest.prompt_of(self.branch) or ""
            attributes |= {"word": prompt[slice(*self.span)], "span": list(self.span)}
            tokens, words = self.manifest.tokens_of(self.branch), self.manifest.words_of(self.branch)
            if same := same_unknown(words, tokens, self.span):
                attributes["unknown"] = [word.text for word in same]  # they have one map
        return attributes

    def labelled(self, values: np.ndarray, site: str | None = None) -> xr.DataArray:
        """The values [step, layer?, head?, token?, y, x] with names and labels; without `layer` if for one site."""
        heads = ["head"] if self.by_head(site or self.sites[0]) else []
        middle = heads + ([self.axis] if self.weights is None else [])
        dims = ["step", *([] if site else ["layer"]), *middle, "y", "x"]
        times = dict(zip(self.files.steps, self.files.times))
        coordinates: dict[str, object] = {"step": self.steps, "time": ("step", [times[step] for step in self.steps])}
        if not site:
            coordinates["layer"] = self.sites
        if heads:
            coordinates["head"] = np.arange(values.shape[dims.index("head")])
        if "token" in dims:
            coordinates |= self.token_coordinates()
        coordinates |= cell_coordinates(self.manifest, values.shape[-2:])
        return xr.DataArray(values, dims=dims, coords=coordinates, name="attention", attrs=self.attributes())


def refuse_large(shapes: list[tuple[int, ...]]) -> None:
    """Raises ToushiError if float32 arrays of these shapes take more than MAX_BYTES together."""
    size = 4 * sum(map(math.prod, shapes))
    if size > MAX_BYTES:
        raise ToushiError(
            f"The result would take {size / 2**30:.1f} GB; up to {MAX_BYTES / 2**30:.0f} GB can be read at once. "
            "Select a word, fewer steps or fewer sites."
        )
