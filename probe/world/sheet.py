"""A contact sheet of scenes with their captions: python -m probe.world.sheet OUT.png

The captions also go to OUT.txt; on the sheet itself they stand only where a font with Chinese is at hand.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont

from probe.world.example import Example, example

_FONTS = Path(__file__).parents[1] / "figures" / "fonts"


@dataclass(frozen=True)
class Sheet:
    """Write a contact sheet of the scene world."""

    out: tyro.conf.Positional[Path]
    count: int = 48
    columns: int = 6
    first_seed: int = 0
    split: str = "train"
    masks: bool = False
    """Show each object's mask beside the picture."""


def cell(shown: Example, masks: bool, scale: int = 2) -> np.ndarray:
    """The picture, and with `masks` one tinted copy for all objects, uint8 [64 scale, 64 scale or twice, 3]."""
    panels = [shown.picture]
    if masks:
        tints = np.array([(230, 40, 40), (40, 90, 240), (30, 170, 60)], dtype=np.uint8)
        tinted = shown.picture // 3
        for mask, tint in zip(shown.masks, tints, strict=False):
            tinted[mask] = tinted[mask] + tint // 2
        panels.append(tinted)
    return np.concatenate(panels, axis=1).repeat(scale, axis=0).repeat(scale, axis=1)


def contact_sheet(examples: list[Example], columns: int, masks: bool = False) -> Image.Image:
    font = next(iter(sorted([*_FONTS.glob("*.ttf"), *_FONTS.glob("*.otf")])), None)
    font = ImageFont.truetype(str(font), 12) if font else None
    cells = [cell(shown, masks) for shown in examples]
    height, width = cells[0].shape[:2]
    row = height + (34 if font else 4)
    sheet = Image.new("RGB", (columns * (width + 4), -(-len(cells) // columns) * row), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (pixels, shown) in enumerate(zip(cells, examples, strict=True)):
        x, y = index % columns * (width + 4), index // columns * row
        sheet.paste(Image.fromarray(pixels), (x, y))
        if font:
            lines = _wrapped(shown.caption.text, font, width)[:2]
            pen.multiline_text((x, y + height + 1), "\n".join(lines), fill="black", font=font, spacing=2)
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for character in text:
        if font.getlength(lines[-1] + character) > width:
            lines.append("")
        lines[-1] += character
    return lines


def main(sheet: Sheet) -> None:
    examples = [example(sheet.first_seed + i, sheet.split) for i in range(sheet.count)]
    contact_sheet(examples, sheet.columns, sheet.masks).save(sheet.out)
    captions = "\n".join(f"{i:3d}  {shown.caption.text}" for i, shown in enumerate(examples))
    sheet.out.with_suffix(".txt").write_text(captions + "\n", encoding="utf-8")
    print(f"{sheet.out} and {sheet.out.with_suffix('.txt')}")


if __name__ == "__main__":
    main(tyro.cli(Sheet))
