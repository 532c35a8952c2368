"""Questions about attention: which steps, sites and columns are meant, and what comes back for them."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from toushi.probe.analysis.maps import resample
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import Span, Word, shares
from toushi.probe.trace import manifest as layout
from toushi.probe.trace.manifest import DamagedTrace
from toushi.probe.trace.safetensors_reader import Tensors

if TYPE_CHECKING:
    from toushi.probe.trace.reader import Trace

Sites = str | Sequence[str] | None
Steps = int | slice | Iterable[int] | None
Asked = str | Word | Span

PLAIN_MEAN = "mean over heads within a site, then over steps, then over sites, each equally"
LARGEST = 2**31  # bytes of one answer


class NotRecorded(ToushiError):
    """The trace is fine, but what was asked for was not kept in it."""


def on_finest_grid(question: "Question") -> xr.DataArray:
    """[step, layer, head?, token?, y, x]; see Trace.attention."""
    shapes = {site: question.shape(site) for site in question.sites}
    if len({shape[:-2] if question.axis == "key" else len(shape) for shape in shapes.values()}) > 1:
        raise ToushiError(
            "These sites do not fit into one array: they differ in axes. Choose sites of one kind, "
            'or ask with grid="native".'
        )
    finest = _finest([shape[-2:] for shape in shapes.values()])
    first = shapes[question.sites[0]]
    inner = list(first[:-2])
    if by_head := question.by_head(question.sites[0]):
        inner[0] = max(shape[0] for shape in shapes.values())
    whole = (len(question.steps), len(question.sites), *inner, *finest)
    _refuse_large([whole])
    result = np.empty(whole, np.float32)
    places = {site: result[:, i, : shapes[site][0]] if by_head else result[:, i] for i, site in enumerate(shapes)}
    for site, shape in shapes.items():
        if by_head and shape[0] < inner[0]:
            result[:, question.sites.index(site), shape[0] :] = np.nan
    same = [site for site in shapes if shapes[site][-2:] == finest]
    question.read(same, into=places)
    for site in shapes:
        if site not in same:
            places[site][...] = resample(question.read([site])[site], finest)
    return question.labelled(result)


def on_native_grids(question: "Question") -> dict[str, xr.DataArray]:
    """[step, head?, token?, y, x] for each site; see Trace.attention."""
    _refuse_large([(len(question.steps), *question.shape(site)) for site in question.sites])
    return {site: question.labelled(question.read([site])[site], site) for site in question.sites}


def heat_map(question: "Question", rule: str) -> xr.DataArray:
    """[y, x]; see Trace.heat_map."""
    means = []
    for site in question.sites:
        maps = question.read([site])[site]
        maps = maps.mean(1) if question.by_head(site) else maps
        means.append(maps.mean(0) if np.isfinite(maps[:, 0, 0]).all() else np.nanmean(maps, 0))
    finest = _finest([one.shape for one in means])
    result = xr.DataArray(np.mean([resample(one, finest) for one in means], 0), dims=("y", "x"), name="attention")
    return result.assign_attrs(question.attributes() | {"rule": rule, "sites": question.sites})


def mass(question: "Question") -> xr.DataArray:
    """[token]; see Trace.mass."""
    token, rest = [], []
    for site in question.sites:
        maps, others = [], []
        for step in question.steps:
            if (one := question.step(site, step)) is not None:
                averaged = one.mean((-2, -1), dtype=np.float64)
                maps.append(averaged.mean(0) if averaged.ndim == 2 else averaged)
                others.append(question.rest(site, step).mean(dtype=np.float64))
        token.append(np.mean(maps, 0))
        rest.append(np.mean(others))
    result = xr.DataArray(np.mean(token, 0), dims="token", coords=question.token_coordinates(), name="mass")
    return result.assign_attrs(question.attributes() | {"rest": float(np.mean(rest)), "sites": question.sites})


class Question:
    """One question about attention, resolved: which steps, which sites, which columns with which weight."""

    def __init__(self, trace: "Trace", word: Asked | None, branch: str, sites: list[str], steps: Steps):
        self.trace, self.word, self.branch, self.sites = trace, word, trace.known_branch(branch), sites
        kinds = {trace.sites[site]["kind"] for site in sites}
        if len(kinds) > 1:
            raise ToushiError("Image-to-text sites and image self-attention cannot be asked for together.")
        self.axis = "key" if kinds == {"self"} else "token"
        self.columns = layout.columns_of(trace.manifest, branch)
        self.span = None if word is None else trace.span(word, branch)
        self.weights = None if word is None else self._weights()
        places = [0] if self.weights is None else np.flatnonzero(self.weights)
        self.run = slice(int(places[0]), int(places[-1]) + 1)  # of columns, the shortest that holds the word
        self.steps, self.summed = self._present(steps)

    def _weights(self) -> np.ndarray:
        """float32 [column]: the share of each column that belongs to the word."""
        if self.axis == "key":
            raise ToushiError("Image self-attention looks at the image, not at words. Choose image-to-text sites.")
        assert self.span is not None
        tokens = self.trace.tokens(self.branch)
        by_token = shares(tokens, self.span)
        by_column = {token.column: share for token, share in zip(tokens, by_token) if token.column is not None}
        weights = np.array([by_column[column] for column in self.columns], np.float32)
        if not weights.any():
            prompt = layout.prompt_of(self.trace.manifest, self.branch) or ""
            text = prompt[slice(*self.span)]
            if any(by_column.values()):
                why = "only other words were kept in this trace; record it again with this word"
            elif not by_token.any():
                why = "no token stands for it: it was cut from the prompt, which is too long for the text encoder"
            else:
                why = "the model drops its tokens before the denoiser"
            raise NotRecorded(f"There is no attention to {text!r}: {why}.")
        return weights

    def _present(self, steps: Steps) -> tuple[list[int], list[int]]:
        """The steps whose files have the branch at these sites; with keep "sum" the last one, and those summed."""
        trace = self.trace
        chosen = trace.known_steps(steps)
        if trace.keep == "sum" and chosen:
            if set(chosen) != set(trace.steps):
                raise NotRecorded("This trace keeps only the sum over its steps; single steps cannot be told apart.")
            chosen = trace.steps[-1:]
        keys = [layout.map_key(site, self.branch) for site in self.sites]
        found = [step for step in chosen if any(key in trace.files.step(step).keys for key in keys)]
        explicit = steps is not None and not isinstance(steps, slice)
        if not found or (explicit and len(found) < len(chosen)):
            missing = sorted(set(chosen) - set(found))
            have = (
                f" at step {missing[0]}"
                if found
                else " at any of these steps"
                if trace.steps
                else ": no step is finished"
            )
            raise NotRecorded(
                f"There is no {self.branch} attention of {self.sites[0]}{' …' * (len(self.sites) > 1)}{have}."
            )
        for site, key in zip(list(self.sites), keys):
            if not any(key in trace.files.step(step).keys for step in found):
                self.sites = [name for name in self.sites if name != site]
        return found, trace.steps if trace.keep == "sum" else found

    # --- one site at one step

    def shape(self, site: str) -> tuple[int, ...]:
        """The shape of the answer at one step, checked against the files."""
        key = layout.map_key(site, self.branch)
        files = [self.trace.files.step(step) for step in self.steps]
        shapes = {self.trace.files.shape(file, key) for file in files if key in file.keys}
        if len(shapes) > 1:
            raise DamagedTrace(
                f'{self.trace.folder}: "{key}" has different shapes at different steps: {sorted(shapes)}.'
            )
        (shape,) = shapes
        return shape if self.weights is None else shape[:-3] + shape[-2:]

    def by_head(self, site: str) -> bool:
        return len(self.shape(site)) == (4 if self.weights is None else 3)

    def step(self, site: str, step: int) -> np.ndarray | None:
        """float [head?, token?, y, x], of the stored type where nothing had to be computed; None if not there."""
        file, key = self.trace.files.step(step), layout.map_key(site, self.branch)
        if key not in file.keys:
            return None
        by_head = len(self.trace.files.shape(file, key)) == 4
        if self.weights is None:
            found = file.read(key)
        else:
            found = file.read(key, (slice(None), self.run) if by_head else (self.run,))
            weights = self.weights[self.run]
            if len(weights) == 1:
                found = found[..., 0, :, :]
                found = found if weights[0] == 1 else found * weights[0]
            else:
                found = np.einsum("t,...tyx->...yx", weights, found.astype(np.float32))
        return found / np.float32(self.count(file, key)) if self.trace.keep == "sum" else found

    def rest(self, site: str, step: int) -> np.ndarray:
        """float [head?, y, x]: attention to no text column; zeros where the file leaves it out."""
        file, key = self.trace.files.step(step), layout.rest_key(site, self.branch)
        if key not in file.keys:
            return np.zeros(1, np.float32)
        self.trace.files.shape(file, key)
        found = file.read(key).astype(np.float32)
        return found / self.count(file, layout.map_key(site, self.branch)) if self.trace.keep == "sum" else found

    def count(self, file: Tensors, key: str) -> int:
        """How many steps a sum is of."""
        counts = layout.parse(file.metadata.get("counts", "null").encode(), f"{file.path} metadata")
        count = counts.get(key) if isinstance(counts, dict) else None
        if not isinstance(count, int) or not 1 <= count <= len(self.trace.steps):
            raise DamagedTrace(f'{file.path}: the metadata must say how many steps went into "{key}".')
        return count

    def read(self, sites: list[str], into: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """float32 [step, head?, token?, y, x] for each site; NaN at steps that lack it."""
        if into is None:
            into = {site: np.empty((len(self.steps), *self.shape(site)), np.float32) for site in sites}
        for index, step in enumerate(self.steps):
            for site in sites:
                found = self.step(site, step)
                into[site][index] = np.nan if found is None else found
        return into

    # --- labels

    def token_coordinates(self) -> dict[str, Any]:
        if self.axis == "key":
            return {}
        by_column = {token.column: token for token in self.trace.tokens(self.branch)}
        tokens = [by_column[column] for column in self.columns]
        texts, kinds = [token.text for token in tokens], [token.kind for token in tokens]
        return {"token": self.columns, "text": ("token", texts), "kind": ("token", kinds)}

    def attributes(self) -> dict[str, Any]:
        attributes: dict[str, Any] = {"branch": self.branch, "unit": "probability", "steps": self.summed}
        if self.span is not None:
            prompt = layout.prompt_of(self.trace.manifest, self.branch) or ""
            attributes |= {"word": prompt[slice(*self.span)], "span": list(self.span)}
        return attributes

    def labelled(self, values: np.ndarray, site: str | None = None) -> xr.DataArray:
        """The values [step, layer?, head?, token?, y, x] with names and labels; without `layer` if for one site."""
        heads = ["head"] if self.by_head(site or self.sites[0]) else []
        middle = heads + ([self.axis] if self.weights is None else [])
        dims = ["step", *([] if site else ["layer"]), *middle, "y", "x"]
        times = dict(zip(self.trace.steps, self.trace.times))
        coordinates: dict[str, Any] = {"step": self.steps, "time": ("step", [times[step] for step in self.steps])}
        if not site:
            coordinates["layer"] = self.sites
        if heads:
            coordinates["head"] = np.arange(values.shape[dims.index("head")])
        if "token" in dims:
            coordinates |= self.token_coordinates()
        return xr.DataArray(values, dims=dims, coords=coordinates, name="attention", attrs=self.attributes())


def _finest(grids: list[tuple[int, ...]]) -> tuple[int, int]:
    """The grid with the most cells. Refused where `resample` would need a huge common multiple to reach it."""
    rows, columns = max(grids, key=math.prod)
    for grid in grids:
        if any(a != b and math.lcm(a, b) * a > 2**24 for a, b in zip(grid, (rows, columns))):
            raise ToushiError(f'The grids {sorted(set(grids))} have no common refinement; ask with grid="native".')
    return rows, columns


def _refuse_large(shapes: list[tuple[int, ...]]) -> None:
    size = 4 * sum(map(math.prod, shapes))
    if size > LARGEST:
        raise ToushiError(
            f"The answer would take {size / 2**30:.1f} GB; up to {LARGEST / 2**30:.0f} GB is given at once. "
            "Ask for a word, for fewer steps or for fewer sites."
        )
