"""A trace's maps for use elsewhere, in one file: float32 probabilities of image-to-text attention on native grids.

    npz       one array for each branch, word and grid, `cond/猫/16x16` [step, layer, head, y, x]; with tokens=True one
              for each branch and grid, `cond/tokens/16x16` [step, layer, head, token, y, x]. Beside them `about`, JSON:
              for each array its axes and what lies along them. The layers of an array are the sites of that grid; a
              site with fewer heads than another, and a step that lacks a site, is filled up with NaN
    zarr      the same arrays in one zip, a chunk for each step; `about` is the root group's attributes
    parquet   a row for each value: step, branch, layer, head, word, y, x, value; with tokens=True `token` (the column)
              and `text` in place of `word`. `about` is in the schema's metadata, under `toushi`

No `head` axis (in parquet: null) where only the mean over heads was kept. A trace that keeps the sum has one step, the
last one summed, and its values are the mean over as many steps as `summed` says of each branch, for guidance may have
ended before the run. What goes to no text column, in joint attention, is what all tokens leave of 1.
"""

import importlib.util
import itertools
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toushi.probe.base.atomic_io import atomic_path
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import Word, labels
from toushi.probe.trace.manifest import map_key
from toushi.probe.trace.output_dir import WriteFailed, reason
from toushi.probe.trace.parquet_export import write_parquet
from toushi.probe.trace.selection import Asked, NotRecorded, Question

if TYPE_CHECKING:
    from toushi.probe.trace.reader import Trace

SUFFIXES = {"npz": ".npz", "parquet": ".parquet", "zarr": ".zarr.zip"}
PACKAGES = {"parquet": "pyarrow", "zarr": "zarr"}

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Exported:
    path: Path
    what: str  # how much it is, in words
    about: dict[str, Any]
    left_out: dict[str, str]  # word or branch -> why there is no attention to it


@dataclass(frozen=True)
class Branch:
    """What of one branch goes out: words, each with its question; or all tokens, with one."""

    name: str
    labels: list[str]
    questions: list[Question]
    entries: list[dict[str, Any]]

    @property
    def by_token(self) -> bool:
        return self.questions[0].weights is None

    def values(self, site: str, step: int) -> np.ndarray | None:
        """float32 [head?, word or token, y, x]; None where the step lacks the site."""
        found = [question.step(site, step) for question in self.questions]
        if found[0] is None:
            return None
        whole = found[0] if self.by_token else np.stack([one for one in found if one is not None], -3)
        return whole.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Sheet:
    """One array to write, step by step."""

    name: str
    question: Question
    sites: list[str]  # of one grid
    shape: tuple[int, ...]  # [step, layer, head?, token?, y, x]
    about: dict[str, Any]

    @property
    def axes(self) -> list[str]:
        middle = ["head"] * self.question.by_head(self.sites[0]) + ["token"] * (self.question.weights is None)
        return ["step", "layer", *middle, "y", "x"]

    def at(self, step: int) -> np.ndarray:
        """float32 [layer, head?, token?, y, x]."""
        result = np.full(self.shape[1:], np.nan, np.float32)
        for site, place in zip(self.sites, result):
            if (found := self.question.step(site, step)) is not None:
                place[tuple(map(slice, found.shape))] = found
        return result


def export(
    trace: "Trace",
    to: str,
    out: str | Path | None = None,
    words: Sequence[Asked] | None = None,
    *,
    tokens: bool = False,
    overwrite: bool = False,
    tick: Tick = lambda done, of: None,
) -> Exported:
    """Writes the file, by default beside the trace's folder, in place of one that is there only if `overwrite`.

    words     of the prompt, as `heat_map` takes them; by default every word of every branch that the trace holds
    tokens    every token in place of words: specials and punctuation too, so that nothing is left out
    tick      called with (done, of) as steps are written

    Memory holds one step of one array, never all of them. Raises ToushiError: a word that is not there, a package
    that is not installed, a file that is in the way, a disk that is full.
    """
    if to not in SUFFIXES:
        raise ToushiError(f"A trace is exported to {', '.join(SUFFIXES)}; {to!r} came.")
    if tokens and words is not None:
        raise ToushiError("Expected either words or all tokens, but both came; leave one of them out.")
    package = PACKAGES.get(to)
    if package and importlib.util.find_spec(package) is None:
        raise ToushiError(f"Export to {to} needs the package {package}, which is not installed: pip install {package}")
    path = default_path(trace.folder, to) if out is None else Path(out)
    _check_place(path, overwrite)
    prepare = _of_texts if trace.manifest["kind"] == "encoder" else _of_picture
    write, about, left_out = prepare(trace, to, words, tokens)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path, shared=True) as temporary:
            what = write(temporary, tick)
            _check_place(path, overwrite)  # it took a while
    except OSError as error:
        raise WriteFailed(
            f"Cannot write {path}: {reason(error)}. Free some space, ask for fewer words, or choose another --out."
        ) from None
    return Exported(path, what, about, left_out)


def default_path(folder: Path, to: str) -> Path:
    """Beside the folder: inside it would be in the way of recording there anew."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return folder.with_name((folder.name or "trace") + SUFFIXES[to])


def _check_place(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise WriteFailed(f"{path} is a folder; name a file to write (--out).")
    if os.path.lexists(path) and not (overwrite and path.is_file()):
        raise WriteFailed(f"{path} is there already. Choose another --out, or replace it (--overwrite).")


# --- what goes out --------------------------------------------------------------------------------------


def _of_texts(trace, to: str, words: Sequence[Asked] | None, tokens: bool):
    from toushi.probe.trace.encoder_export import prepared

    return prepared(trace, to, words, tokens)


def _of_picture(trace: "Trace", to: str, words: Sequence[Asked] | None, tokens: bool):
    branches, left_out = _branches(trace, words, tokens)
    about = {**_about(trace, branches), "left_out": left_out}
    write = {"npz": _write_npz, "parquet": write_parquet, "zarr": _write_zarr}[to]
    return partial(write, branches, about), about, left_out


def _branches(trace: "Trace", words: Sequence[Asked] | None, tokens: bool) -> tuple[list[Branch], dict[str, str]]:
    sites, left_out = trace.known_sites(), {}
    if words is not None:
        spans = dict.fromkeys(trace.span(word) for word in words)
        asked = [Word((trace.prompt or "")[slice(*span)], *span) for span in spans]
        if not asked:
            raise ToushiError("At least one word is needed; the list of words is empty.")
        questions = [Question(trace, word, "cond", sites, None) for word in asked]
        return [_of_words("cond", asked, questions, trace.words("cond"))], left_out
    result = []
    for name in trace.branches:
        try:
            every = Question(trace, None, name, sites, None)
        except NotRecorded as missing:
            left_out[name] = str(missing)
            continue
        if tokens:
            result.append(_of_tokens(name, every))
            continue
        there = {}
        for word in trace.words(name):
            try:
                there[word] = Question(trace, word, name, sites, None)
            except NotRecorded as missing:
                left_out[f"{name}: {word.text}"] = str(missing)
        if there:
            result.append(_of_words(name, list(there), list(there.values()), trace.words(name)))
    if not result:
        why = next(iter(left_out.values()), "the prompt has no words")
        raise NotRecorded(f"There is nothing to export: {why.rstrip('.')}. All tokens can be exported (--tokens).")
    return result, left_out


def _of_words(name: str, words: list[Word], questions: list[Question], among: list[Word]) -> Branch:
    called: list[str] = []
    for word, label in zip(words, labels(words, among)):
        called.append(label if label not in called else f"{label} {word.start}–{word.end}")
    entries = [{"word": n, "text": w.text, "start": w.start, "end": w.end} for n, w in zip(called, words)]
    return Branch(name, called, questions, entries)


def _of_tokens(name: str, every: Question) -> Branch:
    about = every.token_coordinates()
    texts, kinds = about["text"][1], about["kind"][1]
    entries = [{"token": c, "text": t, "kind": k} for c, t, k in zip(every.columns, texts, kinds)]
    return Branch(name, list(texts), [every], entries)


def _about(trace: "Trace", branches: list[Branch]) -> dict[str, Any]:
    manifest = trace.manifest
    given = {name: manifest.get(name) for name in ("prompt", "negative_prompt", "model", "seed", "size", "guidance")}
    of = "tokens" if branches[0].by_token else "words"
    return {
        "format": "toushi-export",
        "version": 1,
        **given,
        "unit": "probability",
        "keep": trace.keep,
        "complete": trace.complete,
        "summed": {branch.name: _summed(trace, branch) for branch in branches} if trace.keep == "sum" else None,
        "times": dict(zip(map(str, trace.steps), (None if math.isnan(t) else t for t in trace.times))),
        of: {branch.name: branch.entries for branch in branches},
    }


def _summed(trace: "Trace", branch: Branch) -> int:
    """Over how many steps a branch was summed."""
    file = trace.files.step(trace.steps[-1])
    question = branch.questions[0]
    return max(question.count(file, map_key(site, branch.name)) for site in question.sites)


def _sheets(branches: list[Branch]) -> list[Sheet]:
    sheets, names = [], set()
    for branch in branches:
        for number, question in enumerate(branch.questions):
            label = "tokens" if branch.by_token else _safe(branch.labels[number])
            about = {"tokens": branch.entries} if branch.by_token else branch.entries[number]
            shapes = {site: question.shape(site) for site in question.sites}
            grids = dict.fromkeys((shape[-2:], len(shape)) for shape in shapes.values())  # in the sites' order
            for grid in grids:
                sites = [site for site, shape in shapes.items() if (shape[-2:], len(shape)) == grid]
                shape = (len(question.steps), len(sites), *map(max, zip(*(shapes[site] for site in sites))))
                base = f"{branch.name}/{label}/{'x'.join(map(str, grid[0]))}"
                name = next(n for i in itertools.count(2) for n in (base, f"{base}-{i}") if n not in names)
                names.add(name)
                sheets.append(Sheet(name, question, sites, shape, {"branch": branch.name, **about}))
    return sheets


def _safe(label: str) -> str:
    """A label as one part of a path in a zip, which somebody may unpack."""
    return re.sub(r'[/\\:*?"<>|\x00-\x1f\x7f]|^[._]+', "-", label)[:80] or "-"


def _described(sheets: list[Sheet]) -> dict[str, Any]:
    return {
        sheet.name: {"axes": sheet.axes, "steps": sheet.question.steps, "layers": sheet.sites, **sheet.about}
        for sheet in sheets
    }


def _counted(sheets: list[Sheet], tick: Tick) -> Iterator[tuple[Sheet, Iterator[tuple[int, np.ndarray]]]]:
    """Each sheet with its (index, values) of every step."""
    total, done = sum(len(sheet.question.steps) for sheet in sheets), itertools.count(1)

    def steps(sheet: Sheet) -> Iterator[tuple[int, np.ndarray]]:
        for index, step in enumerate(sheet.question.steps):
            yield index, sheet.at(step)
            tick(next(done), total)

    for sheet in sheets:
        yield sheet, steps(sheet)


def _arrays(sheets: list[Sheet]) -> str:
    return f"{len(sheets)} array{'s' * (len(sheets) != 1)}"


# --- formats --------------------------------------------------------------------------------------------


def _write_npz(branches: list[Branch], about: dict[str, Any], path: Path, tick: Tick) -> str:
    sheets = _sheets(branches)
    about["arrays"] = _described(sheets)
    with zipfile.ZipFile(path, "w", allowZip64=True) as file:
        with file.open("about.npy", "w") as entry:
            np.lib.format.write_array(entry, np.array(json.dumps(about, ensure_ascii=False)), allow_pickle=False)
        for sheet, steps in _counted(sheets, tick):
            header = {"descr": "<f4", "fortran_order": False, "shape": sheet.shape}
            with file.open(sheet.name + ".npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_2_0(entry, header)
                for _, values in steps:
                    entry.write(np.ascontiguousarray(values, "<f4").data)
    return _arrays(sheets)


def _write_zarr(branches: list[Branch], about: dict[str, Any], path: Path, tick: Tick) -> str:
    import zarr

    sheets = _sheets(branches)
    about["arrays"] = _described(sheets)
    with zarr.storage.ZipStore(path, mode="w") as store:
        root = zarr.create_group(store, attributes=about)
        for sheet, steps in _counted(sheets, tick):
            array = root.create_array(
                sheet.name,
                shape=sheet.shape,
                dtype="float32",
                chunks=(1, *(max(1, n) for n in sheet.shape[1:])),
                fill_value=math.nan,
                dimension_names=sheet.axes,
                attributes=about["arrays"][sheet.name],
            )
            for index, values in steps:
                array[index] = values
    return _arrays(sheets)
