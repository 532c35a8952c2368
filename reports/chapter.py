"""The content of a report about one run or one trace, for the HTML page and the PDF alike."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.figures.embedded_picture import PREFIX
from toushi.reports.report_messages import FACTS, ROWS_LEFT_OUT

LANGUAGES = ("zh", "en")  # in the order of the page


@dataclass(frozen=True)
class Picture:
    """A figure, in each language, whose files (.svg, .pdf, .png) lie beside the report."""

    name: str
    caption: Bilingual
    stem: Bilingual  # path of the files from the report's folder, without their ending
    inches: Bilingual  # width
    command: str  # makes the files again


@dataclass(frozen=True)
class Sheet:
    """A table of a run."""

    name: str
    table: pd.DataFrame
    file: Path  # with every row and digit

    def content(self, most: int, first: int) -> tuple[list[dict[str, Any]], list[list[str]], Bilingual | None]:
        """Columns, each with its `name` and whether it is a `number`; rows of texts; and a note.

        Of a table of more than `most` rows there are only the `first` ones, and the note says so.
        """
        cut = len(self.table) > most
        printed = self.table.head(first) if cut else self.table
        columns = [{"name": name, "number": is_number(pd.Series(self.table[name]))} for name in self.table.columns]
        rows = [[format_cell(value) for value in row] for row in printed.itertuples(index=False)]
        note = ROWS_LEFT_OUT.format(all=len(self.table), some=first, file=self.file.as_posix()) if cut else None
        return columns, rows, note


@dataclass(frozen=True)
class Chapter:
    """The part of a report about one run or one trace."""

    key: str  # unique in a report, and fit for a file name
    title: Bilingual
    notices: list[Bilingual] = field(default_factory=list)  # warnings, which stand first
    question: Bilingual | None = None
    verdict: str | None = None
    sentence: Bilingual | None = None
    method: Bilingual | None = None
    pictures: list[Picture] = field(default_factory=list)
    all_pictures: tuple[str, ...] = ()  # names of all figures that can be drawn
    sheets: list[Sheet] = field(default_factory=list)
    command: str = ""  # makes the run or the trace again
    facts: list[tuple[Bilingual, Bilingual]] = field(default_factory=list)  # provenance: name, value


def known_facts(values: Mapping[str, object]) -> list[tuple[Bilingual, Bilingual]]:
    """Names and values of a chapter's `facts`, by fields of manifests, without those that are not known."""
    known = {name: value for name, value in values.items() if value not in (None, "")}
    return [(FACTS[name], v if isinstance(v, Bilingual) else Bilingual.same(v)) for name, v in known.items()]


def is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def format_cell(value: object) -> str:
    """A value of a table as text for people, with four digits."""
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return "–"
    if isinstance(value, str) and value.startswith(PREFIX):
        return "PNG"  # a small picture, drawn in a figure
    return f"{value:.4g}" if isinstance(value, float) else str(value)
