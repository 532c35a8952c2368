"""One word through the network and through time."""

import numpy as np

from toushi.probe.analysis.maps import average
from toushi.probe.base.bilingual_text import translate
from toushi.probe.base.errors import ToushiError
from toushi.probe.figures.fonts import drawable
from toushi.probe.figures.style import (
    FAINT,
    PROBABILITY,
    StyledFigure,
    colour_bar,
    hide_axes,
    overlay,
    overlay_colours,
    styled,
)
from toushi.probe.figures.words_figure import background_picture, words_to_draw
from toushi.probe.text.alignment import word_labels
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.selection import Sites, WordSpec

NAMES, HEAD, BAR, SIDE, GAP = 1.5, 0.5, 0.95, 0.85, 0.05  # inches


@styled
def layers_figure(
    trace: Trace,
    word: WordSpec,
    *,
    branch: str = "cond",
    sites: Sites = None,
    columns: int = 8,
    language: str = "en",
) -> StyledFigure:
    """Rows are layers, in the order of the network, columns are steps: where each layer attended to the word.

    Heads are averaged. When more than `columns` steps were recorded, that many are shown, evenly spread from the first
    to the last. A trace that keeps only the sum over its steps has one column, their mean. All maps share one scale, in
    attention probability for each cell; behind them is the picture of that step where the trace has it, else the
    finished one. `language` of the labels: zh or en.

    Raises UnknownWord or AmbiguousWord, and NotRecorded for a word or site that the trace does not have.
    """
    (asked,) = words_to_draw(trace, [word], branch)
    if not trace.steps:
        raise ToushiError(f"{trace.folder} has no finished step, so there is no map to draw; record the run again")
    if summed := trace.keep == "sum":
        steps = trace.steps[-1:]
    else:
        places = np.linspace(0, len(trace.steps) - 1, min(columns, len(trace.steps))).round().astype(int)
        steps = [trace.steps[i] for i in places]
    native = trace.attention(asked, branch=branch, sites=sites, steps=None if summed else steps, grid="native")
    layers = {name: average(maps, ("head",)) for name, maps in native.items()}
    top = max(float(maps.max()) for maps in layers.values())
    final = background_picture(trace)
    behind = [picture if (picture := trace.preview(step)) is not None else final for step in steps]

    tall = SIDE * final.shape[0] / final.shape[1]
    width = NAMES + len(steps) * (SIDE + GAP) + BAR
    height = HEAD + len(layers) * (tall + GAP) + 0.1
    figure = StyledFigure(figsize=(width, height))
    figure.text(
        0.1 / width, 1 - 0.08 / height, drawable(word_labels([asked], trace.words(branch))[0]), size=12, va="top"
    )
    figure.text(
        (NAMES - 0.1) / width,
        1 - (HEAD - 0.01) / height,
        translate(language, en="mean of steps", zh="各步平均") if summed else translate(language, en="step", zh="步"),
        size=8,
        ha="right",
        va="bottom",
    )
    for row, (name, maps) in enumerate(layers.items()):
        under = HEAD + (row + 1) * (tall + GAP) - GAP
        note = f"{' × '.join(str(n) for n in maps.shape[-2:])}"
        middle = 1 - (under - tall / 2) / height
        figure.text((NAMES - 0.1) / width, middle, short_site_name(name), size=8, ha="right", va="bottom")
        figure.text((NAMES - 0.1) / width, middle, note, size=7, ha="right", va="top", color=FAINT)
        for column, step in enumerate(steps):
            left = NAMES + column * (SIDE + GAP)
            place = (left / width, 1 - under / height, SIDE / width, tall / height)
            axes = hide_axes(figure.add_axes(place))
            axes.imshow(overlay(behind[column], maps.sel(step=step).values, top), interpolation="nearest")
            if row == 0:
                axes.set_title(f"{trace.steps[0]}–{step}" if summed else str(step), size=8, pad=3)
    left = NAMES + len(steps) * (SIDE + GAP) + 0.12
    tallest = min(len(layers) * (tall + GAP) - GAP, 2.2)
    place = (left / width, 1 - (HEAD + tallest) / height, 0.11 / width, tallest / height)
    colour_bar(figure, place, top, PROBABILITY.translate(language), overlay_colours())
    return figure


def short_site_name(site: str) -> str:
    """The site's name without what every row shares."""
    return drawable(site.removeprefix("unet.").removeprefix("transformer.").removesuffix(".cross_attention"))
