"""Runs a study: its jobs where the executor puts them, each once, then the conclusion from the rows of all jobs.

    toushi run layer_semantics --set encoder=FOLDER

Killed at any moment and started again, it continues with the missing jobs. `experiments/runner/result_folder.py` lists
the files. A folder belongs to one study, one configuration and the same weights; another is refused.
"""

import hashlib
import importlib
import re
import shlex
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pandas as pd

from toushi.experiments.runner.environment import (
    hash_code,
    hash_json,
    hash_weights,
    package_versions,
    read_hardware,
    timestamp,
)
from toushi.experiments.runner.executor import Call, Executor, LocalPool, Outcome
from toushi.experiments.runner.result_folder import (
    CONCLUDE_ERROR,
    FILE_NAME,
    JOBS,
    MANIFEST,
    TABLES,
    format_table,
    lock_folder,
    prepare_output_dir,
    read_manifest,
    read_table,
    write_model,
)
from toushi.experiments.runner.result_manifest import Conclusion, JobRecord, ResultManifest, TableHash
from toushi.experiments.runner.settings import config_values, config_words, load_config
from toushi.experiments.runner.study import Finding, Job
from toushi.probe.base.atomic_io import write_atomic
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.private_text import public_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

STUDIES = "toushi.experiments.studies"  # the package whose modules `toushi run` knows by name
NEEDED = ("STUDY", "Config", "weights", "jobs", "conclude", "figures")
MAY_DIFFER = Bilingual(
    en="On one machine, with the same versions and threads, the tables are the same to the last byte. With another "
    "processor, other versions or threads, sums are taken in another order, so numbers may differ in their last "
    "digits. Times always differ.",
    zh="在同一台机器上，用同样的版本与线程数，表格逐字节相同。换了处理器、软件版本或线程数，求和的次序会不同，数字可能在末几位上有别；"
    "时间总是不同。",
)


@dataclass(frozen=True)
class StudyResult:
    folder: Path
    manifest: ResultManifest
    new_jobs: int  # computed by this call; the others were there
    failed: dict[str, str]  # job -> why


# --- studies --------------------------------------------------------------------------------------------


def study_names() -> list[str]:
    """The studies that can be run by name."""
    files = (file for folder in importlib.import_module(STUDIES).__path__ for file in Path(folder).glob("*.py"))
    return sorted(f.stem for f in files if re.search(r"^STUDY\b.*=", f.read_text(encoding="utf-8"), re.MULTILINE))


def load_study(name: str) -> ModuleType:
    """The module of a study: by its name, or any module by its dotted name."""
    if "." not in name:
        names = study_names()
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ToushiError(f"there is no study {name!r}; {hint}there are: {', '.join(names) or 'none'}")
        name = f"{STUDIES}.{name}"
    if not all(part.isidentifier() for part in name.split(".")):
        raise ToushiError(f"{name!r} is not the name of a module: expected a dotted name such as my.study, not a path")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            raise ToushiError(
                f"Python cannot import {name!r}; run `PYTHONPATH=. toushi run {name}` in the folder that holds "
                f"{name.split('.')[0]}/"
            ) from None
        raise
    if lacking := [attribute for attribute in NEEDED if not hasattr(module, attribute)]:
        raise ToushiError(
            f"{name} is not a study: it lacks {', '.join(lacking)} (experiments/runner/study.py describes them)"
        )
    return module


def short_name(module: ModuleType) -> str:
    """What `toushi run` calls it."""
    return module.__name__.removeprefix(f"{STUDIES}.")


def config_files(module: ModuleType) -> dict[str, Path]:
    """The YAML files beside the module, by their stem."""
    file = Path(str(module.__file__))
    files = [file.with_suffix(".yaml"), *sorted(file.with_suffix("").glob("*.yaml"))]
    return {file.stem: file for file in files if file.is_file()}


def study_config(
    module: ModuleType, source: str | Path | None = None, words: Sequence[str] = ()
) -> "DataclassInstance":
    """The configuration: defaults, then the file (or published configuration), then the words key=value."""
    if not isinstance(module.Config, type) or not is_dataclass(module.Config):
        raise ToushiError(f"{module.__name__}.Config must be a frozen dataclass")
    return load_config(module.Config, None if source is None else _config_file(module, source), words)


def _config_file(module: ModuleType, source: str | Path) -> Path:
    if Path(source).is_file():
        return Path(source)
    files = config_files(module)
    if str(source) in files:
        return files[str(source)]
    published = f"published ones are: {', '.join(files)}" if files else "this study has no published ones"
    raise ToushiError(f"there is no configuration {str(source)!r}; {published}, or give a FILE.yaml")


# --- a run ----------------------------------------------------------------------------------------------


def run_study(
    module: ModuleType,
    config: "DataclassInstance",
    out: Path,
    *,
    processes: int = 1,
    threads: int = 1,
    overwrite: bool = False,
    executor: Executor | None = None,
    quiet: bool = False,
) -> StudyResult:
    """The result in the folder `out`: computes what is missing there, then writes tables and manifest.

    Jobs that fail are in `failed` with their reason. Then nothing is concluded, and the next call tries them again.
    """
    jobs = check_jobs(module.jobs(config))
    manifest = new_manifest(module, config, threads, len(jobs))
    code = {"git": manifest.git, "code_sha256": manifest.code_sha256}
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out):
        prepare_output_dir(out, manifest, overwrite)
        missing = [job for job in jobs if read_record(out, job) is None]
        if len(missing) < len(jobs):
            manifest = continue_manifest(read_manifest(out), manifest, len(missing))
        write_model(out / MANIFEST, manifest)
        pool = executor or LocalPool(min(processes, max(1, len(missing))), threads)
        failed: dict[str, str] = {}
        try:
            with progress(len(jobs), len(jobs) - len(missing), quiet) as tick:
                by_name = {job.name: job for job in missing}
                for job in missing:
                    pool.submit(Call(job.name, job.function, job.arguments))
                for outcome in pool.outcomes():
                    why = write_outcome(out, by_name[outcome.name], outcome, code)
                    if why is not None:
                        failed[outcome.name] = why
                    tick(outcome.name)
            finding = None if failed else conclude(pool, module, config, out, jobs)
        finally:
            pool.close()
            records = {job.name: record for job in jobs if (record := read_record(out, job)) is not None}
            manifest = manifest.model_copy(update={"jobs": records, "failed": failed})
            write_model(out / MANIFEST, manifest)
        if finding is not None:
            conclusion = {
                "complete": True,
                "verdict": finding.verdict,
                "sentence": finding.sentence,
                "tables": write_tables(out, finding),
                "concluded": Conclusion(finished=timestamp(), **code),
            }
            manifest = manifest.model_copy(update=conclusion)
            write_model(out / MANIFEST, manifest)
    return StudyResult(out, manifest, len(missing) - len(failed), failed)


def check_jobs(jobs: list[Job]) -> list[Job]:
    """The jobs, if their names differ and another process can compute them."""
    names: set[str] = set()
    for job in jobs:
        if not FILE_NAME.fullmatch(job.name):
            raise ToushiError(f"the job {job.name!r} needs a name that a file can have: letters, digits, . , + = @ - _")
        if job.name.casefold() in names:
            raise ToushiError(f"two jobs are called {job.name!r}")
        names.add(job.name.casefold())
        where = f"{job.function.__module__}.{job.function.__qualname__}"
        if "<" in where or "." in job.function.__qualname__:
            raise ToushiError(f"the function of job {job.name!r} must stand at the top of its module; {where} does not")
        hash_call(job)
    if not jobs:
        raise ToushiError("this configuration makes no job")
    return jobs


def hash_call(job: Job) -> str:
    try:
        return hash_json([job.function.__module__, job.function.__qualname__, dict(job.arguments)])
    except (TypeError, ValueError) as error:
        raise ToushiError(f"the arguments of job {job.name!r} must be JSON values: {error}") from None


def read_record(out: Path, job: Job) -> JobRecord | None:
    """How the rows that are there were computed; None if there are none of this very call."""
    try:
        record = JobRecord.model_validate_json((out / JOBS / f"{job.name}.json").read_bytes())
    except (OSError, ValueError):
        return None
    has_rows = (out / JOBS / f"{job.name}.csv").is_file()
    return record if has_rows and record.call_sha256 == hash_call(job) else None


def write_outcome(out: Path, job: Job, outcome: Outcome, code: dict[str, str | None]) -> str | None:
    """None, or why the job failed. Writes what it gave, its rows last, since they are the sign that it is done."""
    folder, error, rows = out / JOBS, outcome.error, ""
    if error is None:
        try:
            rows = format_table(outcome.value)
        except ToushiError as mistake:
            error = str(mistake)
    report = error and f"{error}\n\n{outcome.traceback}"
    for name, text in ((f"{job.name}.log", outcome.output), (f"{job.name}.error.txt", report)):
        if text:
            write_atomic(folder / name, text)
        else:
            (folder / name).unlink(missing_ok=True)
    if error is not None:
        return error
    seconds = round(outcome.seconds, 3)
    record = {"call_sha256": hash_call(job), "seconds": seconds, "finished": timestamp(), **code}
    (folder / f"{job.name}.csv").unlink(missing_ok=True)  # of another call: it must never stand beside this record
    write_model(folder / f"{job.name}.json", JobRecord.model_validate(record))
    write_atomic(folder / f"{job.name}.csv", rows)
    return None


def conclude(
    pool: Executor, module: ModuleType, config: "DataclassInstance", out: Path, jobs: Sequence[Job]
) -> Finding:
    """What the study concludes from the rows. They are read from disk even if they are new: one way, one result."""
    tables = [read_table(out / JOBS / f"{job.name}.csv") for job in jobs]
    tables = [table for table in tables if len(table)]
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    pool.submit(Call("conclude", module.conclude, {"config": config, "rows": rows}))
    outcome = next(iter(pool.outcomes()))
    error = outcome.error
    if error is None and not isinstance(outcome.value, Finding):
        error = f"conclude must return a Finding, but {type(outcome.value).__name__} came"
    if error is not None or not isinstance(outcome.value, Finding):
        write_atomic(out / CONCLUDE_ERROR, f"{error}\n\n{outcome.traceback}")
        raise ToushiError(f"all jobs are done, but nothing could be concluded: {error} (see {out / CONCLUDE_ERROR})")
    (out / CONCLUDE_ERROR).unlink(missing_ok=True)
    return outcome.value


def write_tables(out: Path, finding: Finding) -> dict[str, TableHash]:
    """Rows and hash of each table that it writes. Tables of an older conclusion are removed."""
    hashes = {}
    (out / TABLES).mkdir(exist_ok=True)
    for name, table in finding.tables.items():
        if not FILE_NAME.fullmatch(name):
            raise ToushiError(f"the table {name!r} needs a name that a file can have")
        text = format_table(table)
        write_atomic(out / TABLES / f"{name}.csv", text)
        hashes[name] = TableHash(rows=len(table), sha256=hashlib.sha256(text.encode()).hexdigest())
    for file in (out / TABLES).glob("*.csv"):
        if file.stem not in hashes:
            file.unlink()
    return hashes


# --- the manifest ---------------------------------------------------------------------------------------


def new_manifest(module: ModuleType, config: "DataclassInstance", threads: int, jobs: int) -> ResultManifest:
    """The manifest before the first job."""
    from toushi.probe.recording.provenance import git_commit

    name, values, words = short_name(module), config_values(config), config_words(config)
    options = [*(["--set", *words] if words else []), *(["--threads", str(threads)] if threads != 1 else [])]
    return ResultManifest(
        experiment=name,
        study=module.STUDY,
        config=values,
        config_sha256=hash_json([name, values]),
        command=shlex.join(["toushi", "run", name, *options]),
        seeds={field.name: values[field.name] for field in fields(config) if "seed" in field.name},
        weights=hash_weights(module.weights(config)),
        versions=package_versions(),
        git=git_commit(),
        code_sha256=hash_code(module),
        hardware=read_hardware(),
        threads=threads,
        argv=[Path(sys.argv[0]).name, *map(public_text, sys.argv[1:])],  # not where the command lies on this machine
        may_differ=MAY_DIFFER,
        jobs_in_all=jobs,
    )


def continue_manifest(existing: ResultManifest, new: ResultManifest, missing: int) -> ResultManifest:
    """The new manifest with what the finished jobs were computed with.

    Raises ToushiError if the missing ones would be computed with other packages, threads or another processor.
    """
    pairs = [("threads", existing.threads, new.threads)]
    pairs += [("processor", existing.hardware.processor, new.hardware.processor)]
    pairs += [(name, existing.versions.get(name), version) for name, version in new.versions.items()]
    for name, theirs, ours in pairs:
        if missing and theirs != ours:
            hint = f"use --threads {theirs}" if name == "threads" else "choose another --out, or --overwrite it"
            raise ToushiError(
                f"the jobs in this folder were computed with {name} {theirs}, but here it is {ours}: the missing ones "
                f"may round differently; {hint}"
            )
    if existing.code_sha256 != new.code_sha256:
        done = new.jobs_in_all - missing
        warnings.warn(
            f"the code of {new.experiment} has changed since {done} of its {new.jobs_in_all} jobs were done. Their rows "
            "are kept; --overwrite computes them again",
            stacklevel=3,
        )
    kept = ("versions", "hardware", "threads", "git", "code_sha256", "argv")
    return new.model_copy(update={name: getattr(existing, name) for name in kept})


# --- progress -------------------------------------------------------------------------------------------


@contextmanager
def progress(count: int, done: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A bar over the jobs, whose clock runs while they work. Yields what moves it: call it with a job's name."""
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
