"""The content of a report about one run or one trace, for the HTML page and the PDF alike."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.figures.embedded_picture import PREFIX

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


def format_cell(value: object) -> str:
    """A value of a table as text for people, with four digits."""
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return "–"
    if isinstance(value, str) and value.startswith(PREFIX):
        return "PNG"  # a small picture, drawn in a figure
    return f"{value:.4g}" if isinstance(value, float) else str(value)
