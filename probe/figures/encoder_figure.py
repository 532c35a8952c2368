"""Which tokens of a prompt attend to which inside the text encoder."""

import matplotlib

from toushi.probe.base.bilingual_text import Bilingual, translate
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.text_width import text_width
from toushi.probe.figures.fonts import drawable
from toushi.probe.figures.style import (
    FAINT,
    PROBABILITY,
    SEQUENTIAL,
    StyledFigure,
    colour_bar,
    name_matrix,
    percent,
    styled,
)
from toushi.probe.trace.picture_trace import Trace

CELL = 0.2  # inches


@styled
def encoder_figure(
    trace: Trace, layer: int, *, branch: str = "cond", head: int | None = None, language: str = "en"
) -> StyledFigure:
    """Attention of one encoder layer: each row is a token, its columns the tokens that it attends to.

    `layer` counts from 0, as the names of sites do. Without `head`, the mean of the heads is shown. Tokens are labelled
    with their characters. A row sums to 1 where the encoder attends to nothing but these tokens. FLUX.1's T5 also
    attends to the padding, which a trace does not keep: its rows sum to less, and the figure says how much is missing.
    `language` of the labels: zh or en.
    """
    attention = trace.encoder_attention(layer, branch)
    if head is not None and not 0 <= head < attention.sizes["head"]:
        raise ToushiError(f"there is no head {head}; the layer has {attention.sizes['head']}, counted from 0")
    values = (attention.mean("head") if head is None else attention.isel(head=head)).values
    names = [drawable(text).strip() or "␣" for text in attention["text"].values.tolist()]
    which = Bilingual(en="mean of heads", zh="各头平均")
    if head is not None:
        which = Bilingual(en=f"head {head}", zh=f"第 {head} 个头")
    title = translate(language, en=f"encoder layer {layer}, {which.en}", zh=f"编码器第 {layer} 层，{which.zh}")
    note = translate(
        language, en=f"row attends to column; the output is state {layer + 1}", zh=f"行关注列；输出为状态 {layer + 1}"
    )
    unkept = 1 - float(values.sum(1).min(initial=1))
    if unkept > 0.005:
        share = percent(unkept)
        note += translate(
            language, en=f"; padding, up to {share} of a row, is not shown", zh=f"；另有至多 {share} 落在填充上，未画出"
        )
    side = max(len(names) * CELL, 1.2)
    left = 0.25 + 0.085 * max((text_width(name) for name in names), default=0)
    above = left + 0.3
    wide, tall = left + side + 1.0, above + side + 0.1
    figure = StyledFigure(figsize=(max(wide, 2.6, 0.3 + 0.052 * text_width(note)), tall))
    wide = figure.get_figwidth()
    axes = figure.add_axes((left / wide, 0.1 / tall, side / wide, side / tall))
    top = float(values.max()) if values.size else 1.0
    axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="nearest")
    name_matrix(axes, names, names)
    figure.text(0.1 / wide, 1 - 0.08 / tall, title, size=10, va="top")
    figure.text(0.1 / wide, 1 - 0.27 / tall, note, size=7, va="top", color=FAINT)
    place = ((left + side + 0.12) / wide, 0.1 / tall, 0.11 / wide, min(side, 2.2) / tall)
    colour_bar(figure, place, top, PROBABILITY.translate(language), matplotlib.colormaps[SEQUENTIAL])
    return figure
