"""For a terminal: visible characters in one line, tables whose columns line up for Chinese, too, and a bar of steps."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from toushi.probe.base.text_width import pad, text_width


def printable(text: str) -> str:
    """The text in one line, with control characters and newlines as Python escapes them.

    Joiners inside a longer text are dropped, because terminals disagree about the width of joined characters.
    """
    if len(text) > 1:
        text = text.replace("\u200d", "").replace("\ufe0f", "")
    single = len(text) == 1
    return "".join(repr(c)[1:-1] if not c.isprintable() or (single and not text_width(c)) else c for c in text)


def limit_length(text: str, most: int = 300) -> str:
    """The text, or its first `most` characters and its length."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def table(rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows as lines, columns two cells apart. The columns in `right` are flush right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if not rows:
        return ""
    widths = [max(text_width(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(pad(c, w, i in right) for i, (c, w) in enumerate(zip(row, widths))) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def terminal_width() -> int:
    return max(40, shutil.get_terminal_size((100, 24)).columns)


@contextmanager
def progress(steps: int, index: int, count: int) -> Iterator[Callable[..., object]]:
    """A bar over the steps. Yields the callback that moves it."""
    from tqdm import tqdm

    name = "step" if count == 1 else f"{index + 1}/{count}"
    with tqdm(total=steps, desc=name, unit="step", leave=False) as bar:
        yield lambda *_: bar.update()
