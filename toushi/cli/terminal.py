"""Text in columns of a terminal, where 猫 is two cells wide."""

import shutil
import unicodedata
from collections.abc import Iterable, Sequence


def cells(text: str) -> int:
    """How many cells the terminal gives to `text`."""
    wide = 0
    for character in text:
        if character == "\u200d" or unicodedata.category(character) in ("Mn", "Me", "Cf"):
            continue
        wide += 2 if unicodedata.east_asian_width(character) in "WF" or "\U00020000" <= character <= "\U0003ffff" else 1
    return wide


def padded(text: str, width: int, right: bool = False) -> str:
    fill = " " * max(0, width - cells(text))
    return fill + text if right else text + fill


def shown(text: str) -> str:
    """Text as one line of signs that can be seen: control characters and newlines as Python writes them.

    Joiners inside a longer text are left out, since terminals disagree about the width of what they join.
    """
    if len(text) > 1:
        text = text.replace("\u200d", "").replace("\ufe0f", "")
    alone = len(text) == 1
    return "".join(repr(c)[1:-1] if not c.isprintable() or (alone and not cells(c)) else c for c in text)


def shortened(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def table(rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows under each other, columns two cells apart; the columns in `right` are flush right."""
    rows = [[shown(cell) for cell in row] for row in rows]
    if not rows:
        return ""
    widths = [max(cells(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(padded(c, w, i in right) for i, (c, w) in enumerate(zip(row, widths))) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def columns() -> int:
    return max(40, shutil.get_terminal_size((100, 24)).columns)
