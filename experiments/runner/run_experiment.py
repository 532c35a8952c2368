"""Runs an experiment: its jobs where the executor puts them, each once, then what is concluded from all of them.

    toushi run layer_semantics --set encoder=FOLDER

Killed at any moment and started again, it goes on with the jobs that are missing (`experiments/runner/run_folder.py` says
what lies on disk). A folder is of one experiment, one configuration and the same weights; another is refused.
"""

import hashlib
import importlib
import importlib.util
import json
import re
import shlex
import sys
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from toushi.experiments.runner.environment import code_hash, digest, hardware, now, versions, weights
from toushi.experiments.runner.executor import Call, Executor, LocalPool, Outcome
from toushi.experiments.runner.run_folder import (
    CONCLUDE_ERROR,
    FILE_NAME,
    FORMAT,
    JOBS,
    MANIFEST,
    TABLES,
    VERSION,
    alone_in,
    prepare_output_dir,
    read_manifest,
    read_table,
    table_text,
    write_run_json,
)
from toushi.experiments.runner.settings import as_words, configured, plain
from toushi.experiments.runner.study import Finding, Job
from toushi.probe.base.atomic_io import write_atomic
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.base.errors import ToushiError

NEEDED = ("STUDY", "Config", "weights", "jobs", "conclude", "figures")
MAY_DIFFER = Bilingual(
    en="On one machine, with the same versions and threads, the tables are the same to the last byte. With another "
    "processor, other versions or threads, sums are taken in another order, so numbers may differ in their last "
    "digits. Times always differ.",
    zh="在同一台机器上，用同样的版本与线程数，表格逐字节相同。换了处理器、软件版本或线程数，求和的次序会不同，数字可能在末几位上有别；"
    "时间总是不同。",
)


class Failed(ToushiError):
    """Some jobs of a run failed; the others are done."""


@dataclass(frozen=True)
class Done:
    folder: Path
    manifest: dict[str, Any]
    new: int  # jobs that were computed, the others having been there
    failed: dict[str, str]


STUDIES = "toushi.experiments.studies"  # the package whose modules `toushi run` knows by name

# --- experiments ----------------------------------------------------------------------------------------


def names() -> list[str]:
    """The experiments that can be run by name."""
    found = []
    for home in importlib.import_module(STUDIES).__path__:
        for file in Path(home).glob("*.py"):
            if re.search(r"^STUDY\b.*=", file.read_text(encoding="utf-8"), re.MULTILINE):
                found.append(file.stem)
    return sorted(found)


def experiment(name: str) -> ModuleType:
    """The module of an experiment: by its name, or any module by its dotted one."""
    if "." not in name:
        known = names()
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ToushiError(f"there is no experiment {name!r}; {hint}there are: {', '.join(known) or 'none'}")
        name = f"{STUDIES}.{name}"
    if not all(part.isidentifier() for part in name.split(".")):
        raise ToushiError(f"{name!r} is no name of a module: expected one with dots, my.experiment, not a path")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            raise ToushiError(f"there is no module {name!r} on Python's path") from None
        raise
    if lacking := [part for part in NEEDED if not hasattr(module, part)]:
        raise ToushiError(f"{name} is no experiment: it has no {', '.join(lacking)} (see experiments/runner/study.py)")
    return module


def short_name(module: ModuleType) -> str:
    """What `toushi run` calls it."""
    return module.__name__.removeprefix(f"{STUDIES}.")


def variants(module: ModuleType) -> dict[str, Path]:
    """The YAML files beside the module, by their stem."""
    file = Path(str(module.__file__))
    found = [file.with_suffix(".yaml"), *sorted(file.with_suffix("").glob("*.yaml"))]
    return {one.stem: one for one in found if one.is_file()}


def config_of(module: ModuleType, source: str | Path | None = None, words: tuple[str, ...] = ()) -> Any:
    """The configuration: defaults, then the file (or published variant), then the words key=value."""
    if not isinstance(module.Config, type) or not is_dataclass(module.Config):
        raise ToushiError(f"{module.__name__}.Config must be a frozen dataclass")
    return configured(module.Config, None if source is None else config_file(module, source), words)


def config_file(module: ModuleType, source: str | Path) -> Path:
    if Path(source).is_file():
        return Path(source)
    known = variants(module)
    if str(source) in known:
        return known[str(source)]
    kept = f"published ones are: {', '.join(known)}" if known else "this experiment has no published ones"
    raise ToushiError(f"there is no configuration {str(source)!r}; {kept}, or give a FILE.yaml")


# --- a run ----------------------------------------------------------------------------------------------


def run(
    module: ModuleType,
    config: Any,
    out: Path,
    *,
    processes: int = 1,
    threads: int = 1,
    overwrite: bool = False,
    executor: Executor | None = None,
    quiet: bool = False,
) -> Done:
    """Does what is missing of the run in `out`, and writes tables and manifest when nothing is.

    Jobs that fail are in `failed` with their reason; nothing is concluded then, and the next run tries them again.
    """
    jobs = checked(module.jobs(config))
    manifest = described(module, config, threads) | {"jobs_in_all": len(jobs)}
    about = {name: manifest[name] for name in ("git", "code_sha256")}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToushiError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from None
    with alone_in(out):
        prepare_output_dir(out, manifest, overwrite)
        todo = [job for job in jobs if not is_done(out, job)]
        manifest |= begun_with(out, manifest, len(todo), len(jobs))
        write_run_json(out / MANIFEST, manifest)
        pool = executor or LocalPool(min(processes, max(1, len(todo))), threads)
        failed: dict[str, str] = {}
        try:
            with progress(len(jobs), len(jobs) - len(todo), quiet) as tick:
                by_name = {job.name: job for job in todo}
                for job in todo:
                    pool.submit(Call(job.name, job.function, job.arguments))
                for outcome in pool.outcomes():
                    why = kept(out, by_name[outcome.name], outcome, about)
                    if why is not None:
                        failed[outcome.name] = why
                    tick(outcome.name)
            finding = None if failed else concluded(pool, module, config, out, jobs)
        finally:
            pool.close()
            manifest |= {"jobs": records(out, jobs), "failed": failed}
            write_run_json(out / MANIFEST, manifest)
        if finding is not None:
            manifest |= write_finding(out, finding)
            manifest["concluded"] = {"finished": now(), **about}
            write_run_json(out / MANIFEST, manifest)
    return Done(out, manifest, len(todo) - len(failed), failed)


def checked(jobs: list[Job]) -> list[Job]:
    """The jobs, if each can be told from the others, and computed elsewhere."""
    seen: set[str] = set()
    for job in jobs:
        if not FILE_NAME.fullmatch(job.name):
            raise ToushiError(f"the job {job.name!r} needs a name that a file can have: letters, digits, . , + = @ - _")
        if job.name.casefold() in seen:
            raise ToushiError(f"two jobs are called {job.name!r}")
        seen.add(job.name.casefold())
        where = f"{job.function.__module__}.{job.function.__qualname__}"
        if "<" in where or "." in job.function.__qualname__:
            raise ToushiError(f"the function of job {job.name!r} must stand at the top of its module; {where} does not")
        call_hash(job)
    if not jobs:
        raise ToushiError("this configuration makes no job")
    return jobs


def call_hash(job: Job) -> str:
    try:
        return digest([job.function.__module__, job.function.__qualname__, dict(job.arguments)])
    except (TypeError, ValueError) as error:
        raise ToushiError(f"the arguments of job {job.name!r} must be JSON values: {error}") from None


def is_done(out: Path, job: Job) -> bool:
    """Its rows are there, and they are of this very call."""
    record = _record(out, job.name)
    return (out / JOBS / f"{job.name}.csv").is_file() and record.get("call_sha256") == call_hash(job)


def kept(out: Path, job: Job, outcome: Outcome, about: dict) -> str | None:
    """Writes what a job found, its rows last, since they are the sign that it is done. Gives back why it failed."""
    home = out / JOBS
    error, trace = outcome.error, outcome.trace
    if error is None:
        try:
            rows = table_text(outcome.value)
        except ToushiError as misfit:
            error = str(misfit)
    for name, text in ((f"{job.name}.log", outcome.said), (f"{job.name}.error.txt", error and f"{error}\n\n{trace}")):
        if text:
            write_atomic(home / name, text)
        else:
            (home / name).unlink(missing_ok=True)
    if error is not None:
        return error
    seconds = round(outcome.seconds, 3)
    (home / f"{job.name}.csv").unlink(missing_ok=True)  # of another call: it must never stand beside this record
    write_run_json(
        home / f"{job.name}.json", {"call_sha256": call_hash(job), "seconds": seconds, "finished": now(), **about}
    )
    write_atomic(home / f"{job.name}.csv", rows)
    return None


def concluded(pool: Executor, module: ModuleType, config: Any, out: Path, jobs: list[Job]) -> Finding:
    """What the experiment makes of the rows, read from disk even if they were made a moment ago: one way, one result."""
    rows = [read_table(out / JOBS / f"{job.name}.csv") for job in jobs]
    rows = [table for table in rows if len(table)]
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
    pool.submit(Call("conclude", module.conclude, {"config": config, "rows": table}))
    outcome = next(iter(pool.outcomes()))
    if outcome.error is not None:
        write_atomic(out / CONCLUDE_ERROR, f"{outcome.error}\n\n{outcome.trace}")
        raise ToushiError(
            f"all jobs are done, but nothing could be concluded: {outcome.error} (see {out / CONCLUDE_ERROR})"
        )
    (out / CONCLUDE_ERROR).unlink(missing_ok=True)
    return outcome.value


def write_finding(out: Path, finding: Finding) -> dict[str, Any]:
    """Writes the tables; gives back what the manifest says of them."""
    tables = {}
    (out / TABLES).mkdir(exist_ok=True)
    for name, table in finding.tables.items():
        if not FILE_NAME.fullmatch(name):
            raise ToushiError(f"the table {name!r} needs a name that a file can have")
        text = table_text(table)
        write_atomic(out / TABLES / f"{name}.csv", text)
        tables[name] = {"rows": len(table), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    for old in (out / TABLES).glob("*.csv"):
        if old.stem not in tables:
            old.unlink()
    return {
        "complete": True,
        "verdict": finding.verdict,
        "sentence": finding.sentence.as_json(),
        "tables": tables,
    }


# --- the folder -----------------------------------------------------------------------------------------


def described(module: ModuleType, config: Any, threads: int) -> dict[str, Any]:
    """The manifest of a run that has not begun."""
    from toushi.probe.recording.provenance import git_commit

    values, study = plain(config), module.STUDY
    return {
        "format": FORMAT,
        "version": VERSION,
        "experiment": short_name(module),
        "study": {part: getattr(study, part).as_json() for part in ("title", "question", "method")},
        "complete": False,
        "verdict": None,
        "sentence": None,
        "config": values,
        "config_sha256": digest([short_name(module), values]),
        "command": shlex.join(["toushi", "run", short_name(module), *_options(config, threads)]),
        "seeds": {one.name: values[one.name] for one in fields(config) if "seed" in one.name},
        "weights": weights(module.weights(config)),
        "versions": versions(),
        "git": git_commit(),
        "code_sha256": code_hash(module),
        "hardware": hardware(),
        "threads": threads,
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],  # not where the command lies on this machine
        "concluded": None,
        "may_differ": MAY_DIFFER.as_json(),
        "jobs": {},
        "failed": {},
        "tables": {},
    }


def begun_with(out: Path, manifest: dict, left: int, count: int) -> dict:
    """What the jobs that are there were computed with, which is what the manifest has to say.

    The rest of a run that was begun with other packages, threads or processor would not fit to its beginning.
    """
    if left == count:
        return {}
    there = read_manifest(out)
    pairs = [("threads", there["threads"], manifest["threads"])]
    pairs += [("processor", there["hardware"]["processor"], manifest["hardware"]["processor"])]
    pairs += [(name, there["versions"].get(name), version) for name, version in manifest["versions"].items()]
    for name, theirs, ours in pairs:
        if left and theirs != ours:
            hint = f"say --threads {theirs}" if name == "threads" else "choose another --out, or --overwrite it"
            raise ToushiError(
                f"{out} was begun with {name} {theirs}, and here it is {ours}: what is left may round differently; {hint}"
            )
    if there["code_sha256"] != manifest["code_sha256"]:
        warnings.warn(
            f"the code of {manifest['experiment']} was changed since {count - left} of its {count} jobs were done, and these are "
            "kept; --overwrite does them again",
            stacklevel=2,
        )
    return {name: there[name] for name in ("versions", "hardware", "threads", "git", "code_sha256", "argv")}


def records(out: Path, jobs: list[Job]) -> dict[str, dict]:
    return {job.name: _record(out, job.name) for job in jobs if is_done(out, job)}


def _record(out: Path, name: str) -> dict:
    try:
        return json.loads((out / JOBS / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _options(config: Any, threads: int) -> list[str]:
    words = as_words(config)
    return [*(["--set", *words] if words else []), *(["--threads", str(threads)] if threads != 1 else [])]


# --- progress -------------------------------------------------------------------------------------------


@contextmanager
def progress(count: int, done: int, quiet: bool):
    """A bar over the jobs whose clock goes on while they are at work; yields what moves it."""
    from tqdm import tqdm

    with tqdm(total=count, initial=done, desc="jobs", unit="job", leave=False, disable=quiet) as bar:
        ended = threading.Event()

        def clock() -> None:
            while not ended.wait(1):
                bar.refresh()

        def tick(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        threading.Thread(target=clock, daemon=True).start()
        try:
            yield tick
        finally:
            ended.set()
