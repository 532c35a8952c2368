"""What an experiment is: a module of this folder with a question, a configuration, jobs and a conclusion.

A module `experiments/NAME.py` that `toushi run NAME` can run has a docstring (the claim, and how it could fail) and

    STUDY = Study(title=…, question=…, method=…)       in Chinese and English, for people
    @dataclass(frozen=True) class Config               every number that shapes the result; JSON values and Paths only;
                                                       numbers with bounds are of the types of experiments/runner/settings.py
    def weights(config) -> list[Path]                  the files whose bytes the result depends on
    def jobs(config) -> list[Job]                      the work, cut into pieces that stand by themselves
    def conclude(config, rows) -> Finding              tables, verdict and sentence from the rows of all jobs
    def figures(tables, language) -> dict[str, Figure] from the finished tables alone, so that a figure can be made again;
                                                       at most `toushi.probe.figures.style.PAGE` wide (COLUMN: one column of a
                                                       paper); a figure's `set_label(…)` is its caption in the report

A job runs in a process of its own with one thread, and its rows go through CSV: numbers, true and false, or text; None
for what is missing, never "". Of a table in a Finding the same holds. A small picture is text too, as
`toushi.probe.figures.embedded_picture` writes it.

Nothing here runs anything: `experiments/runner/run_experiment.py` does, `reports/` shows what came out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pandas as pd

from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.base.errors import ToushiError

Verdict = Literal["supported", "refuted", "undecided", "measured"]  # "measured": the question was how much


FEWEST = 6  # words, scenes or sentences to resample: the interval of fewer is too narrow to decide anything


@dataclass(frozen=True)
class Study:
    title: Bilingual
    question: Bilingual  # the claim that is put to the test, and what would refute it
    method: Bilingual  # a paragraph


@dataclass(frozen=True)
class Job:
    """A piece of the work: `function(**arguments)` gives tidy rows. Done once, it is not done again.

    `function` stands at the top of its module and depends on nothing but its arguments, which are JSON values: it may
    run in another process, or on another machine. `name` is unique in its run and fit for a file name.
    """

    name: str
    function: Callable[..., pd.DataFrame]
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    verdict: Verdict
    sentence: (
        Bilingual  # the verdict in a sentence, with its numbers and intervals; "supported" stands before it already
    )
    tables: dict[str, pd.DataFrame]  # tidy: one observation or estimate in a row

    def __post_init__(self):
        if self.verdict not in get_args(Verdict):
            raise ToushiError(f"a verdict is one of {', '.join(get_args(Verdict))}, but {self.verdict!r} came")
