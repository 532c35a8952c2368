"""`toushi run`: from a question to tables and a verdict."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from toushi.cli.terminal import table
from toushi.probe.base.errors import ToushiError


@dataclass(frozen=True)
class Run:
    ABOUT = """Runs an experiment: tables, a verdict, and a manifest that says how they were made.

  toushi run --list
  toushi run layer_semantics
  toushi run layer_semantics --set encoder=FOLDER_OR_HUB_ID seed=1 --out runs/mine
  toushi run layer_semantics --config e5          (a published configuration, or a FILE.yaml)

Killed and started again, it goes on with the jobs that are missing; jobs that failed are tried again.
`toushi report runs/layer_semantics -o report` makes pages of it."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    """Which experiment; with dots, a module of your own that is made like those in experiments/."""
    list: bool = False
    """Tell every experiment and its question."""
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE.yaml|NAME")] = None
    """Values in place of the defaults."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Single values, over those of --config."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where the run goes; runs/NAME if not given, with --config runs/NAME-CONFIG."""
    jobs: int | None = None
    """How many jobs at a time, each in a process of its own; one for each core, at most 8, if not given.
    Changes nothing in the result."""
    threads: int = 1
    """Threads of each of these processes. More for a few jobs of a large model; sums may round differently."""
    overwrite: bool = False
    """Throw away a run that is already in the folder."""

    def run(self) -> int:
        if self.list:
            print(list_studies())
            return 0
        if self.name is None:
            raise ToushiError("which experiment? toushi run --list tells them all")
        for option, number in (("--jobs", self.jobs), ("--threads", self.threads)):
            if number is not None and number < 1:
                raise ToushiError(f"{option} must be 1 or more, but {number} came")
        from toushi.experiments.runner import run_experiment as runner

        module = runner.experiment(self.name)
        config = runner.config_of(module, self.config, sum(self.set, ()))
        variant = f"-{Path(self.config).stem}" if self.config else ""
        out = self.out or Path("runs") / f"{runner.short_name(module)}{variant}"
        processes = self.jobs or min(os.cpu_count() or 1, 8)
        try:
            done = runner.run(module, config, out, processes=processes, threads=self.threads, overwrite=self.overwrite)
        except KeyboardInterrupt:
            print(
                "toushi: interrupted; the jobs that were finished are kept, the same command goes on", file=sys.stderr
            )
            return 130
        print(summarize_run(done))
        if done.failed:
            print(list_failures(done), file=sys.stderr)
            return 1
        return 0


def list_studies() -> str:
    from toushi.experiments.runner import run_experiment as runner

    lines = []
    for name in runner.names():
        study = runner.experiment(name).STUDY
        lines += [
            f"{name}    {study.title.zh}  {study.title.en}",
            f"  {study.question.zh}",
            f"  {study.question.en}",
            "",
        ]
    return "\n".join(lines[:-1]) or "there is no experiment here"


def summarize_run(done) -> str:
    """Verdict, sentence and files of a run, as text."""
    manifest, folder = done.manifest, done.folder
    count = len(manifest["jobs"])
    lines = [
        f"jobs      {count} done, {done.new} of them now" + (f", {len(done.failed)} failed" if done.failed else "")
    ]
    if manifest["complete"]:
        said = manifest["sentence"]
        lines = [f"{manifest['verdict']}: {said['en']}", said["zh"], "", *lines]
        lines += table(
            [
                ("table" if not i else "", str(folder / "tables" / f"{name}.csv"))
                for i, name in enumerate(manifest["tables"])
            ]
        ).splitlines()
        lines.append(f"pages     toushi report {shlex.quote(str(folder))} -o report")
    return "\n".join(lines)


def list_failures(done) -> str:
    rows = [(name, why if len(why) <= 200 else f"{why[:199]}…") for name, why in done.failed.items()]
    lines = [f"toushi: {len(rows)} of {len(rows) + len(done.manifest['jobs'])} jobs failed:"]
    lines += [f"  {line}" for line in table(rows).splitlines()]
    where = done.folder / "jobs"
    return "\n".join([*lines, f"Why, in full: {where}/JOB.error.txt. The same command tries only these again."])
