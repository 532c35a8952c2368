"""Fonts inside an SVG or a page: its text looks the same on every machine, and an <img> of a page can show it."""

import html
import re

from toushi.probe.figures.fonts import FAMILY, characters, font_files, font_subset

STYLE = '<style type="text/css">'  # of the figure, once in what matplotlib writes


def embed_fonts(svg: str) -> str:
    """The SVG with the fonts of its text."""
    text = "".join(html.unescape(part) for part in re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    return svg.replace(STYLE, STYLE + font_faces(text), 1)


def font_faces(text: str) -> str:
    """CSS with the fonts of this text, each reduced to the characters that it draws. They are called as in `FAMILY`."""
    left, rules = set(map(ord, text)), []
    for family, file, known in zip(FAMILY, font_files(), characters()):
        own = "".join(map(chr, sorted(left & known)))
        left -= known  # the first font that has a character draws it, as in matplotlib
        if own:
            font = font_subset(file, own)
            rules.append(f"@font-face {{ font-family: '{family}'; src: url(data:font/woff;base64,{font}); }}\n")
    return "".join(rules)
