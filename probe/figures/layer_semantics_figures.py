"""What can be read from each layer of a text encoder: probes at three levels, characters inside words, two languages."""

import pandas as pd

from toushi.probe.base.bilingual_text import Bilingual, translate
from toushi.probe.figures.style import (
    CATEGORIES,
    FAINT,
    INK,
    LAYER,
    PAGE,
    StyledFigure,
    draw_band,
    draw_intervals,
    rows_where,
    set_layer_axis,
    styled,
    with_caption,
)

NAMES = {
    "words": Bilingual(en="words", zh="词"),
    "phrases": Bilingual(en="phrases", zh="短语"),
    "prompts": Bilingual(en="whole prompt", zh="整句"),
    "word": Bilingual(en="at a word", zh="在词处"),
    "last token": Bilingual(en="at the last token", zh="在末词元处"),
    "object": Bilingual(en="which object a word is", zh="词是哪个物体"),
    "colour": Bilingual(en="a noun's colour", zh="名词的颜色"),
    "noun": Bilingual(en="a colour's noun", zh="颜色的名词"),
    "place": Bilingual(en="place", zh="地点"),
    "style": Bilingual(en="style", zh="风格"),
    "layout": Bilingual(en="layout", zh="布局"),
    "number": Bilingual(en="number of objects", zh="物体数量"),
    "trained": Bilingual(en="trained", zh="训练过"),
    "random": Bilingual(en="random weights", zh="随机权重"),
    "parallel": Bilingual(en="phrases of parallel sentences", zh="对照句子中的短语"),
    "scenes": Bilingual(en="words of scene captions", zh="场景描述中的词"),
    "polysemy": Bilingual(en="ordinary sentences", zh="日常句子"),
}


def display_name(name: str, language: str) -> str:
    return NAMES[name].translate(language) if name in NAMES else name


@styled
def levels_figure(levels: pd.DataFrame, onsets: pd.DataFrame, language: str) -> StyledFigure:
    """Selectivity of words, phrases and whole prompts by layer; below, the first layer that has each level.

    `levels` has weights, level, where, layer, selectivity, low, high; `onsets` weights, level, where, onset, low, high,
    claim_first, claim_last. Thin lines are the untrained encoder; grey bars are the layers that the claim gives a level.
    """
    shown = [("words", "word"), ("phrases", "word"), ("prompts", "word"), ("prompts", "last token")]
    figure = StyledFigure(figsize=(PAGE, 3.7))
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    names, colours = [], [*CATEGORIES[:3], CATEGORIES[2]]
    for index, ((level, where), colour) in enumerate(zip(shown, colours)):
        look = {"linestyle": ":" if where != "word" else "-"}
        name = ", ".join(display_name(part, language) for part in (level, where) if part != "word")
        names.append(name)
        for kind in ("random", "trained"):
            part = rows_where(levels, weights=kind, level=level, where=where)
            if kind == "trained":
                draw_band(axes, part, "selectivity", colour, label=name, **look)
            else:
                axes.plot(part.layer, part.selectivity, color=colour, linewidth=0.6, alpha=0.8, **look)
        own = rows_where(onsets, weights="trained", level=level, where=where)
        for first, last in zip(own.claim_first, own.claim_last):
            below.barh(index, last - first + 0.8, left=first - 0.4, color="#e4e4e4")
        draw_intervals(below, index, own, "onset", colour, linewidth=2)
    axes.axhline(0, color=FAINT, linewidth=0.5)
    axes.set_ylabel(translate(language, en="selectivity", zh="选择性"))
    title = translate(language, en="thin: random weights", zh="细线：随机权重")
    axes.legend(fontsize=7, title=title, title_fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    below.set_yticks(range(len(names)), names, fontsize=7)
    below.set_ylim(len(names) - 0.4, -0.6)
    title = translate(
        language,
        en="first layer with 80 % of the maximum; grey: layers of the claim",
        zh="达到最大值 80% 的首层及区间；灰：说法所称的层",
    )
    set_layer_axis(below, levels.layer, language, title, 7)
    figure.subplots_adjust(left=0.26, right=0.7, bottom=0.12, top=0.97, hspace=0.22)
    return with_caption(
        figure,
        language,
        en="Selectivity (accuracy minus that on control tasks) by layer, with 95 % intervals. Below: the first layer that has "
        "each level.",
        zh="各层的选择性（准确率减去控制任务的准确率），带 95% 区间。下：最早具备每一级的层。",
    )


@styled
def tasks_figure(tasks: pd.DataFrame, language: str) -> StyledFigure:
    """Accuracy of each probe by layer: trained with its interval, its control tasks dashed, random weights thin.

    `tasks` has weights, level, task, where, layer, accuracy, low, high, control, chance.
    """
    panels = list(tasks[["level", "task", "where"]].drop_duplicates().itertuples(index=False))
    columns = 4
    rows = -(-len(panels) // columns)
    figure = StyledFigure(figsize=(PAGE, 1.55 * rows + 0.75))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, panel in zip(grid.flat, panels):
        level, task, where = panel
        colour = CATEGORIES[("words", "phrases", "prompts").index(level)]
        own = rows_where(tasks, level=level, task=task, where=where)
        part, floor = (rows_where(own, weights=kind) for kind in ("trained", "random"))
        draw_band(axes, part, "accuracy", colour)
        axes.plot(part.layer, part.control, color=colour, linewidth=0.9, linestyle="--")
        axes.plot(floor.layer, floor.accuracy, color=INK, linewidth=0.7)
        axes.axhline(part.chance.iloc[0], color=FAINT, linewidth=0.5)
        name = display_name(task, language)
        if where != "word":
            name += translate(language, en=" (last token)", zh="（末词元）")
        axes.set_title(name, fontsize=8, loc="left", pad=2)
        set_layer_axis(axes, part.layer, language, reach=(0, 1.03), label=Bilingual.same(""))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    above = grid.flat[len(panels) - columns : len(panels)] if len(panels) >= columns else grid.flat[: len(panels)]
    for axes in above:
        axes.set_xlabel(LAYER.translate(language), fontsize=8)
        axes.tick_params(labelbottom=True)
    for row in grid:
        row[0].set_ylabel(translate(language, en="accuracy", zh="准确率"))
    figure.text(
        0.99,
        0.995,
        translate(
            language,
            en="dashed: control tasks    thin black: random weights    grey: chance",
            zh="虚线：控制任务　黑细线：随机权重　灰线：随机水平",
        ),
        ha="right",
        va="top",
        fontsize=7,
        color=FAINT,
    )
    tall = figure.get_figheight()
    figure.subplots_adjust(left=0.08, right=0.99, bottom=0.42 / tall, top=1 - 0.4 / tall, hspace=0.5, wspace=0.12)
    return with_caption(
        figure, language, en="Accuracy of the probe of each task, by layer.", zh="各任务的探针准确率，逐层。"
    )


@styled
def inside_figure(inside: pd.DataFrame, language: str) -> StyledFigure:
    """How often the state of a character inside a word, or of a character's first byte, finds its own, by layer.

    `inside` has part, weights, which, layer, retrieval, retrieval_low, retrieval_high, retrieval_shuffled, items.
    """
    titles = {
        "own token": Bilingual(en="character inside a word, token of its own", zh="词中字，自成词元"),
        "part of a token": Bilingual(en="character inside a word, joined into a token", zh="词中字，并入词元"),
        "first of several tokens": Bilingual(en="first token of a rare character", zh="生僻字的首个词元"),
    }
    panels = list(inside.which.drop_duplicates())
    figure = StyledFigure(figsize=(min(PAGE, max(3.4, 2.3 * len(panels))), 2.4))
    for axes, which in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels):
        for kind, colour in zip(("trained", "random"), CATEGORIES):
            part = rows_where(inside, which=which, weights=kind)
            draw_band(axes, part, "retrieval", colour, label=display_name(kind, language))
            axes.plot(part.layer, part.retrieval_shuffled, color=colour, linewidth=0.8, linestyle="--")
        set_layer_axis(axes, inside.layer, language, titles[which].translate(language), 7, (0, 1.03))
    figure.axes[0].set_ylabel(translate(language, en="share that finds itself", zh="找到自身的比例"))
    figure.axes[0].legend(
        fontsize=7,
        title=translate(language, en="dashed: shuffled", zh="虚线：打乱"),
        title_fontsize=7,
        loc="center right",
    )
    figure.subplots_adjust(left=0.55 / figure.get_figwidth(), right=0.99, bottom=0.2, top=0.9, wspace=0.1)
    return with_caption(
        figure,
        language,
        en="Does 马 in 河马 still resemble 马? How often a character inside a word is nearest to itself among single characters; "
        "and whether the first token of a rare character identifies it.",
        zh="“河马”里的“马”是否仍像单独的“马”：词中字的状态在单字中最接近自身的比例；生僻字的首个词元能否确定是哪个字。",
    )


@styled
def languages_figure(layers: pd.DataFrame, language: str) -> StyledFigure:
    """How often a Chinese state finds its English partner and the other way round, by layer.

    `layers` has data, weights, layer, retrieval, retrieval_low, retrieval_high, retrieval_shuffled_high,
    retrieval_uncentred. One panel for each of the data sets.
    """
    data = list(layers.data.drop_duplicates())
    figure = StyledFigure(figsize=(2.6 * len(data) + 0.9, 2.5))
    for axes, name in zip(figure.subplots(1, len(data), sharey=True, squeeze=False)[0], data):
        for kind, colour in zip(("trained", "random"), CATEGORIES):
            part = rows_where(layers, data=name, weights=kind)
            draw_band(axes, part, "retrieval", colour, label=display_name(kind, language))
            axes.plot(part.layer, part.retrieval_shuffled_high, color=colour, linewidth=0.8, linestyle="--")
            if kind == "trained":
                label = translate(language, en="means not subtracted", zh="未减均值")
                axes.plot(part.layer, part.retrieval_uncentred, color=colour, linewidth=0.9, linestyle=":", label=label)
        set_layer_axis(axes, layers.layer, language, display_name(name, language), reach=(0, 1.03))
    figure.axes[0].set_ylabel(translate(language, en="share that finds its partner", zh="找到对应者的比例"))
    title = translate(language, en="dashed: shuffled, 95 %", zh="虚线：打乱后 95% 分位")
    figure.axes[-1].legend(fontsize=7, title=title, title_fontsize=7, loc="best")
    figure.subplots_adjust(left=0.5 / figure.get_figwidth(), right=0.98, bottom=0.19, top=0.9, wspace=0.08)
    return with_caption(
        figure,
        language,
        en="The same word in Chinese and English: how often its partner is nearest by cosine among all candidates of the other "
        "language (mean of both directions), by layer, with 95 % intervals.",
        zh="中英文中的同一个词：在另一语言全部候选中按余弦找到对应者的比例（两个方向的平均），逐层，带 95% 区间。",
    )
