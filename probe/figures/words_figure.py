"""The overview: the picture, then a heat map for each word, all on one scale."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr

from toushi.probe.analysis.maps import PLAIN_MEAN, mass
from toushi.probe.base.bilingual_text import Bilingual, translate
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.text_width import text_width, truncate
from toushi.probe.figures.fonts import drawable
from toushi.probe.figures.style import (
    FAINT,
    PROBABILITY,
    StyledFigure,
    colour_bar,
    overlay,
    overlay_colours,
    percent,
    styled,
)
from toushi.probe.text.alignment import Word, find_word, token_shares, word_labels
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.selection import Sites, Steps, WordSpec

UNKNOWN_MARK = "*"
UNKNOWN_WORDS = Bilingual(
    en="the encoder's vocabulary lacks this word; it reads <unk>, and all words in one <unk> have the same map",
    zh="编码器的词表没有这个词，读到的是 <unk>；同一个 <unk> 里的词，热力图相同",
)
SIDE, GAP, TITLE, BAR = 1.3, 0.12, 0.34, 0.85  # inches
LEAST = 0.5  # inches of the smallest tile


@styled
def words_figure(
    trace: Trace,
    words: Sequence[WordSpec] | None = None,
    *,
    branch: str = "cond",
    steps: Steps = None,
    sites: Sites = None,
    maps: Sequence[xr.DataArray] | None = None,
    columns: int = 6,
    width: float | None = None,
    picture: bool = True,
    language: str = "en",
) -> StyledFigure:
    """The picture of the trace, and the picture with a heat map over it for each word.

    `words` are as `trace.heat_map` takes them ("猫", "猫#2", Word, span). None means all words of the prompt, except
    those that were cut from it or not recorded. All maps share one scale, from 0 to the largest value, in attention
    probability for each cell, so they can be compared. The share beside a word is the mean of its map: its part of all
    the attention of the image's cells. `maps` are the heat maps of these words, if they are known already.
    `width` is that of the figure in inches: 3.3 fits one column of a paper. By default it follows from the number of
    tiles. `picture=False` leaves the first tile out, the picture by itself. `language` of the labels: zh or en.

    Raises ToushiError for a width that is too small, UnknownWord for a word that is not in the prompt, and NotRecorded
    for a map that the trace does not have.
    """
    if not isinstance(width, int | float | None):
        raise ToushiError(f"width must be a number of inches, such as 3.3, but {width!r} came")
    asked = words_to_draw(trace, words, branch)
    if maps is None:
        maps = [trace.heat_map(word, branch=branch, steps=steps, sites=sites) for word in asked]
    background = background_picture(trace)
    top = max((float(heat.max()) for heat in maps), default=0.0)

    picture = picture or not maps
    tiles = picture + len(maps)
    rows = -(-tiles // columns)
    columns = -(-tiles // rows)  # rows of nearly equal length
    bar = BAR if maps else 0
    side = SIDE if width is None else (width - GAP - bar) / columns - GAP
    if side < LEAST:
        least = columns * (LEAST + GAP) + GAP + bar
        raise ToushiError(f"width must be at least {least:.1f} inches for {columns} columns; {width} came")
    tall = side * background.shape[0] / background.shape[1]
    wide = columns * (side + GAP) + GAP + bar
    caption = caption_lines(trace, branch, int(columns * (side + GAP) * 13.7), language)
    how = maps[0].attrs["rule"] if maps else translate(language, en="no words", zh="没有词")
    how = translate(language, en=how, zh="先平均一处的各头，再平均各步，再平均各处") if how == PLAIN_MEAN else how
    unknown = {word.span for word in trace.unknown_words(branch)}
    marks = [UNKNOWN_MARK * (word.span in unknown) for word in asked]
    notes = [f"{UNKNOWN_MARK} {UNKNOWN_WORDS.translate(language)}"] * any(marks)
    foot = fold(footnote(trace, branch, how, *notes), int((wide - 2 * GAP) * 21))
    head = 0.2 * len(caption) + 0.12
    size = (wide, head + rows * (tall + TITLE) + 0.18 + 0.12 * len(foot))
    figure = StyledFigure(figsize=size)
    # One axes for the whole page, in inches from its top left corner: axes of its own for each picture take half of
    # the time that the figure takes.
    page = figure.add_axes((0, 0, 1, 1))
    page.set_axis_off()
    for i, line in enumerate(caption):
        page.text(GAP, 0.08 + 0.2 * i, line, va="top", size=10)

    title = Bilingual(en="picture", zh="图像") if trace.complete else Bilingual(en="picture so far", zh="目前的图像")
    panels = [(background, title.translate(language), "")] * picture
    for heat, name, mark in zip(maps, word_labels(asked, trace.words(branch)), marks):
        label = truncate(name, max(3, int(11 * side / SIDE)) - len(mark)) + mark
        panels.append((overlay(background, heat.values, top), label, percent(float(mass(heat)))))
    name_size, note_size = (11, 8) if side > 0.9 else (8, 7)  # narrow tiles have room for little more than a word
    for i, (image, name, note) in enumerate(panels):
        row, column = divmod(i, columns)
        left, under = GAP + column * (side + GAP), head + row * (tall + TITLE) + TITLE + tall
        page.imshow(image, interpolation="nearest", extent=(left, left + side, under, under - tall), aspect="auto")
        page.text(left, under - tall - 0.06, drawable(name), size=name_size if note else min(9, name_size), va="bottom")
        page.text(left + side, under - tall - 0.06, note, ha="right", va="bottom", size=note_size, color=FAINT)
    page.set(xlim=(0, size[0]), ylim=(size[1], 0))  # imshow set them to its own picture
    if maps:
        left = columns * (side + GAP) + GAP
        place = (left / size[0], 1 - (head + TITLE + tall) / size[1], 0.11 / size[0], tall / size[1])
        colour_bar(figure, place, top, PROBABILITY.translate(language), overlay_colours())
    page.text(GAP, size[1] - 0.08, "\n".join(foot), size=7, color=FAINT, va="bottom")
    return figure


def words_to_draw(trace: Trace, words: Sequence[WordSpec] | None, branch: str) -> list[Word]:
    """These words, or every word to which the trace holds some attention."""
    known = trace.words(branch)
    if words is None:
        tokens = trace.places(branch)
        return [word for word in known if token_shares(tokens, word.span).any()]
    if isinstance(words, str | Word) or not isinstance(words, Iterable):
        raise ToushiError(f"expected a list of words, but {words!r} came; write [{words!r}]")
    prompt = trace.manifest.prompt_of(branch) or ""
    spans = [find_word(prompt, known, word) for word in words]
    return [Word(prompt[start:end], start, end) for start, end in spans]


def background_picture(trace: Trace) -> np.ndarray:
    """uint8 [Y, X, 3]: the picture, or the last preview of a run that did not finish, or grey."""
    picture = trace.image()
    if picture is None and trace.steps:
        picture = trace.preview(trace.steps[-1])
    return np.full((64, 64, 3), 200, np.uint8) if picture is None else np.asarray(picture)


def caption_lines(trace: Trace, branch: str, width: int, language: str) -> list[str]:
    """The prompt of the branch in at most three lines of `width` cells; a wide character takes two."""
    lines, prompt = [""], trace.manifest.prompt_of(branch)
    none = translate(language, en="(empty prompt)", zh="（空提示词）")
    if prompt is None:
        none = translate(language, en="(prompt not known)", zh="（提示词未知）")
    for character in drawable(prompt or "") or none:
        if text_width(lines[-1]) >= width:
            lines.append("")
        lines[-1] += character
    return lines[:3] if len(lines) <= 3 else [*lines[:2], lines[2][:-1] + "…"]


def fold(text: str, width: int) -> list[str]:
    """The text in lines of about `width` cells, broken at spaces and after Chinese punctuation."""
    lines = [""]
    for part in re.findall(r"[^ ，。]*[ ，。]*", text):
        if lines[-1] and text_width(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def footnote(trace: Trace, *notes: str) -> str:
    """The line at the foot of a figure: the model, and notes."""
    return drawable("  ·  ".join(part for part in (trace.manifest.name_of_model, *notes) if part))
