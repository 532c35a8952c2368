"""A contact sheet of scenes with their captions: python -m toushi.experiments.scene_world.contact_sheet OUT.png

The captions also go to OUT.txt, whole.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont

from toushi.experiments.scene_world.example import Example, example
from toushi.probe.figures import fonts

_TINTS = np.array([(230, 40, 40), (40, 90, 240), (30, 170, 60)], dtype=np.uint8)
_GAP, _LINE, _LINES = 4, 15, 2  # pixels between cells, height of a line of text, lines of text


@dataclass(frozen=True)
class Sheet:
    """Writes a contact sheet of the scene world."""

    out: tyro.conf.Positional[Path]
    count: int = 48
    columns: int = 6
    first_seed: int = 0
    split: str = "train"
    masks: bool = False
    """Show each object's mask beside the picture."""


def panels(example: Example, masks: bool) -> list[np.ndarray]:
    """The picture, and with `masks` the same darkened with the objects tinted: uint8 [64, 64, 3]."""
    if not masks:
        return [example.picture]
    tinted = example.picture // 3
    for mask, tint in zip(example.masks, _TINTS):
        tinted[mask] += tint // 2
    return [example.picture, tinted]


def contact_sheet(cells: list[tuple[list[np.ndarray], str]], columns: int, scale: int = 2) -> Image.Image:
    """Cells of pictures side by side, with the beginning of their text below."""
    font = ImageFont.truetype(str(fonts.FOLDER / fonts.FILES[0]), 12)
    pictures = [np.concatenate(side_by_side, axis=1) for side_by_side, _ in cells]
    height, width = (side * scale for side in pictures[0].shape[:2])
    row, column = height + _LINES * _LINE + _GAP, width + _GAP
    sheet = Image.new("RGB", (columns * column, -(-len(cells) // columns) * row), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, (_, text)) in enumerate(zip(pictures, cells)):
        x, y = index % columns * column, index // columns * row
        sheet.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (x, y))
        for line, words in enumerate(_wrap(fonts.drawable(text), font, width)[:_LINES]):
            pen.text((x, y + height + line * _LINE), words, fill="black", font=font)
    return sheet


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for piece in re.findall(r"[\w'.,-]+ ?|.", text, re.ASCII):  # a Latin word, or a character
        if font.getlength((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return lines


def main(sheet: Sheet) -> None:
    examples = [example(sheet.first_seed + i, sheet.split) for i in range(sheet.count)]
    cells = [(panels(shown, sheet.masks), shown.caption.text) for shown in examples]
    contact_sheet(cells, sheet.columns).save(sheet.out)
    captions = "\n".join(f"{i:3d}  {shown.caption.text}" for i, shown in enumerate(examples))
    sheet.out.with_suffix(".txt").write_text(captions + "\n", encoding="utf-8")
    print(f"{sheet.out} and {sheet.out.with_suffix('.txt')}")


if __name__ == "__main__":
    main(tyro.cli(Sheet))
