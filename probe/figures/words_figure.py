"""The overview: the picture, then where each word went, all on one scale."""

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure

from toushi.probe.analysis.maps import PLAIN_MEAN, mass
from toushi.probe.base.bilingual_text import Bilingual, translate
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.text_width import text_width, truncate
from toushi.probe.figures.fonts import drawable
from toushi.probe.figures.style import (
    FAINT,
    PROBABILITY,
    colour_bar,
    overlay,
    overlay_colours,
    percent,
    styled,
)
from toushi.probe.text.alignment import Word, find_word, token_shares, word_labels

SIDE, GAP, TITLE, BAR = 1.3, 0.12, 0.34, 0.85  # inches


@styled
def words_figure(
    trace,
    words=None,
    *,
    branch: str = "cond",
    steps=None,
    sites=None,
    maps=None,
    columns: int = 6,
    language: str = "en",
) -> Figure:
    """The picture of the trace, and one overlay for each word.

    `words` as `trace.heat_map` takes them ("猫", "猫#2", Word, span); None means all words of the prompt, save those
    that were cut from it or not recorded. All overlays share one scale from 0 to the largest value, in attention
    probability for each latent cell, so they can be compared. The share beside a word is the mean of its map: its
    part of all the attention of the image's cells. `maps`: what `trace.heat_map` gave of each word, if it is known.
    `language` of the labels: zh or en.
    """
    asked = chosen(trace, words, branch)
    if maps is None:
        maps = [trace.heat_map(word, branch=branch, steps=steps, sites=sites) for word in asked]
    picture = shown(trace)
    height, width = picture.shape[:2]
    top = max((float(heat.max()) for heat in maps), default=0.0)

    rows = -(-(1 + len(maps)) // columns)
    columns = -(-(1 + len(maps)) // rows)  # rows of nearly equal length
    tall = SIDE * height / width
    caption = caption_lines(trace, columns, language)
    head = 0.2 * len(caption) + 0.12
    size = (columns * (SIDE + GAP) + GAP + (BAR if maps else 0), head + rows * (tall + TITLE) + 0.3)
    figure = Figure(figsize=size)
    # One axes for the whole page, in inches from its top left corner: axes of its own for each picture take half of
    # the time that the figure takes.
    page = figure.add_axes((0, 0, 1, 1))
    page.set_axis_off()
    for i, line in enumerate(caption):
        page.text(GAP, 0.08 + 0.2 * i, line, va="top", size=10)

    name = (
        translate(language, en="picture", zh="图像")
        if trace.complete
        else translate(language, en="picture so far", zh="目前的图像")
    )
    panels = [(picture, name, "")]
    for heat, name in zip(maps, word_labels(asked, trace.words(branch))):
        panels.append((overlay(picture, heat.values, top), truncate(name, 11), percent(float(mass(heat)))))
    for i, (image, name, note) in enumerate(panels):
        row, column = divmod(i, columns)
        left, under = GAP + column * (SIDE + GAP), head + row * (tall + TITLE) + TITLE + tall
        page.imshow(image, interpolation="nearest", extent=(left, left + SIDE, under, under - tall), aspect="auto")
        page.text(left, under - tall - 0.06, drawable(name), size=11 if i else 9, va="bottom")
        page.text(left + SIDE, under - tall - 0.06, note, ha="right", va="bottom", size=8, color=FAINT)
    page.set(xlim=(0, size[0]), ylim=(size[1], 0))  # imshow set them to its own picture
    if maps:
        left = columns * (SIDE + GAP) + GAP
        place = (left / size[0], 1 - (head + TITLE + tall) / size[1], 0.11 / size[0], tall / size[1])
        colour_bar(figure, place, top, PROBABILITY.translate(language), overlay_colours())
    how = maps[0].attrs["rule"] if maps else translate(language, en="no words", zh="没有词")
    how = translate(language, en=how, zh="先平均一处的各头，再平均各步，再平均各处") if how == PLAIN_MEAN else how
    note = rule(trace, branch, how)
    page.text(GAP, size[1] - 0.08, note, size=7, color=FAINT, va="bottom")
    return figure


def chosen(trace, words, branch: str) -> list[Word]:
    """The words to draw: all of which the trace holds some attention, or those asked for by text, Word or span."""
    known = trace.words(branch)
    if words is None:
        tokens = trace.places(branch)
        return [word for word in known if token_shares(tokens, word.span).any()]
    if isinstance(words, str | Word) or not isinstance(words, Iterable):
        raise ToushiError(f"expected a list of words, but {words!r} came; write [{words!r}]")
    prompt = trace.manifest.prompt_of(branch) or ""
    spans = [find_word(prompt, known, word) for word in words]
    return [Word(prompt[start:end], start, end) for start, end in spans]


def shown(trace) -> np.ndarray:
    """uint8 [Y, X, 3]: the picture, or the last preview of a run that did not finish, or grey."""
    picture = trace.image()
    if picture is None and trace.steps:
        picture = trace.preview(trace.steps[-1])
    return np.full((64, 64, 3), 200, np.uint8) if picture is None else np.asarray(picture)


def caption_lines(trace, columns: int, language: str) -> list[str]:
    """The prompt in lines that fit; a wide character counts twice."""
    lines, room = [""], int(columns * 19.5)
    none = (
        Bilingual(en="(prompt not known)", zh="（提示词未知）")
        if trace.prompt is None
        else Bilingual(en="(empty prompt)", zh="（空提示词）")
    )
    for character in drawable(trace.prompt or "") or none.translate(language):
        if text_width(lines[-1]) >= room:
            lines.append("")
        lines[-1] += character
    return lines[:3] if len(lines) <= 3 else [*lines[:2], lines[2][:-1] + "…"]


def rule(trace, *notes: str) -> str:
    """The model and what was done, in one faint line."""
    return drawable("  ·  ".join(part for part in (trace.manifest.name_of_model, *notes) if part))
