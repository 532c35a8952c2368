"""How well maps point, and how well they foretell what changes without a word."""

import pandas as pd
from matplotlib.axes import Axes

from toushi.probe.base.bilingual_text import Bilingual, translate
from toushi.probe.figures.style import (
    CATEGORIES,
    FAINT,
    PAGE,
    StyledFigure,
    draw_intervals,
    rows_where,
    styled,
    with_caption,
)

REMOVALS = {
    "written": Bilingual(en="not written", zh="不写该词"),
    "attended": Bilingual(en="not attended to", zh="不关注该词"),
}
KINDS = {"noised": Bilingual(en="real scenes", zh="真实场景"), "generated": Bilingual(en="generated", zh="生成的图")}
SHOWN = {
    "pointing_game": Bilingual(en="peak on the object", zh="峰值在物体上"),
    "average_precision": Bilingual(en="average precision", zh="平均精度"),
    "cells": Bilingual(en="correlation with the change, by cells", zh="与变化的相关（逐格）"),
}


@styled
def foretell_figure(regions: pd.DataFrame, language: str) -> StyledFigure:
    """Rank correlation, over words, between their share in a region and the effect of removing them on it.

    `regions` has kind, time, removal, method, measure, mean, low, high.
    """
    table = rows_where(regions, measure="correlation")
    panels = list(dict.fromkeys(zip(table.kind, table.time)))
    methods = list(dict.fromkeys(table.method))
    figure = StyledFigure(figsize=(PAGE, 0.21 * len(methods) + 0.9))
    grid = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (kind, time) in zip(grid, panels):
        for (removal, name), colour, shift in zip(REMOVALS.items(), CATEGORIES, (-0.15, 0.15)):
            for index, method in enumerate(methods):
                rows = rows_where(table, kind=kind, time=time, removal=removal, method=method)
                label = name.translate(language) if index == 0 else None
                draw_intervals(axes, index + shift, rows, "mean", colour, label, linewidth=1.2)
        for line in (0, 0.5):
            axes.axvline(line, color=FAINT, linewidth=0.5)
        axes.set_title(f"{KINDS[kind].translate(language)}, t = {time:g}", loc="left", fontsize=8)
        _name_rows(axes, methods)
    grid[0].set_xlabel(translate(language, en="rank correlation", zh="秩相关"))
    figure.legend(*grid[0].get_legend_handles_labels(), fontsize=7, loc="lower right", ncols=2)
    tall = figure.get_figheight()
    figure.subplots_adjust(left=0.25, right=0.99, bottom=0.45 / tall, top=1 - 0.3 / tall, wspace=0.08)
    return with_caption(
        figure,
        language,
        en="For each object's region, words are ranked by the share of their map in it and by the effect of removing them on "
        "it: the mean of Spearman's correlation, with 95 % intervals over scenes.",
        zh="对每个物体的区域，各词一按其图落在其中的份额、一按删去它对该区域的影响排序：斯皮尔曼相关的均值，带对场景重抽样的 95% 区间。",
    )


@styled
def measures_figure(maps: pd.DataFrame, language: str) -> StyledFigure:
    """How well the maps of objects' words point: three measures of each method, at each time.

    `maps` has kind, time, role, method, measure, mean, low, high.
    """
    table = rows_where(maps, role="object")
    table = table.loc[~table.method.str.contains(", head")]
    panels, methods = list(dict.fromkeys(zip(table.kind, table.time))), list(dict.fromkeys(table.method))
    figure = StyledFigure(figsize=(PAGE, 0.21 * len(methods) + 1.1))
    grid = figure.subplots(1, len(SHOWN), sharey=True)
    for axes, (measure, name) in zip(grid, SHOWN.items()):
        for number, ((kind, time), colour) in enumerate(zip(panels, CATEGORIES)):
            shift = 0.22 * (number - (len(panels) - 1) / 2)
            for index, method in enumerate(methods):
                rows = rows_where(table, kind=kind, time=time, method=method, measure=measure)
                label = f"{KINDS[kind].translate(language)}, t = {time:g}" if index == 0 else None
                draw_intervals(axes, index + shift, rows, "mean", colour, label, linewidth=1.2)
        axes.set_title(name.translate(language), loc="left", fontsize=7.5)
        _name_rows(axes, methods)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="lower center", ncols=len(panels))
    tall = figure.get_figheight()
    figure.subplots_adjust(left=0.25, right=0.99, bottom=0.55 / tall, top=1 - 0.3 / tall, wspace=0.1)
    return with_caption(
        figure,
        language,
        en="Maps of objects' words: the share whose peak lies on the object, average precision against its mask, and Spearman's "
        "correlation, over cells, with the change of the prediction without the word. 95 % intervals over scenes.",
        zh="物体词的图：峰值落在物体上的比例、对其掩膜的平均精度，以及与删去该词后预测变化的逐格秩相关；带对场景重抽样的 95% 区间。",
    )


def _name_rows(axes: Axes, methods: list[str]) -> None:
    names = [method.removeprefix("unet.").replace("cross_attention", "cross") for method in methods]
    axes.set_yticks(range(len(methods)), names, fontsize=7)
    axes.set_ylim(len(methods) - 0.5, -0.5)
