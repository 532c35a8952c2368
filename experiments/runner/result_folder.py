"""The result of a study on disk: what was asked, the rows of each job, and the conclusion.

    runs/NAME/
      manifest.json     `ResultManifest`: study, configuration, hashes, versions, hardware, jobs, verdict, sentence
      jobs/JOB.csv      rows of a finished job; JOB.json when, with which code and how long; JOB.log what it printed;
                        JOB.error.txt why it failed
      tables/NAME.csv   what the study concluded from the rows of all jobs

A file is written to a temporary name, fsynced and renamed, so it is whole or absent. Numbers survive the way through a
table to the last bit.
"""

import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, JsonValue, ValidationError

from toushi.experiments.runner.result_manifest import FORMAT, VERSION, ResultManifest
from toushi.probe.base.atomic_io import write_atomic
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.path_error import checked_path

MANIFEST, JOBS, TABLES, LOCK = "manifest.json", "jobs", "tables", ".lock"
CONCLUDE_ERROR = "conclude.error.txt"
FILE_NAME = re.compile(r"\w[\w.,+=@-]{0,99}")


class NoResult(ToushiError):
    """The folder holds no result of a study that can be read."""


# --- files ----------------------------------------------------------------------------------------------


def write_model(path: Path, model: BaseModel) -> None:
    """Writes indented JSON, because people read a result's files."""
    write_atomic(path, model.model_dump_json(indent=1) + "\n")


def format_table(table: object) -> str:
    """The table as CSV. Raises ToushiError if it is no table, or if a column would not be the same when read again."""
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
    again = parse_table(text)
    for name in table.columns:
        ours, theirs = pd.Series(table[name]), again.get(name)
        missing = ours.isna()
        if theirs is None or not (theirs.isna() == missing).all() or list(ours[~missing]) != list(theirs[~missing]):
            raise ToushiError(f"the column {name!r} of a table does not come back from CSV as it is: {_advice(ours)}")
    return text


def parse_table(text: str) -> pd.DataFrame:
    """The table that `format_table` wrote."""
    try:
        return pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""])
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def read_table(path: Path) -> pd.DataFrame:
    try:
        return parse_table(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoResult(f"{path} cannot be read: {error}") from None


def _advice(column: pd.Series) -> str:
    types = sorted({type(value).__name__ for value in column})
    if "str" in types and (column == "").any():
        return "it has empty text, which is read as nothing; write None"
    return f"it holds {', '.join(types)}; write numbers, true and false, or text that is no number"


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Refuses a second `toushi run` in the same folder. The lock ends with the process, however it ends."""
    from filelock import FileLock, Timeout  # here: `toushi report` reads results without it

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ToushiError(
            f"another toushi run is working in {folder}; wait until it has finished, or choose another --out"
        ) from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


# --- an existing result ---------------------------------------------------------------------------------


def read_manifest(folder: Path) -> ResultManifest:
    """Raises NoResult, in one line, for anything that is not the manifest of a result."""
    path = checked_path(folder) / MANIFEST
    if not folder.is_dir():
        raise NoResult(f"there is no folder {folder}")
    if not path.is_file():
        raise NoResult(f"{folder} is no result of toushi run: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoResult(f"{path} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise NoResult(f"{folder} is no result of toushi run: the format in its {MANIFEST} is not {FORMAT}")
    version = manifest.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise NoResult(f"{path} has version {version!r}; this Toushi reads versions up to {VERSION}")
    try:
        return ResultManifest.model_validate(manifest)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(map(str, problem["loc"]))
        raise NoResult(f"{path} is not whole: {field}: {problem['msg']}") from None


def read_tables(folder: Path, manifest: ResultManifest) -> dict[str, pd.DataFrame]:
    for name in manifest.tables:
        if not FILE_NAME.fullmatch(name):
            raise NoResult(
                f"{folder / MANIFEST}: {name!r} is no name of a table: expected letters, digits, . , + = @ - _"
            )
    return {name: read_table(folder / TABLES / f"{name}.csv") for name in manifest.tables}


def prepare_output_dir(out: Path, manifest: ResultManifest, overwrite: bool) -> None:
    """Makes the folder ready: empty, or with the same result in it. Another result is refused with its differences."""
    try:
        existing = read_manifest(out) if _is_used(out) else None
    except NoResult as error:
        raise ToushiError(f"{error}, and it is not empty; choose another --out") from None
    if existing is not None and overwrite:
        for name in (JOBS, TABLES):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (MANIFEST, CONCLUDE_ERROR):
            (out / name).unlink(missing_ok=True)
    elif existing is not None and (differences := list_differences(existing, manifest)):
        raise ToushiError(f"{out} holds another result: {differences}. Choose another --out, or --overwrite it")
    (out / JOBS).mkdir(parents=True, exist_ok=True)


def _is_used(out: Path) -> bool:
    """Whether it holds more than what `toushi run` leaves when it is killed before it wrote the manifest."""
    leftovers = (MANIFEST + ".tmp", JOBS, LOCK)
    return any(path.name not in leftovers or (path.is_dir() and any(path.iterdir())) for path in out.iterdir())


def list_differences(existing: ResultManifest, new: ResultManifest) -> str:
    """What makes the new result another one, with both hashes; empty if it is the same."""
    if existing.experiment != new.experiment:
        return f"study {existing.experiment} there, {new.experiment} here"
    differences = []
    if existing.config_sha256 != new.config_sha256:
        changed = [
            f"{key}: {_json_of(existing.config, key)} there, {_json_of(new.config, key)} here"
            for key in {**existing.config, **new.config}
            if _json_of(existing.config, key) != _json_of(new.config, key)
        ]
        hashes = f"config {existing.config_sha256[:12]} there, {new.config_sha256[:12]} here"
        differences.append(f"{hashes} ({'; '.join(changed)})")
    for name in {**existing.weights, **new.weights}:
        theirs, ours = (side.weights[name].sha256[:12] if name in side.weights else "none" for side in (existing, new))
        if theirs != ours:
            differences.append(f"weights {name} {theirs} there, {ours} here")
    return "; ".join(differences)


def _json_of(values: dict[str, JsonValue], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "nothing"
