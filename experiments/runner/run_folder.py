"""A run on disk: what was asked, what each job found, and what came of it.

    runs/NAME/
      manifest.json     experiment, its question and method; config and its hash; weights and theirs; versions, git,
                        hardware, threads, argv; seconds of each job; what failed; complete or not; verdict, sentence
      jobs/JOB.csv      rows of a finished job; JOB.json when, where and how long; JOB.log what it printed;
                        JOB.error.txt why it failed
      tables/NAME.csv   what the experiment concluded from the rows of all jobs

A file is written to a temporary name, fsynced and renamed, so it is whole or it is not there. Numbers come out of a
table as they went in, to the last bit.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from toushi.probe.base.atomic_io import write_atomic
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.path_error import checked_path

FORMAT, VERSION = "toushi-run", 1
MANIFEST, JOBS, TABLES = "manifest.json", "jobs", "tables"
CONCLUDE_ERROR = "conclude.error.txt"
FILE_NAME = re.compile(r"\w[\w.,+=@-]{0,99}")


class NoRun(ToushiError):
    """What is in the folder is no run that can be read."""


# --- files ----------------------------------------------------------------------------------------------


def write_run_json(path: Path, value: Any) -> None:
    """Writes indented JSON, for people read a run's files. Raises ValueError for NaN and infinity."""
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def table_text(table: pd.DataFrame) -> str:
    """The table as CSV. Raises ToushiError if a column would not be the same when read again."""
    if not isinstance(table, pd.DataFrame):
        raise ToushiError(f"a table must be a pandas DataFrame, but {type(table).__name__} came")
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index(drop=all(name is None for name in table.index.names))
    if not table.columns.is_unique or not all(isinstance(name, str) for name in table.columns):
        raise ToushiError(f"the columns of a table must be different texts, but they are {list(table.columns)}")
    table = table.copy()
    for name in table.columns:  # float16 and float32 in the digits that float64 needs: exact, and read as such
        if table[name].dtype.kind == "f":
            table[name] = table[name].astype("float64")
    text = table.to_csv(index=False, lineterminator="\n")
    again = table_of(text)
    for name in table.columns:
        ours, theirs = pd.Series(table[name]), again.get(name)
        missing = ours.isna()
        if theirs is None or not (theirs.isna() == missing).all() or list(ours[~missing]) != list(theirs[~missing]):
            raise ToushiError(f"the column {name!r} of a table does not come back from CSV as it is: {_odd(ours)}")
    return text


def table_of(text: str) -> pd.DataFrame:
    """The table that `table_text` wrote."""
    try:
        return pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""])
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def read_table(path: Path) -> pd.DataFrame:
    try:
        return table_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoRun(f"{path} cannot be read: {error}") from None


def _odd(column: pd.Series) -> str:
    kinds = sorted({type(value).__name__ for value in column})
    if "str" in kinds and (column == "").any():
        return "it has empty text, which is read as nothing; write None"
    return f"it holds {', '.join(kinds)}; write numbers, true and false, or text that is no number"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Refuses a second run in the same folder at the same time. The lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # not on this system
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ToushiError(f"another toushi run is at work in {folder}; wait for it, or choose another --out") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)


# --- a run that is there --------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises NoRun, in one line, for anything that is not the manifest of a run."""
    path = checked_path(folder) / MANIFEST
    if not folder.is_dir():
        raise NoRun(f"there is no folder {folder}")
    if not path.is_file():
        raise NoRun(f"{folder} is no run: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoRun(f"{path} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise NoRun(f"{folder} is no run of an experiment: its {MANIFEST} does not say {FORMAT}")
    version = manifest.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise NoRun(f"{path} has version {version!r}; this Toushi reads up to {VERSION}")
    return manifest


def read_tables(folder: Path, manifest: dict[str, Any]) -> dict[str, pd.DataFrame]:
    names = list(manifest.get("tables") or {})
    if odd := [name for name in names if not FILE_NAME.fullmatch(name)]:
        raise NoRun(
            f"{folder / MANIFEST} has no name of a table in {odd[0]!r}: expected letters, digits, . , + = @ - _"
        )
    return {name: read_table(folder / TABLES / f"{name}.csv") for name in names}


def prepare_output_dir(out: Path, manifest: dict, overwrite: bool) -> None:
    """The folder, empty or with the same run in it; another run is refused, saying what differs."""
    try:
        there = read_manifest(out) if _used(out) else None
    except NoRun as error:
        raise ToushiError(f"{error}, and it is not empty; choose another --out") from None
    if there is not None and overwrite:
        for name in (JOBS, TABLES):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (MANIFEST, CONCLUDE_ERROR):
            (out / name).unlink(missing_ok=True)
    elif there is not None and (what := differing(there, manifest)):
        raise ToushiError(f"{out} holds another run: {what}. Choose another --out, or --overwrite it")
    try:
        (out / JOBS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToushiError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from None


def _used(out: Path) -> bool:
    """Something is in it beside what a run leaves that was killed before its first word."""
    begun = (MANIFEST + ".tmp", JOBS)
    return any(one.name not in begun or (one.is_dir() and any(one.iterdir())) for one in out.iterdir())


def differing(there: dict, here: dict) -> str:
    """What makes it another run, with both hashes; empty if it is the same one."""
    parts = []
    if there["experiment"] != here["experiment"]:
        return f"experiment {there['experiment']} there, {here['experiment']} here"
    if there["config_sha256"] != here["config_sha256"]:
        ours, theirs = here["config"], there["config"]
        changed = [
            f"{key}: {_shown(theirs, key)} there, {_shown(ours, key)} here"
            for key in {**theirs, **ours}
            if _shown(theirs, key) != _shown(ours, key)
        ]
        hashes = f"config {there['config_sha256'][:12]} there, {here['config_sha256'][:12]} here"
        parts.append(f"{hashes} ({'; '.join(changed)})")
    for name in {**there["weights"], **here["weights"]}:
        theirs, ours = (side["weights"].get(name, {}).get("sha256", "none") for side in (there, here))
        if theirs != ours:
            parts.append(f"weights {name} {theirs[:12]} there, {ours[:12]} here")
    return "; ".join(parts)


def _shown(values: dict, key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "nothing"
