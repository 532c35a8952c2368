"""How well each layer of a text encoder separates the senses of a word, and which other words decide the sense."""

import matplotlib
import numpy as np
import pandas as pd

from toushi.probe.base.bilingual_text import Bilingual, translate
from toushi.probe.base.text_width import text_width
from toushi.probe.figures.fonts import drawable
from toushi.probe.figures.style import (
    CATEGORIES,
    FAINT,
    PAGE,
    SEQUENTIAL,
    SHORT,
    StyledFigure,
    colour_bar,
    draw_band,
    is_upright,
    name_matrix,
    rows_where,
    set_layer_axis,
    styled,
    with_caption,
)

PLACES = {
    "both": Bilingual(en="all sentences", zh="全部句子"),
    "before": Bilingual(en="context before the word", zh="语境在词前"),
    "after": Bilingual(en="context after the word", zh="语境在词后"),
}


@styled
def senses_figure(senses: pd.DataFrame, language: str) -> StyledFigure:
    """Accuracy of read senses by layer, mean over words with its interval; dashed, with the senses shuffled.

    `senses` has weights, where (word, neighbour), place (both, before, after), layer, accuracy, low, high,
    accuracy_shuffled; a bag of the words around (where) has no layers but 0. A panel for each place of the context.
    """
    lines = [
        ("trained", "word", translate(language, en="the word", zh="该词")),
        ("trained", "neighbour", translate(language, en="its neighbour", zh="邻字")),
        ("random", "word", translate(language, en="the word, random weights", zh="该词，随机权重")),
    ]
    figure = StyledFigure(figsize=(PAGE, 2.5))
    for axes, (place, title) in zip(figure.subplots(1, 3, sharey=True), PLACES.items()):
        for colour, (weights, where, label) in zip(CATEGORIES, lines):
            part = rows_where(senses, place=place, weights=weights, where=where)
            if len(part):
                draw_band(axes, part, "accuracy", colour, label=label)
                axes.plot(part.layer, part.accuracy_shuffled, color=colour, linewidth=0.7, linestyle="--")
        for bag in rows_where(senses, place=place, where="bag").accuracy:
            label = translate(language, en="bag of words", zh="词袋")
            axes.axhline(bag, color=CATEGORIES[3], linewidth=0.9, linestyle=":", label=label)
        axes.axhline(0.5, color=FAINT, linewidth=0.5)
        lowest = min(0.2, float(senses.accuracy.min()) - 0.02)
        set_layer_axis(axes, senses.layer, language, title.translate(language), 9, (lowest, 1.02))
    figure.axes[0].set_ylabel(translate(language, en="senses read correctly", zh="词义读对的比例"))
    title = translate(language, en="dashed: senses shuffled", zh="虚线：打乱词义")
    figure.axes[0].legend(loc="lower right", title=title, title_fontsize=6, fontsize=6, labelspacing=0.2)
    figure.subplots_adjust(left=0.08, right=0.99, bottom=0.19, top=0.9, wspace=0.07)
    return with_caption(
        figure,
        language,
        en="How often the sense is read correctly from the word's own state, by layer: mean over words, with 95 % intervals "
        "that resample words.",
        zh="逐层从词自身的状态读出词义的正确率，对词取平均，带 95% 区间（对词重抽样）。",
    )


@styled
def changes_figure(left_out: pd.DataFrame, language: str) -> StyledFigure:
    """Change of the word's state, by layer, when a word of the deciding or of the shared side is left out.

    `left_out` has place (before, after), side (decides, shared), layer, change, low, high.
    """
    sides = {
        "decides": translate(language, en="side that decides", zh="决定词义的一侧"),
        "shared": translate(language, en="shared side", zh="相同的一侧"),
    }
    figure = StyledFigure(figsize=(4.8, 2.5))
    places = [place for place in ("before", "after") if (left_out.place == place).any()]
    for axes, place in zip(figure.subplots(1, len(places), sharey=True, squeeze=False)[0], places):
        for colour, (side, label) in zip(CATEGORIES, sides.items()):
            part = rows_where(left_out.loc[left_out.layer > 0], place=place, side=side)
            draw_band(axes, part, "change", colour, label=label)
        set_layer_axis(axes, left_out.layer, language, PLACES[place].translate(language), 9, (0, None), SHORT)
    figure.axes[0].set_ylabel(translate(language, en="change of state (1 - cosine)", zh="状态变化（1 − 余弦）"))
    figure.axes[-1].legend(fontsize=7)
    figure.subplots_adjust(left=0.13, right=0.98, bottom=0.19, top=0.9, wspace=0.08)
    return with_caption(
        figure,
        language,
        en="Change of the word's state when one other word is left out, by layer: a word of the side that decides the "
        "sense, or of the shared side.",
        zh="去掉另一个词时，该词状态的变化，逐层：去掉的词在决定词义的一侧，或在相同的一侧。",
    )


@styled
def matrix_figure(example: pd.DataFrame, language: str, layers: int = 3) -> StyledFigure:
    """Word-by-word matrices of a sentence at some layers: a row for each word's state, a column for the word left out.

    `example` has sentence, layer, query, read, value. Each layer has a scale of its own, to its largest value.
    """
    words = list(example["query"].drop_duplicates())
    names = [drawable(word) for word in words]
    side = max(1.0, 0.17 * len(words))
    left = 0.2 + 0.085 * max(map(text_width, names))
    layers = max(1, min(layers, int((PAGE - left) / (side + 0.6))))
    every = [layer for layer in sorted(example.layer.unique()) if layer]
    chosen = [every[place] for place in np.linspace(0, len(every) - 1, min(layers, len(every))).round().astype(int)]
    above = 0.75 + max(0.13 * len(name) if is_upright(name) else 0.07 * text_width(name) for name in names)
    wide, tall = left + len(chosen) * (side + 0.6), above + side + 0.25
    figure = StyledFigure(figsize=(wide, tall))
    figure.text(0.1 / wide, 1 - 0.08 / tall, drawable(str(example.sentence.iloc[0])), va="top", size=10)
    for index, layer in enumerate(chosen):
        part = example[example.layer == layer]
        table = part.pivot(index="query", columns="read", values="value")
        values = table.reindex(index=words, columns=words).to_numpy(float)
        x = left + index * (side + 0.6)
        axes = figure.add_axes((x / wide, 0.25 / tall, side / wide, side / tall))
        top = float(values[np.isfinite(values)].max(initial=0)) or 1.0
        axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="nearest")
        name_matrix(axes, names if not index else [""] * len(names), names, fontsize=7)
        figure.text(
            x / wide, 1 - 0.34 / tall, translate(language, en=f"layer {layer}", zh=f"第 {layer} 层"), va="top", size=8
        )
        place = ((x + side + 0.06) / wide, 0.25 / tall, 0.07 / wide, side / tall)
        colour_bar(figure, place, top, "", matplotlib.colormaps[SEQUENTIAL]).tick_params(labelsize=6)
    note = translate(
        language, en="row: whose state changes; column: the word left out", zh="行：谁的状态变化；列：去掉的词"
    )
    figure.text(0.1 / wide, 0.06 / tall, note, size=7, color=FAINT, va="bottom")
    return with_caption(
        figure,
        language,
        en=f"Change of the other words' states when one word of “{example.sentence.iloc[0]}” is left out (1 - cosine). "
        "Each layer has a scale of its own.",
        zh=f"去掉“{example.sentence.iloc[0]}”中的一个词时，其余各词状态的变化（1 − 余弦）。各层标尺不同。",
    )
