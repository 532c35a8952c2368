"""What a study is: a module with a question, a configuration, jobs and a conclusion.

`toushi run NAME` runs `experiments/studies/NAME.py`, or any module by its dotted name. Such a module has a docstring (the
claim, and how the study could fail) and

    STUDY = Study(title=…, question=…, method=…)       in Chinese and English, for people
    @dataclass(frozen=True) class Config               every number that shapes the result; JSON values and Paths only.
                                                       Bounds of numbers: see experiments/runner/settings.py
    def weights(config) -> list[Path]                  the files on whose bytes the result depends
    def jobs(config) -> list[Job]                      the work, in independent parts
    def conclude(config, rows) -> Finding              tables, verdict and sentence from the rows of all jobs
    def figures(tables, language) -> dict[str, Figure] from the finished tables alone, so that a figure can be made again.
                                                       At most `toushi.probe.figures.style.PAGE` wide (COLUMN: one column of
                                                       a paper); a figure's `set_label(…)` is its caption in the report

A job runs in a process of its own with one thread, and its rows go through CSV: numbers, true and false, or text; None
for what is missing, never "". The same holds for the tables of a Finding. A small picture is text, too, as
`toushi.probe.figures.embedded_picture` writes it.

Nothing here runs anything: `experiments/runner/run_study.py` does, and `reports/` shows the results.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import pandas as pd

from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.base.errors import ToushiError

Verdict = Literal["supported", "refuted", "undecided", "measured"]  # "measured": the question was how much
FEWEST = 6  # words, scenes or sentences to resample: the interval of fewer is too narrow to decide anything


@dataclass(frozen=True)
class Study:
    title: Bilingual
    question: Bilingual  # the claim under test, and what would refute it
    method: Bilingual  # a paragraph


@dataclass(frozen=True)
class Job:
    """A part of the work: `function(**arguments)` gives tidy rows. It is computed once.

    `function` stands at the top of its module and depends on its arguments alone, which are JSON values: it may run in
    another process, or on another machine. `name` is unique in its study and is used as a file name.
    """

    name: str
    function: Callable[..., pd.DataFrame]
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    verdict: Verdict
    sentence: Bilingual  # the verdict's numbers and intervals; the verdict itself stands before it already
    tables: dict[str, pd.DataFrame]  # tidy: one observation or estimate in a row

    def __post_init__(self):
        if self.verdict not in get_args(Verdict):
            raise ToushiError(f"a verdict is one of {', '.join(get_args(Verdict))}, but {self.verdict!r} came")
