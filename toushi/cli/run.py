"""`toushi run`: runs a study, from its question to tables and a verdict."""

import os
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from toushi.cli.output_file import check_can_create_in
from toushi.cli.terminal import table
from toushi.probe.base.errors import ToushiError

if TYPE_CHECKING:
    from toushi.experiments.runner.run_study import StudyResult


@dataclass(frozen=True)
class Run:
    ABOUT = """Runs a study. The result has tables, a verdict, and a manifest of what they were computed with.

  toushi run --list
  toushi run layer_semantics
  toushi run layer_semantics --set encoder=FOLDER_OR_HUB_ID seed=1 --out runs/mine
  toushi run layer_semantics --config e5          (a published configuration, or a FILE.yaml)

If it was killed, the same command continues with the missing jobs, and tries failed ones again.
`toushi report runs/layer_semantics -o report` makes pages of the result."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    """Name of the study; with dots, a module of your own that is made like those in experiments/studies."""
    list: bool = False
    """List all studies with their questions, and the keys for --set."""
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE.yaml|NAME")] = None
    """Values that replace the defaults."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Single values, which replace those of --config. --list names the keys."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of the result; if not given runs/NAME, with --config runs/NAME-CONFIG."""
    jobs: int | None = None
    """Number of jobs at a time, each in a process of its own; if not given one for each core, at most 8.
    It does not change the result."""
    threads: int = 1
    """Threads of each job. More are useful for a few jobs of a large model; sums may round differently."""
    overwrite: bool = False
    """Replace an existing result in the folder."""

    def run(self) -> int:
        if self.list:
            print(list_studies())
            return 0
        if self.name is None:
            raise ToushiError("give the name of a study; toushi run --list lists all")
        for option, number in (("--jobs", self.jobs), ("--threads", self.threads)):
            if number is not None and number < 1:
                raise ToushiError(f"{option} must be 1 or more, but {number} came")
        from toushi.experiments.runner.run_study import load_study, run_study, short_name, study_config

        module = load_study(self.name)
        config = study_config(module, self.config, sum(self.set, ()))
        suffix = f"-{Path(self.config).stem}" if self.config else ""
        out = self.out or Path("runs") / f"{short_name(module)}{suffix}"
        check_can_create_in(out, "--out")
        processes = self.jobs or min(os.cpu_count() or 1, 8)
        try:
            result = run_study(module, config, out, processes=processes, threads=self.threads, overwrite=self.overwrite)
        except KeyboardInterrupt:
            print("toushi: interrupted; finished jobs are kept, and the same command continues", file=sys.stderr)
            return 130
        print(summarize_result(result))
        if result.failed:
            print(list_failures(result), file=sys.stderr)
            return 1
        return 0


def list_studies() -> str:
    from toushi.experiments.runner.run_study import load_study, study_names

    studies = {name: load_study(name) for name in study_names()}
    return "\n\n".join(
        f"{name}    {study.STUDY.title.zh}  {study.STUDY.title.en}\n  {study.STUDY.question.zh}\n"
        f"  {study.STUDY.question.en}\n  --set: {', '.join(field.name for field in fields(study.Config))}"
        for name, study in studies.items()
    )


def summarize_result(result: "StudyResult") -> str:
    """Verdict, sentence and files of a result, as text."""
    manifest, folder = result.manifest, result.folder
    failures = f", {len(result.failed)} failed" if result.failed else ""
    lines = [f"jobs      {len(manifest.jobs)} done, {result.new_jobs} of them now{failures}"]
    if manifest.complete and manifest.sentence is not None:
        lines = [f"{manifest.verdict}: {manifest.sentence.en}", manifest.sentence.zh, "", *lines]
        files = [folder / "tables" / f"{name}.csv" for name in manifest.tables]
        lines.append(table([("" if i else "table   ", str(file)) for i, file in enumerate(files)]))
        lines.append(f"report    toushi report {shlex.quote(str(folder))} -o report")
    return "\n".join(lines)


def list_failures(result: "StudyResult") -> str:
    rows = [(name, why if len(why) <= 200 else f"{why[:199]}…") for name, why in result.failed.items()]
    lines = [f"toushi: {len(rows)} of {len(rows) + len(result.manifest.jobs)} jobs failed:"]
    lines += [f"  {line}" for line in table(rows).splitlines()]
    where = result.folder / "jobs"
    return "\n".join([*lines, f"Full errors: {where}/JOB.error.txt. The same command tries only these again."])
