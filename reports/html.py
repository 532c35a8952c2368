"""The report as one HTML page that contains its figures, tables and font."""

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2

from toushi.probe.figures.fonts import FILES, FOLDER, PLACEHOLDER, font_subset
from toushi.reports import report_messages as messages
from toushi.reports.chapter import LANGUAGES, Chapter, Picture, Sheet

ROWS, DOWNLOAD = 500, 2_000_000  # rows of a table that are shown; bytes of the largest CSV that the page contains
DOTS = 96  # CSS pixels per inch


def page(chapters: Sequence[Chapter], out: Path) -> str:
    """The page. The figures are read from `out`, where they were written."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("page.html")
    title = chapters[0].title if len(chapters) == 1 else messages.REPORT
    values = {"chapters": chapters, "messages": messages, "title": title, "rows": rows}
    values["images"] = lambda picture: images(picture, out)
    # The font holds the characters of the page, so the page is made twice: without it, and with it.
    text = template.render(**values, font="")
    return template.render(**values, font=font_subset(FOLDER / FILES[0], text + PLACEHOLDER))


def images(picture: Picture, out: Path) -> list[dict[str, str | int]]:
    """The picture in each language, as the template takes it."""
    return [
        {
            "language": language,
            "alt": picture.caption.translate(language),
            "pixels": round(float(picture.inches.translate(language)) * DOTS),
            "kind": "image/svg+xml",
            "data": base64.b64encode((out / f"{picture.stem.translate(language)}.svg").read_bytes()).decode(),
        }
        for language in LANGUAGES
    ]


def rows(sheet: Sheet) -> dict[str, object]:
    """The table as the template takes it: columns, rows, a note about rows left out, and the CSV in base64."""
    columns, rows, note = sheet.content(ROWS, ROWS)
    data = sheet.file.read_bytes()
    csv = base64.b64encode(data).decode() if len(data) <= DOWNLOAD else ""
    return {"columns": columns, "rows": rows, "note": note, "data": csv}
