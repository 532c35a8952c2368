"""Two encoders side by side: how similar their layers are, and what their heads attend to."""

import numpy as np
import pandas as pd
from matplotlib import colormaps

from toushi.probe.base.bilingual_text import Bilingual, translate
from toushi.probe.figures.picture_figures import display_name
from toushi.probe.figures.style import (
    CATEGORIES,
    PAGE,
    SEQUENTIAL,
    SHORT,
    StyledFigure,
    colour_bar,
    rows_where,
    set_layer_axis,
    styled,
    with_caption,
)

WHAT = {
    "entropy": Bilingual(en="entropy (bits)", zh="熵（比特）"),
    "distance": Bilingual(en="distance (tokens)", zh="距离（词元）"),
    "special": Bilingual(en="share of special tokens", zh="特殊词元占比"),
}


@styled
def likeness_figure(likeness: pd.DataFrame, language: str) -> StyledFigure:
    """CKA of every layer with every layer: of each encoder with itself, and of the two with each other.

    `likeness` has one, other (names of the encoders), layer, other_layer, cka; NaN where all states of a layer are equal.
    """
    pairs = list(dict.fromkeys(zip(likeness.one, likeness.other)))
    figure = StyledFigure(figsize=(PAGE, 2.6))
    for axes, (one, other) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs):
        part = rows_where(likeness, one=one, other=other)
        grid = part.pivot(index="layer", columns="other_layer", values="cka").to_numpy(float)
        axes.imshow(grid, cmap=SEQUENTIAL, vmin=0, vmax=1, origin="lower")
        axes.set_xlabel(
            translate(language, en=f"layers, {display_name(other, 'en')}", zh=f"{display_name(other, 'zh')}的层")
        )
        axes.set_ylabel(
            translate(language, en=f"layers, {display_name(one, 'en')}", zh=f"{display_name(one, 'zh')}的层")
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(np.arange(0, len(grid), max(1, (len(grid) - 1) // 4)))
    figure.subplots_adjust(left=0.065, right=0.9, bottom=0.17, top=0.98, wspace=0.3)
    colour_bar(figure, (0.92, 0.21, 0.012, 0.73), 1, "CKA", colormaps[SEQUENTIAL])
    return with_caption(
        figure,
        language,
        en="Similarity of the states of any two layers (debiased linear CKA): 1 if they differ only by rotation and scale, "
        "0 if unrelated.",
        zh="各层状态两两之间的相似度（去偏线性 CKA）：1 为只差旋转与缩放，0 为无关。",
    )


@styled
def heads_figure(heads: pd.DataFrame, language: str) -> StyledFigure:
    """What the heads attend to, layer by layer: a dot for each head, and a line for their mean.

    `heads` has model, layer, head, entropy, distance, special.
    """
    figure = StyledFigure(figsize=(PAGE, 2.3))
    for axes, (what, title) in zip(figure.subplots(1, len(WHAT)), WHAT.items()):
        for colour, model in zip(CATEGORIES, dict.fromkeys(heads.model)):
            part = rows_where(heads, model=model)
            axes.plot(part.layer, part[what], ".", color=colour, markersize=3, alpha=0.6)
            means = part.pivot_table(index="layer", values=what, aggfunc="mean")
            axes.plot(means.index, means[what], color=colour, linewidth=1.2, label=display_name(model, language))
        set_layer_axis(axes, heads.layer, language, title.translate(language), 9, (0, None), SHORT)
    figure.axes[0].legend(fontsize=7)
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.2, top=0.89, wspace=0.22)
    return with_caption(
        figure,
        language,
        en="The heads of each layer: entropy, distance of the tokens that they attend to, share of special tokens. Dots are "
        "heads, lines their means.",
        zh="各层的注意力头：熵、所关注词元的距离、特殊词元的占比。点为单个头，线为其均值。",
    )
