"""The report as a PDF in one language, typeset by typst with the shipped fonts only."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.figures.fonts import FOLDER, drawable
from toushi.reports import report_messages as messages
from toushi.reports.chapter import Chapter

ROWS, SOME = 60, 15  # rows of the longest table that is printed whole; rows that are printed of a longer one


def pdf(chapters: Sequence[Chapter], out: Path, language: str) -> bytes:
    """The PDF, the same bytes each time. Figures are read from `out`. 〓 stands for a character that no font has."""
    import matplotlib
    import typst

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copyfile(Path(__file__).with_name("page.typ"), root / "page.typ")
        content = contents(chapters, out, root, language)
        (root / "page.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        fonts = [str(FOLDER), f"{matplotlib.get_data_path()}/fonts/ttf"]
        return typst.compile(
            str(root / "page.typ"), root=folder, font_paths=fonts, ignore_system_fonts=True, format="pdf", timestamp=0
        )


def contents(chapters: Sequence[Chapter], out: Path, root: Path, language: str) -> dict[str, object]:
    """The content that page.typ typesets, as JSON. The figures are copied to `root`."""

    def translated(text: Bilingual | None) -> str | None:
        return None if text is None else drawable(text.translate(language))

    catalogue = {name: translated(text) for name, text in vars(messages).items() if isinstance(text, Bilingual)}
    title = chapters[0].title if len(chapters) == 1 else messages.REPORT
    page = {"language": language, "title": translated(title), "words": catalogue, "chapters": []}
    for chapter in chapters:
        pictures = []
        for picture in chapter.pictures:
            file = f"{chapter.key}-{picture.name}.pdf"
            shutil.copyfile(out / f"{picture.stem.translate(language)}.pdf", root / file)
            about = {"file": file, "inches": float(picture.inches.translate(language))}
            pictures.append({**about, "caption": translated(picture.caption), "command": drawable(picture.command)})
        sheets = []
        for sheet in chapter.sheets:
            columns, rows, note = sheet.content(ROWS, SOME)
            columns = [column | {"name": drawable(column["name"])} for column in columns]
            rows = [[drawable(cell) for cell in row] for row in rows]
            sheets.append({"name": drawable(sheet.name), "note": translated(note), "columns": columns, "rows": rows})
        page["chapters"].append(
            {
                "title": translated(chapter.title),
                "notices": [translated(notice) for notice in chapter.notices],
                "question": translated(chapter.question),
                "verdict": chapter.verdict,
                "verdict_text": translated(messages.VERDICTS[chapter.verdict]) if chapter.verdict else None,
                "sentence": translated(chapter.sentence),
                "method": translated(chapter.method),
                "pictures": pictures,
                "sheets": sheets,
                "command": drawable(chapter.command),
                "facts": [[translated(name), translated(value)] for name, value in chapter.facts],
            }
        )
    return page
