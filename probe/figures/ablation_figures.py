"""What is still drawn when nobody attends to tokens of a category, when their states are replaced, or only they are left."""

import pandas as pd
from matplotlib.axes import Axes

from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.figures.picture_figures import display_name, picture_grid
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

OPERATIONS = {
    "zero": Bilingual(en="not attended to", zh="无人关注"),
    "replace": Bilingual(en="state replaced", zh="状态被替换"),
    "keep": Bilingual(en="only these attended to", zh="只关注这些"),
    "filler": Bilingual(en="inserted", zh="插入"),
    "without": Bilingual(en="not written", zh="不写"),
}
NAMES = {
    "none": Bilingual(en="untouched", zh="未改动"),
    "object": Bilingual(en="objects", zh="物体"),
    "colour": Bilingual(en="colours", zh="颜色"),
    "relation": Bilingual(en="relations", zh="关系"),
    "place": Bilingual(en="places", zh="地点"),
    "particle": Bilingual(en="other words", zh="其余的词"),
    "punctuation": Bilingual(en="punctuation", zh="标点"),
    "random": Bilingual(en="random", zh="随机"),
}
THINGS = ("object", "colour", "position", "place")


def category_name(category: str, language: str) -> str:
    return NAMES[category].translate(language) if category in NAMES else category


@styled
def kept_figure(shares: pd.DataFrame, language: str) -> StyledFigure:
    """Share of what the untouched pictures have right that each variant keeps, by category of token.

    `shares` has operation, category, thing, kept, low, high.
    """
    operations = [name for name in OPERATIONS if name in set(shares.operation)]
    beside = [name for name in operations if name in ("zero", "replace", "keep")]
    below = [name for name in operations if name not in beside]
    categories = list(dict.fromkeys(shares.loc[shares.operation.isin(beside)].category))
    figure = StyledFigure(figsize=(PAGE, 0.3 * len(categories) + 2.2))
    grid = figure.subplots(2, 3, sharex=True, squeeze=False, height_ratios=(len(categories), 4))
    for axes in grid.flat[len(beside) : 3]:
        axes.set_axis_off()
    for axes, operation in zip(grid[0], beside):
        _panel(axes, shares, operation, categories, language)
    for axes in grid[0][1:]:
        axes.set_yticklabels([])
    for axes, operation in zip(grid[1], below):
        _panel(axes, shares, operation, list(dict.fromkeys(rows_where(shares, operation=operation).category)), language)
    for axes in grid[1][len(below) :]:
        axes.set_axis_off()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    grid[1, -1].legend(handles, labels, fontsize=7, loc="center")
    tall = figure.get_figheight()
    figure.subplots_adjust(left=0.13, right=0.99, bottom=0.3 / tall, top=1 - 0.25 / tall, hspace=0.28, wspace=0.3)
    return with_caption(
        figure,
        language,
        en="Share right, divided by the share right in the untouched pictures of the same prompts, with 95 % intervals over "
        "prompts. “Random” is as many other text tokens as the objects have; nobody can attend to a pad.",
        zh="画对的比例除以同样提示未改动时画对的比例，带对提示重抽样的 95% 区间。“随机”是与物体词元同样多的其他词元；填充词元（pad）本来就无人能关注。",
    )


def _panel(axes: Axes, shares: pd.DataFrame, operation: str, categories: list[str], language: str) -> None:
    for thing, colour, shift in zip(THINGS, CATEGORIES, (-0.24, -0.08, 0.08, 0.24)):
        for index, category in enumerate(categories):
            rows = rows_where(shares, operation=operation, category=category, thing=thing)
            label = display_name(thing, language) if index == 0 else None
            draw_intervals(axes, index + shift, rows.dropna(subset="kept"), "kept", colour, label, linewidth=1.2)
    axes.axvline(0.5, color=FAINT, linewidth=0.5)
    axes.set_yticks(range(len(categories)), [category_name(name, language) for name in categories])
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.set_xlim(-0.04, 1.24)
    axes.set_title(OPERATIONS[operation].translate(language), loc="left", fontsize=8)


@styled
def variants_figure(pictures: pd.DataFrame, language: str) -> StyledFigure:
    """One prompt, from one noise: a row for each operation, a column for each category of token.

    `pictures` has operation, category, prompt, picture (text of `embed_picture`).
    """
    operations = [name for name in ("zero", "replace", "keep") if name in set(pictures.operation)]
    clean = rows_where(pictures, operation="clean").picture.iloc[0]
    categories = list(dict.fromkeys(rows_where(pictures, operation="keep").category))
    grid = [
        [clean, *(rows_where(pictures, operation=name, category=one).picture.iloc[0] for one in categories)]
        for name in operations
    ]
    rows = [OPERATIONS[name].translate(language) for name in operations]
    prompt = rows_where(pictures, operation="clean").prompt.iloc[0]
    figure = picture_grid(grid, rows, [category_name(name, language) for name in ("none", *categories)])
    return with_caption(
        figure,
        language,
        en=f"“{prompt}”: each column is a category of token, each row what was done to it. All from the same noise.",
        zh=f"“{prompt}”：每列是一类词元，每行是对它做的改动；全部从同样的噪声画出。",
    )
