"""What a report says of one run or one trace, whatever it is printed on."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.figures.embedded_picture import PREFIX

LANGUAGES = ("zh", "en")  # in the order of the page


@dataclass(frozen=True)
class Picture:
    """A figure that lies beside the report as .svg, .pdf and .png, in each language."""

    name: str
    caption: Bilingual
    stem: Bilingual  # where the files are, from the report's folder, without their ending
    inches: Bilingual  # how wide they are
    command: str  # that makes the files again


@dataclass(frozen=True)
class Sheet:
    name: str
    table: pd.DataFrame
    file: Path  # with every row and digit


@dataclass(frozen=True)
class Chapter:
    key: str  # unique in a report, and fit for a file name
    title: Bilingual
    notices: list[Bilingual] = field(default_factory=list)  # what is not as it should be, said first
    question: Bilingual | None = None
    verdict: str | None = None
    sentence: Bilingual | None = None
    method: Bilingual | None = None
    pictures: list[Picture] = field(default_factory=list)
    all_pictures: tuple[str, ...] = ()  # names of those that could be drawn
    sheets: list[Sheet] = field(default_factory=list)
    command: str = ""  # that makes the run or the trace again
    facts: list[tuple[Bilingual, Bilingual]] = field(default_factory=list)  # where it comes from


def format_cell(value: object) -> str:
    """A value of a table for people: four digits."""
    if value is None or value is pd.NA or (isinstance(value, float) and pd.isna(value)):
        return "–"
    if isinstance(value, str) and value.startswith(PREFIX):
        return "PNG"  # a small picture, drawn in a figure
    return f"{value:.4g}" if isinstance(value, float) else str(value)
