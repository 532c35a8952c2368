"""Two traces side by side: the pictures, then both heat maps of each word on one scale, and their difference."""

import matplotlib
import numpy as np
from matplotlib.colors import Normalize

from toushi.probe.analysis.maps import resample
from toushi.probe.base.bilingual_text import Bilingual, translate
from toushi.probe.base.text_width import truncate
from toushi.probe.figures.fonts import drawable
from toushi.probe.figures.style import (
    DIVERGING,
    FAINT,
    PROBABILITY,
    StyledFigure,
    colour_bar,
    overlay,
    overlay_colours,
    percent,
    styled,
)
from toushi.probe.figures.words_figure import background_picture
from toushi.probe.trace.comparison import Comparison

SIDE, GAP, NAME, HEAD, BAR = 1.3, 0.12, 0.24, 0.3, 0.85  # inches
PICTURE = Bilingual(en="picture", zh="图像")
DIFFERENCE = Bilingual(en="B − A, attention probability", zh="B − A，注意力概率")


@styled
def comparison_figure(comparison: Comparison, language: str = "en") -> StyledFigure:
    """A row for the pictures and one for each word of `compare(a, b)`; columns A, B and B - A.

    The maps of all words share one scale, from 0 to the largest value, in attention probability. The differences share
    one signed scale: red is more in B, blue is less. The third picture is the absolute difference of the pictures, black
    where they are equal. It is blank if they cannot be compared. `language` of the labels: zh or en.
    """
    backgrounds = [background_picture(trace) for trace in (comparison.a, comparison.b)]
    maps = {word: [heat.values for heat in pair] for word, pair in comparison.maps.items()}
    top = max((float(heat.max()) for pair in maps.values() for heat in pair), default=0.0)
    reach = max((float(np.abs(second - first).max()) for first, second in maps.values()), default=0.0) or 1.0
    tall = SIDE * max(picture.shape[0] / picture.shape[1] for picture in backgrounds)
    size = (3 * (SIDE + GAP) + GAP + BAR * bool(maps), HEAD + (1 + len(maps)) * (tall + NAME) + GAP)
    figure = StyledFigure(figsize=size)
    page = figure.add_axes((0, 0, 1, 1))
    page.set_axis_off()
    for column, title in enumerate(("A", "B", "B − A")):
        page.text(GAP + column * (SIDE + GAP), 0.08, title, va="top", size=10)

    def draw_row(row: int, name: str, notes: list[str], images: list[np.ndarray | None]) -> None:
        under = HEAD + (row + 1) * (tall + NAME)
        page.text(GAP, under - tall - 0.05, drawable(name), size=9, va="bottom")
        for column, image in enumerate(images):
            left = GAP + column * (SIDE + GAP)
            if image is not None:
                place = (left, left + SIDE, under, under - tall)
                page.imshow(image, interpolation="nearest", extent=place, aspect="auto")
            page.text(left + SIDE, under - tall - 0.05, notes[column], ha="right", va="bottom", size=7, color=FAINT)

    compared = comparison.mean_difference is not None
    gap = np.abs(backgrounds[1].astype(np.int16) - backgrounds[0]).astype(np.uint8) if compared else None
    changed = "" if comparison.changed_pixels is None else percent(comparison.changed_pixels)
    changed = changed and translate(language, en=f"{changed} changed", zh=f"变了 {changed}")
    draw_row(0, PICTURE.translate(language), ["", "", changed], [*backgrounds, gap])
    for row, (word, (first, second)) in enumerate(maps.items(), 1):
        values = comparison.words.loc[word]
        notes = [percent(values.share_a), percent(values.share_b), f"r {values.correlation:.2f}"]
        fine = resample(second - first, backgrounds[1].shape[:2])
        signed = matplotlib.colormaps[DIVERGING](Normalize(-reach, reach)(fine))
        overlays = [overlay(picture, heat, top) for picture, heat in zip(backgrounds, (first, second))]
        draw_row(row, truncate(word, 8), notes, [*overlays, np.asarray(signed)])
    page.set(xlim=(0, size[0]), ylim=(size[1], 0))  # imshow set them to its own picture
    if maps:
        left = 3 * (SIDE + GAP) + GAP
        bars = [
            (0.0, top, PROBABILITY, overlay_colours()),
            (-reach, reach, DIFFERENCE, matplotlib.colormaps[DIVERGING]),
        ]
        for row, (lowest, largest, label, colours) in enumerate(bars):
            under = HEAD + (row + 1) * (tall + NAME)
            place = (left / size[0], 1 - under / size[1], 0.11 / size[0], tall / size[1])
            colour_bar(figure, place, largest, label.translate(language), colours, lowest).yaxis.label.set_fontsize(7)
    return figure
