"""The report as one HTML page that needs nothing else: figures, tables and the font are in it."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import jinja2
import pandas as pd

from toushi.probe.figures.fonts import FILES, FOLDER
from toushi.reports import report_messages as words
from toushi.reports.chapter import LANGUAGES, Chapter, Picture, Sheet, shown

ROWS, DOWNLOAD = 500, 2_000_000  # of a table that are shown; bytes of a CSV that go into the page
DOTS = 96  # CSS pixels of an inch


def page(chapters: Sequence[Chapter], out: Path) -> str:
    """The page; the figures are read from `out`, where they were written."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("page.html")
    title = chapters[0].title if len(chapters) == 1 else words.REPORT
    values = {"chapters": chapters, "words": words, "title": title, "rows": rows}
    values["images"] = lambda picture: images(picture, out)
    # The font holds the signs of the page, so the page is made twice: without it, and with it.
    return template.render(**values, font=font(template.render(**values, font="")))


def images(picture: Picture, out: Path) -> list[dict]:
    """One for each language."""
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


def rows(sheet: Sheet) -> dict:
    table = sheet.table
    note = None
    if len(table) > ROWS:
        note = words.ROWS_LEFT_OUT.format(all=len(table), some=ROWS, file=sheet.file.as_posix())
    data = sheet.file.read_bytes()
    columns = [{"name": name, "number": is_number(pd.Series(table[name]))} for name in table.columns]
    cells = [[shown(value) for value in row] for row in table.head(ROWS).itertuples(index=False)]
    kept = base64.b64encode(data).decode() if len(data) <= DOWNLOAD else ""
    return {"columns": columns, "rows": cells, "note": note, "data": kept}


def is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def font(text: str) -> str:
    """The shipped Chinese font cut down to the characters of the text: a WOFF in base64, the same bytes each time."""
    from fontTools import subset

    options = subset.Options(flavor="woff", layout_features=[], hinting=False, notdef_outline=True)
    options.recalc_timestamp = False
    whole = subset.load_font(str(FOLDER / FILES[0]), options)
    cutter = subset.Subsetter(options)
    cutter.populate(text=text + "〓")
    cutter.subset(whole)
    held = io.BytesIO()
    whole.flavor = "woff"
    whole.save(held, reorderTables=False)
    return base64.b64encode(held.getvalue()).decode()
