"""Which parts of pictures are right, by layer and by model, and the pictures themselves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from toushi.probe.base.bilingual_text import Bilingual, translate
from toushi.probe.base.text_width import truncate
from toushi.probe.figures.embedded_picture import decode_picture
from toushi.probe.figures.fonts import drawable
from toushi.probe.figures.style import (
    CATEGORIES,
    FAINT,
    INK,
    PAGE,
    SHORT,
    StyledFigure,
    draw_band,
    draw_intervals,
    rows_where,
    set_layer_axis,
    styled,
    with_caption,
)

NAMES = {
    "object": Bilingual(en="objects", zh="物体"),
    "colour": Bilingual(en="colours", zh="颜色"),
    "position": Bilingual(en="positions", zh="位置"),
    "place": Bilingual(en="places", zh="地点"),
    "colour, drawn": Bilingual(en="colours of objects drawn", zh="画出的物体的颜色"),
    "position, drawn": Bilingual(en="positions of objects drawn", zh="画出的物体的位置"),
    "sense, before": Bilingual(en="senses, context before", zh="词义，语境在前"),
    "sense, after": Bilingual(en="senses, context after", zh="词义，语境在后"),
    "choice, before": Bilingual(en="one of two senses, context before", zh="二义择一，语境在前"),
    "choice, after": Bilingual(en="one of two senses, context after", zh="二义择一，语境在后"),
    "bidirectional": Bilingual(en="bidirectional", zh="双向"),
    "causal": Bilingual(en="causal", zh="因果"),
    "word": Bilingual(en="at the word", zh="在词处"),
    "last token": Bilingual(en="at the last token", zh="在末词元处"),
    "before": Bilingual(en="context before", zh="语境在前"),
    "after": Bilingual(en="context after", zh="语境在后"),
}


def display_name(name: str, language: str) -> str:
    return NAMES[name].translate(language) if name in NAMES else name


@styled
def by_layer_figure(curves: pd.DataFrame, onsets: pd.DataFrame, language: str) -> StyledFigure:
    """Share of pictures that are right, by the layer that conditions them; below, the first layer that has each thing.

    `curves` has thing, layer, right, low, high; `onsets` thing, onset, low, high.
    """
    sense = curves.thing.str.startswith("sense")
    panels = [part for part in (curves[~sense], curves[sense]) if len(part)]
    figure = StyledFigure(figsize=(PAGE, 3.9))
    grid = figure.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1))
    for part, axes, below in zip(panels, *grid):
        things = [thing for thing in NAMES if thing in set(part.thing)]
        for index, thing in enumerate(things):
            whole = thing.removesuffix(", drawn")
            colour, line = CATEGORIES[things.index(whole)], "-" if whole == thing else (0, (3, 2))
            own = rows_where(part, thing=thing)
            draw_band(axes, own, "right", colour, label=display_name(thing, language), linestyle=line)
            there = rows_where(onsets.loc[onsets.onset >= 0], thing=thing)
            draw_intervals(below, index, there, "onset", colour, linewidth=2, solid_capstyle="butt")
        axes.set_ylim(0, 1.03)
        axes.legend(fontsize=7, loc="lower right")
        below.set_yticks([])
        set_layer_axis(below, part.layer, language, reach=(3.6, -0.6))
    grid[0, 0].set_ylabel(translate(language, en="share drawn right", zh="画对的比例"))
    title = translate(language, en="first layer with 80 % of the best one's share", zh="达到最佳层 80% 的首层及区间")
    grid[1, 0].set_title(title, loc="left", fontsize=8)
    figure.subplots_adjust(left=0.075, right=0.99, bottom=0.12, top=0.97, hspace=0.22, wspace=0.06)
    return with_caption(
        figure,
        language,
        en="Share of pictures, conditioned on layer k's output, in which what the prompt asks for is right, with 95 % "
        "intervals. Dashed: only among the objects that are drawn. Below: the first layer that has each thing.",
        zh="以第 k 层的输出为条件画出的图中，提示词所要的事物画对的比例，带 95% 区间。虚线只计已画出的物体。下：最早具备每样事物的层。",
    )


@styled
def pictures_figure(pictures: pd.DataFrame, language: str) -> StyledFigure:
    """A row of pictures for each prompt, from the embeddings to the last layer.

    `pictures` has prompt, layer, picture (text of `embed_picture`).
    """
    prompts, layers = list(dict.fromkeys(pictures.prompt)), sorted(set(pictures.layer))
    heads = [drawable(prompt) for prompt in prompts]
    columns = [
        translate(language, en=f"layer {k}" if k else "embeddings", zh=f"第 {k} 层" if k else "词嵌入") for k in layers
    ]
    grid = [
        [rows_where(pictures, prompt=prompt, layer=layer).picture.iloc[0] for layer in layers] for prompt in prompts
    ]
    figure = picture_grid(grid, heads, [column if i % 3 == 0 else "" for i, column in enumerate(columns)])
    return with_caption(
        figure,
        language,
        en="The same prompt and noise, drawn from layer k's output (final norm applied), layer by layer.",
        zh="同一提示、同一噪声，逐层以第 k 层的输出（经末端归一化）为条件画出的图。",
    )


@styled
def picture_grid(pictures: Sequence[Sequence[str]], rows: Sequence[str], columns: Sequence[str]) -> StyledFigure:
    """A table of embedded pictures, as wide as a page, with a name above each row and names of columns at the top."""
    gap, name = 0.03, 0.2
    head = 0.07 + 0.13 * max(text.count("\n") + 1 for text in columns)
    side = (PAGE - gap) / len(columns) - gap
    size = (PAGE, head + len(rows) * (side + name) + gap)
    figure = StyledFigure(figsize=size)
    page = figure.add_axes((0, 0, 1, 1))
    page.set_axis_off()
    for column, text in enumerate(columns):
        page.text(gap + column * (side + gap), 0.05, text, va="top", size=7, color=FAINT)
    for row, (text, some) in enumerate(zip(rows, pictures)):
        top = head + row * (side + name)
        page.text(gap, top + name - 0.04, text, va="bottom", size=8, color=INK)
        for column, picture in enumerate(some):
            left, under = gap + column * (side + gap), top + name + side
            place = (left, left + side, under, under - side)
            page.imshow(decode_picture(picture), interpolation="nearest", extent=place, aspect="auto")
    page.set(xlim=(0, size[0]), ylim=(size[1], 0))
    return figure


@styled
def twins_figure(rates: pd.DataFrame, differences: pd.DataFrame, language: str) -> StyledFigure:
    """Share that each twin draws right, for each thing, and beside it the difference between the twins.

    `rates` has model, thing, right, low, high; `differences` thing, difference, low, high.
    """
    things = [thing for thing in NAMES if thing in set(rates.thing)]
    figure = StyledFigure(figsize=(PAGE * 0.85, 0.32 * len(things) + 0.95))
    axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for index, thing in enumerate(things):
        for model, colour, shift in zip(("bidirectional", "causal"), CATEGORIES, (-0.13, 0.13)):
            label = display_name(model, language) if index == 0 else None
            own = rows_where(rates, thing=thing, model=model)
            draw_intervals(axes, index + shift, own, "right", colour, label, linewidth=1.6)
        draw_intervals(beside, index, rows_where(differences, thing=thing), "difference", INK, linewidth=1.6)
    beside.axvline(0, color=FAINT, linewidth=0.6)
    axes.set_yticks(range(len(things)), [display_name(thing, language) for thing in things])
    axes.set_ylim(len(things) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks(np.arange(0, 1.01, 0.25))
    beside.tick_params(axis="y", left=False)
    axes.set_xlabel(translate(language, en="share drawn right", zh="画对的比例"))
    beside.set_xlabel(translate(language, en="bidirectional − causal", zh="双向 − 因果"))
    axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    tall = figure.get_figheight()
    figure.subplots_adjust(left=0.3, right=0.98, bottom=0.45 / tall, top=1 - 0.25 / tall, wspace=0.14)
    return with_caption(
        figure,
        language,
        en="Share that each twin draws right, and the difference between them (same prompts and noise), with 95 % "
        "intervals. “Of objects drawn” and “one of two senses” count only what each of them drew.",
        zh="两个孪生模型画对的比例，及二者之差（同样的提示与噪声），带 95% 区间；“画出的物体”与“二义择一”只计各自画出者。",
    )


@styled
def read_out_figure(read: pd.DataFrame, language: str) -> StyledFigure:
    """Accuracy of senses read from the states, by layer: at the word and at the last token, context before and after.

    `read` has model, where, place, layer, accuracy, low, high, accuracy_shuffled.
    """
    figure = StyledFigure(figsize=(PAGE, 2.3))
    panels = [(where, place) for where in ("word", "last token") for place in ("before", "after")]
    for axes, (where, place) in zip(figure.subplots(1, 4, sharex=True, sharey=True), panels):
        for model, colour in zip(("bidirectional", "causal"), CATEGORIES):
            part = rows_where(read, model=model, where=where, place=place)
            draw_band(axes, part, "accuracy", colour, label=display_name(model, language))
            axes.plot(part.layer, part.accuracy_shuffled, color=colour, linewidth=0.8, linestyle="--")
        axes.axhline(0.5, color=FAINT, linewidth=0.5)
        comma = translate(language, en=", ", zh="，")
        title = display_name(where, language) + comma + display_name(place, language)
        lowest = min(0.35, float(read.low.min()))
        set_layer_axis(axes, read.layer, language, title, 7, (lowest, 1.03), SHORT)
    figure.axes[0].set_ylabel(translate(language, en="senses read", zh="读对的词义"))
    figure.axes[0].legend(
        fontsize=7, title=translate(language, en="dashed: shuffled", zh="虚线：打乱"), title_fontsize=7
    )
    figure.subplots_adjust(left=0.075, right=0.99, bottom=0.19, top=0.9, wspace=0.08)
    return with_caption(
        figure,
        language,
        en="Accuracy of senses read from the states, by layer, with 95 % intervals: at the word itself and at the last "
        "token, with the context before or after the word. At the word, a causal model cannot know what comes after it.",
        zh="从状态读出词义的准确率，逐层，带 95% 区间：在词自身处与末词元处，语境在词前与词后。语境在后时，因果模型在词处不可能知道。",
    )


@styled
def pairs_figure(pictures: pd.DataFrame, language: str) -> StyledFigure:
    """Minimal pairs as each twin draws them: a column for each prompt, a row for each model.

    `pictures` has model, prompt, picture.
    """
    models, prompts = list(dict.fromkeys(pictures.model)), list(dict.fromkeys(pictures.prompt))
    grid = [
        [rows_where(pictures, prompt=prompt, model=model).picture.iloc[0] for prompt in prompts] for model in models
    ]
    heads = [drawable(truncate(prompt, 30)).replace("，", "，\n", 1) for prompt in prompts]
    figure = picture_grid(grid, [display_name(model, language) for model in models], heads)
    return with_caption(
        figure,
        language,
        en="Minimal pairs: the same word and noise, only the context differs.",
        zh="最小对句：同一个词，只有语境不同，噪声相同。",
    )
