"""The shipped fonts: Chinese and emoji in every figure, the same on every machine."""

import unicodedata
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "fonts"
FILES = ("NotoSansSC-Regular.subset.ttf", "NotoEmoji-Regular.subset.ttf")
FAMILY = ["DejaVu Sans", "Noto Sans SC", "Noto Emoji"]
PLACEHOLDER = "〓"  # the printer's geta: "a character belongs here"


@cache
def register() -> None:
    """Makes the shipped fonts known to matplotlib, before any copy of the same name that the machine has."""
    from matplotlib.font_manager import fontManager

    for name in FILES:
        fontManager.addfont(FOLDER / name)
        fontManager.ttflist.insert(0, fontManager.ttflist.pop())


def drawable(text: str) -> str:
    """`text` as the shipped fonts can draw it: one sign for each visible character.

    A character that no font has becomes 〓. Joiners, variation selectors and control characters are left out
    (an emoji sequence is drawn as its parts).
    """
    seen = "".join(" " if c.isspace() else c for c in text)
    kept = (c for c in seen if unicodedata.category(c) not in ("Cc", "Cf") and not _selector(c))
    return "".join(c if ord(c) in characters() else PLACEHOLDER for c in kept)


@cache
def characters() -> frozenset[int]:
    """Code points that the family can draw."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    files = [Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf", *(FOLDER / name for name in FILES)]
    return frozenset(code for file in files for code in FT2Font(file).get_charmap())


def _selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
