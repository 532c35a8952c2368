"""Text for a terminal: one line of visible characters, and tables whose columns are flush for Chinese, too."""

import shutil
from collections.abc import Iterable, Sequence

from toushi.probe.base.text_width import pad, text_width


def printable(text: str) -> str:
    """The text in one line, with control characters and newlines as Python writes them.

    Joiners inside a longer text are dropped, since terminals disagree about the width of what they join.
    """
    if len(text) > 1:
        text = text.replace("\u200d", "").replace("\ufe0f", "")
    alone = len(text) == 1
    return "".join(repr(c)[1:-1] if not c.isprintable() or (alone and not text_width(c)) else c for c in text)


def limit_length(text: str, most: int = 300) -> str:
    """The text, or its first `most` characters and how many there are."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def table(rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows under each other, columns two cells apart; the columns in `right` are flush right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if not rows:
        return ""
    widths = [max(text_width(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(pad(c, w, i in right) for i, (c, w) in enumerate(zip(row, widths))) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def terminal_width() -> int:
    return max(40, shutil.get_terminal_size((100, 24)).columns)
