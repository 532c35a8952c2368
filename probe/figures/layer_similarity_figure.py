"""What each layer of a text encoder makes of a few sentences: how words change, which are alike, what they attend to."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from toushi.probe.analysis.layer_measures import cosine, evenly_spaced, mean_pairwise_cosine
from toushi.probe.base.bilingual_text import Bilingual, translate
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.text_width import text_width, truncate
from toushi.probe.figures.fonts import drawable
from toushi.probe.figures.style import (
    FAINT,
    PROBABILITY,
    SEQUENTIAL,
    StyledFigure,
    colour_bar,
    is_upright,
    name_matrix,
    styled,
)
from toushi.probe.trace.text_encoding import TextEncodings

CELL, GAP, HEAD, BAR = 0.2, 0.3, 0.42, 1.0  # inches
OTHERS = Bilingual(en="different words, mean", zh="不同词，平均")


@styled
def layer_similarity_figure(
    encodings: TextEncodings, layers: Sequence[int] | None = None, *, language: str = "en"
) -> StyledFigure:
    """Three blocks of maps from `encode_layers(encoder, texts)`, one scale in each block.

    1. For each text, the cosine of every word with its own embedding (layer 0), layer by layer. The last row is the
       mean cosine of different words at that layer: compare any similarity with it.
    2. For the first text and each other one, the cosines of their words at `layers`, by default four, evenly spaced.
    3. For each text, the attention of its words to each other, to other text and to special tokens at those layers:
       probability, mean over heads; rows sum to 1. Where the encoder's attention cannot be read, a note says why.

    `language` of the labels: zh or en.
    """
    if not len(encodings):
        raise ToushiError("expected at least one text, but none came")
    every = [int(number) for number in encodings[0].states["layer"].values]
    chosen = evenly_spaced(every[1:], 4) if layers is None else [check_layer(number, every) for number in layers]
    states = [encoding.word_states() for encoding in encodings]
    names = [[drawable(truncate(name, 12)) or "␣" for name in state["word"].values.tolist()] for state in states]

    blocks: list[Block] = []
    heads = [str(number) for number in every]
    own = []
    for index, (state, name) in enumerate(zip(states, names), 1):
        title = translate(language, en=f"sentence {index}", zh=f"句 {index}")
        own.append([Map(title, [*name, OTHERS.translate(language)], heads, cosine_with_embedding(state.values))])
    title = translate(language, en="each word beside its own embedding", zh="每个词与它自己的嵌入")
    unit = translate(language, en="cosine with layer 0", zh="与第 0 层的余弦")
    blocks.append((title, unit, own, (scale_start(own), 1.0)))
    if len(encodings) > 1:
        pairs = []
        for index, (other, name) in enumerate(zip(states[1:], names[1:]), 2):
            maps = [cosine(states[0].sel(layer=k).values, other.sel(layer=k).values) for k in chosen]
            titles = [translate(language, en=f"with {index}, layer {k}", zh=f"与句 {index}，第 {k} 层") for k in chosen]
            pairs.append([Map(title, names[0], name, values) for title, values in zip(titles, maps)])
        title = translate(
            language, en="words of sentence 1 (rows) beside those of another", zh="句 1 的词（行）与另一句的词"
        )
        blocks.append((title, translate(language, en="cosine", zh="余弦"), pairs, (scale_start(pairs), 1.0)))
    blind = next((f"layer {k} {why}" for encoding in encodings for k, why in encoding.blind.items()), "")
    note = blind and translate(language, en=f"attention is not shown: {blind}", zh=f"没有显示注意力：{blind}")
    attention_layers = [] if note else [k for k in chosen if k]  # layer 0 is the embeddings, which have no attention
    if attention_layers:
        rows = []
        for index, (encoding, name) in enumerate(zip(encodings, names), 1):
            attention = encoding.word_attention().mean("head")
            titles = [
                translate(language, en=f"sentence {index}, layer {k}", zh=f"句 {index}，第 {k} 层")
                for k in attention_layers
            ]
            columns = [
                *name,
                translate(language, en="other %", zh="其他％"),
                translate(language, en="special %", zh="特殊％"),
            ]
            maps = [attention.sel(layer=k).values for k in attention_layers]
            rows.append([Map(title, name, columns, part, percent_columns=2) for title, part in zip(titles, maps)])
        top = max((float(one.coloured.max()) for row in rows for one in row if one.coloured.size), default=1.0)
        title = translate(
            language,
            en="what the words (rows) attend to: other words, other text, special tokens",
            zh="每个词（行）关注什么：别的词、其他文字、特殊词元",
        )
        blocks.append((title, PROBABILITY.translate(language), rows, (0.0, top)))
    return _page(encodings, blocks, note or translate(language, en="mean of heads", zh="各头平均"))


@dataclass(frozen=True)
class Map:
    """One matrix with names along both sides. Its last columns may be written in percent in place of a colour."""

    title: str
    rows: list[str]
    columns: list[str]
    values: np.ndarray
    percent_columns: int = 0

    @property
    def coloured(self) -> np.ndarray:
        return self.values[:, : len(self.columns) - self.percent_columns]

    @property
    def left(self) -> float:
        """Inches for the names of the rows."""
        return 0.12 + 0.078 * max(map(text_width, self.rows), default=0)

    @property
    def above(self) -> float:
        """Inches for the title and the names of the columns."""
        upright = [0.145 * len(name) if is_upright(name) else 0.078 * text_width(name) for name in self.columns]
        return 0.1 + max(upright, default=0) + (0.2 if self.title else 0)

    @property
    def slot(self) -> float:
        """Width of the matrix, or of its title where that is wider."""
        return max(self.size[0], 0.075 * text_width(self.title))

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the matrix itself."""
        return max(1, len(self.columns)) * CELL, max(1, len(self.rows)) * CELL


Block = tuple[str, str, list[list[Map]], tuple[float, float]]  # title, unit, rows of maps, scale


def scale_start(rows: list[list[Map]]) -> float:
    """Where the scale begins: 0, or the lowest value if that is negative."""
    values = [one.values[np.isfinite(one.values)] for row in rows for one in row]
    return min(0.0, *(float(one.min()) for one in values if one.size), 0.0)


def cosine_with_embedding(states: np.ndarray) -> np.ndarray:
    """[word + 1, layer]: cosine of each word with its embedding, and in the last row the mean of different words."""
    own = np.array([cosine(word[:1], word)[0] for word in np.swapaxes(states, 0, 1)]).reshape(-1, len(states))
    return np.concatenate([own, mean_pairwise_cosine(states)[None]])


def check_layer(number: int, every: Sequence[int]) -> int:
    """The number of the layer. Raises ToushiError where the encoder has no such layer."""
    if number not in every:
        raise ToushiError(f"there is no layer {number}; the encoder has {every[0]} (the embeddings) to {every[-1]}")
    return number


def _page(encodings: TextEncodings, blocks: Sequence[Block], note: str) -> StyledFigure:
    texts = [drawable(encoding.text) for encoding in encodings]
    caption = [truncate(f"{index}  {text}", 110) for index, text in enumerate(texts, 1)]
    wide, tall = 0.0, 0.3 + 0.2 * len(caption)
    for _, _, rows, _ in blocks:
        tall += HEAD + sum(max(one.above + one.size[1] for one in row) + GAP / 2 for row in rows if row)
        wide = max([wide, *(sum(one.left + one.slot + GAP for one in row) for row in rows)])
    tall += 0.35
    wide = max(wide + 0.2 + BAR, 0.5 + 0.08 * max(map(text_width, [*caption, note[:110]])), 4.0)
    figure = StyledFigure(figsize=(wide, tall))

    def write(x: float, y: float, text: str, **look) -> None:
        figure.text(x / wide, 1 - y / tall, text, va="top", **look)

    for index, line in enumerate(caption):
        write(0.15, 0.12 + 0.2 * index, line, size=11)
    y = 0.2 + 0.2 * len(caption)
    for title, unit, rows, (low, top) in blocks:
        write(0.15, y + 0.1, title, size=10)
        y += HEAD
        begin, right = y, 0.0
        for row in filter(None, rows):
            x, above = 0.15, max(one.above for one in row)
            for one in row:
                x += one.left
                place = (x / wide, 1 - (y + above + one.size[1]) / tall, one.size[0] / wide, one.size[1] / tall)
                _matrix(figure.add_axes(place), one, low, top)
                x += one.slot + GAP
            right = max(right, x)
            y += above + max(one.size[1] for one in row) + GAP / 2
        first = next(row[0] for row in rows if row)
        length = min(max(first.size[1], 0.9), 2.2)
        place = (right / wide, 1 - (begin + first.above + length) / tall, 0.11 / wide, length / tall)
        bar = colour_bar(figure, place, 1.0, unit, matplotlib.colormaps[SEQUENTIAL])
        bar.set_yticks([0, 0.5, 1], [f"{value:.2f}" for value in (low, (low + top) / 2, top)])
    foot = "  ·  ".join(part for part in (encodings.encoder, note) if part)
    figure.text(0.15 / wide, 0.08 / tall, drawable(truncate(foot, 150)), size=7, va="bottom", color=FAINT)
    return figure


def _matrix(axes: Axes, entry: Map, low: float, top: float) -> None:
    if entry.coloured.size:
        axes.imshow(entry.coloured, cmap=SEQUENTIAL, vmin=low, vmax=top, interpolation="nearest", aspect="auto")
    for row, column in np.ndindex(len(entry.rows), entry.percent_columns):
        place = len(entry.columns) - entry.percent_columns + column
        axes.text(place, row, f"{100 * entry.values[row, place]:.0f}", size=7, ha="center", va="center")
    axes.set(xlim=(-0.5, max(1, len(entry.columns)) - 0.5), ylim=(max(1, len(entry.rows)) - 0.5, -0.5))
    name_matrix(axes, entry.rows, entry.columns)
    for label, name in zip(axes.get_xticklabels(), entry.columns):
        if name.isdigit():  # the number of a layer
            label.set_rotation(0)
    if entry.title:
        axes.text(
            0, 1 + (entry.above - 0.22) / entry.size[1], entry.title, transform=axes.transAxes, size=8, va="bottom"
        )
