"""Exports a trace for other programs: float32 probabilities of image-to-text attention on native grids.

    npz       one array for each branch, word and grid, `cond/猫/16x16` [step, layer, head, y, x]; with tokens=True one
              for each branch and grid, `cond/tokens/16x16` [step, layer, head, token, y, x]. Beside them `about`, JSON:
              for each array its axes and their coordinates. The layers of an array are the sites of that grid. NaN
              stands for the heads that a site has fewer than another, and for a site that a step lacks
    zarr      a folder with a group for each site, which xarray opens as a tree: `attention` [step, branch, head, word,
              y, x] with its coordinates; with tokens=True all that `xarray.open_datatree(trace, engine="toushi")` has
    parquet   a row for each value: step, branch, layer, grid, head, word, unknown, y, x, value; with tokens=True
              `token` (the column) and `text` in place of `word`. `unknown`: the vocabulary lacks it; words that share
              one <unk> have one map. `about` is in the schema's metadata, under `toushi`

There is no `head` axis (in parquet: null) where only the mean over heads was kept. A trace that keeps the sum has one
step, the last one. Its values are the mean over as many steps as `summed` has for each branch and site: guidance may have
ended before the run, and a cache may have skipped a site. In joint attention, the share that goes to no text is 1 minus the sum over all tokens.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from toushi.probe.base.atomic_io import atomic_path
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import require
from toushi.probe.base.path_error import checked_path
from toushi.probe.trace.encoder_trace import EncoderTrace
from toushi.probe.trace.export.encoder_export import prepare_encoder_export
from toushi.probe.trace.export.export_plan import Tick, describe, plan_branches
from toushi.probe.trace.export.npz_export import write_npz
from toushi.probe.trace.export.parquet_export import write_parquet
from toushi.probe.trace.export.zarr_export import atomic_folder, is_zarr_export, write_zarr
from toushi.probe.trace.output_dir import reason
from toushi.probe.trace.picture_datasets import choose_words, picture_attributes, picture_datasets
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.selection import WordSpec
from toushi.probe.trace.trace_errors import WriteFailed

SUFFIXES = {"npz": ".npz", "parquet": ".parquet", "zarr": ".zarr"}
PACKAGES = {"parquet": "pyarrow", "zarr": "zarr"}


@dataclass(frozen=True)
class Exported:
    path: Path
    what: str  # number of arrays, groups or rows, in words
    about: dict[str, object]
    left_out: dict[str, str]  # word or branch -> why there is no attention to it

    @property
    def bytes(self) -> int:
        """On disk."""
        files = [self.path] if self.path.is_file() else self.path.rglob("*")
        return sum(file.stat().st_size for file in files)


def export(
    trace: Trace | EncoderTrace,
    to: str,
    out: str | Path | None = None,
    words: Sequence[WordSpec] | None = None,
    *,
    tokens: bool = False,
    overwrite: bool = False,
    tick: Tick = lambda done, of: None,
) -> Exported:
    """Writes the file (zarr: the folder), by default beside the trace's. One that is there is replaced if `overwrite`.

    words     of the prompt, as `heat_map` takes them; by default every word of every branch that the trace holds
    tokens    every token in place of words: specials and punctuation too, so that nothing is left out
    tick      called with (done, of) as steps are written

    Memory holds one step of one array, or a few small ones, never all of them. Raises ToushiError: a word that is not
    there, a package that is not installed, a file that is in the way, a disk that is full.
    """
    if to not in SUFFIXES:
        raise ToushiError(f"A trace is exported to {', '.join(SUFFIXES)}; {to!r} came.")
    if tokens and words is not None:
        raise ToushiError("Expected either words or all tokens, but both came; leave one of them out.")
    if (package := PACKAGES.get(to)) is not None:
        require(package)
    path = default_path(trace.folder, to) if out is None else Path(out)
    _check_place(path, to, overwrite)
    if isinstance(trace, EncoderTrace):
        write, about, left_out = prepare_encoder_export(trace, to, words, tokens)
    else:
        write, about, left_out = prepare_picture_export(trace, to, words, tokens)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(path) if to == "zarr" else atomic_path(path, shared=True) as temporary:
            what = write(temporary, tick)
            _check_place(path, to, overwrite)  # it took a while
    except OSError as error:
        raise WriteFailed(
            f"Cannot write {path}: {reason(error)}. Free some space, ask for fewer words, or choose another --out."
        ) from None
    return Exported(path, what, about, left_out)


def default_path(folder: Path, to: str) -> Path:
    """A path beside the folder. Inside the folder, a file would block a new recording there."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return folder.with_name((folder.name or "trace") + SUFFIXES[to])


def _check_place(path: Path, to: str, overwrite: bool) -> None:
    if checked_path(path).is_dir() and not (to == "zarr" and is_zarr_export(path)):
        raise WriteFailed(f"{path} is a folder that toushi export did not write; choose another --out.")
    if os.path.lexists(path) and not (overwrite and (path.is_file() or (path.is_dir() and not path.is_symlink()))):
        raise WriteFailed(f"{path} is there already. Choose another --out, or replace it (--overwrite).")


def prepare_picture_export(trace: Trace, to: str, words: Sequence[WordSpec] | None, tokens: bool):
    """A function that writes the file, its description, and what is left out, with the reason."""
    branches, left_out = plan_branches(trace, words, tokens)
    about = {**describe(trace, branches), "left_out": left_out}
    if to == "zarr":
        chosen = None if tokens else choose_words(trace, words)[0]
        return partial(write_zarr, picture_datasets(trace, chosen), picture_attributes(trace)), about, left_out
    write = {"npz": write_npz, "parquet": write_parquet}[to]
    return partial(write, branches, about), about, left_out
