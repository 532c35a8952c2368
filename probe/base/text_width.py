"""The width of text in cells, where 猫 has two: in a terminal, and for the labels of figures."""

import unicodedata


def text_width(text: str) -> int:
    """Cells that a terminal gives to the text; a Latin letter takes one."""
    width = 0
    for character in text:
        if character == "\u200d" or unicodedata.category(character) in ("Mn", "Me", "Cf"):
            continue
        is_wide = unicodedata.east_asian_width(character) in "WF" or "\U00020000" <= character <= "\U0003ffff"
        width += 2 if is_wide else 1
    return width


def pad(text: str, width: int, right: bool = False) -> str:
    """The text padded with spaces to `width` cells; with `right`, on its left side."""
    fill = " " * max(0, width - text_width(text))
    return fill + text if right else text + fill


def truncate(text: str, width: int) -> str:
    """The text, or its beginning and an ellipsis, in at most `width` cells."""
    if text_width(text) <= width:
        return text
    while text_width(text) > width - 1:
        text = text[:-1]
    return text + "…"
