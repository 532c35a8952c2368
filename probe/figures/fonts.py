"""The shipped fonts: they draw Chinese and emoji in every figure, alike on every machine."""

import base64
import io
import unicodedata
import warnings
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "fonts"
FILES = ("NotoSansSC-Regular.subset.ttf", "NotoEmoji-Regular.subset.ttf", "ToushiRareHan-Regular.subset.ttf")
FAMILY = ["DejaVu Sans", "Noto Sans SC", "Noto Emoji", "Toushi Rare Han"]
PLACEHOLDER = "〓"  # in print it stands for a missing character


class MissingGlyphs(UserWarning):
    """No shipped font has these characters, so words that differ may look alike in a figure."""


@cache
def register_fonts() -> None:
    """Registers the shipped fonts with matplotlib, before any font of the same name on the machine."""
    from matplotlib.font_manager import fontManager

    for name in FILES:
        fontManager.addfont(FOLDER / name)
        fontManager.ttflist.insert(0, fontManager.ttflist.pop())


def drawable(text: str) -> str:
    """The text as the shipped fonts can draw it: one glyph for each visible character.

    A character that no font has becomes 〓, with the warning MissingGlyphs. Joiners, variation selectors, control characters, and marks on a character
    of another font are left out. So an emoji sequence is drawn as its parts.
    """
    shown, missing = "", []
    for character in unicodedata.normalize("NFC", text):
        category = unicodedata.category(character)
        if "\ufe00" <= character <= "\ufe0f":  # variation selectors: the fonts have one glyph for emoji and text
            continue
        if character.isspace():
            shown += " "
        elif category[0] == "M":  # it forms one glyph with its base, so one font must have both
            shown += character if shown and any({ord(shown[-1]), ord(character)} <= f for f in characters()) else ""
        elif category not in ("Cc", "Cf"):
            known = any(ord(character) in font for font in characters())
            shown += character if known else PLACEHOLDER
            missing += [] if known else [f"{character} (U+{ord(character):04X})"]
    if missing:
        listed = ", ".join(list(dict.fromkeys(missing))[:8])
        message = f"the shipped fonts lack {listed}: drawn as {PLACEHOLDER}, so words that differ may look alike"
        warnings.warn(MissingGlyphs(message), stacklevel=2)
    return shown


def font_files() -> list[Path]:
    """The file of each font of the family."""
    from matplotlib import get_data_path

    return [Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf", *(FOLDER / name for name in FILES)]


@cache
def characters() -> tuple[frozenset[int], ...]:
    """Code points that each font of the family can draw."""
    from matplotlib.ft2font import FT2Font

    return tuple(frozenset(FT2Font(str(file)).get_charmap()) for file in font_files())


def font_subset(file: Path, text: str) -> str:
    """The font, reduced to the characters of the text: a WOFF in base64, the same bytes each time."""
    from fontTools import subset

    options = subset.Options(flavor="woff", layout_features=[], hinting=False, notdef_outline=True)
    options.recalc_timestamp = False
    options.drop_tables += ["FFTM"]  # FontForge's dates in DejaVu Sans
    font = subset.load_font(str(file), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=text)
    subsetter.subset(font)
    content = io.BytesIO()
    font.flavor = "woff"
    font.save(content, reorderTables=False)
    return base64.b64encode(content.getvalue()).decode()
