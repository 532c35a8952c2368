"""Is each Chinese character of a PDF really on the paper? It is rasterised by PDFium, and looked at sign by sign."""

from collections import Counter

import numpy as np
import pypdfium2


def is_wide(character: str) -> bool:
    return character > "\u2e7f" and character not in "\u3000\ufffe\uffff"


def signs(pdf: bytes) -> tuple[Counter, list[str]]:
    """How often each Chinese (or other wide) character is in the text, and those without ink where they stand."""
    found, blank = Counter(), []
    document = pypdfium2.PdfDocument(pdf)
    for page in document:
        scale = 3
        raster = page.render(scale=scale, grayscale=True).to_numpy()
        text = page.get_textpage()
        for i in range(text.count_chars()):
            character = text.get_text_range(i, 1)
            if not character or not is_wide(character[0]):
                continue
            left, bottom, right, top = text.get_charbox(i, loose=True)
            rows = slice(int((page.get_height() - top) * scale), int((page.get_height() - bottom) * scale) + 1)
            cell = raster[rows, int(left * scale) : int(right * scale) + 1].ravel().astype(int)
            found[character] += 1
            if cell.size == 0 or (np.abs(cell - np.bincount(cell).argmax()) > 60).mean() < 0.01:
                blank.append(character)
    document.close()
    return found, blank
