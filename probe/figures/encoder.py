"""What the words of a prompt make of each other inside the text encoder."""

import matplotlib
from matplotlib.figure import Figure

from probe.figures.fonts import drawable
from probe.figures.style import FAINT, SEQUENTIAL, cells, colour_bar, styled

CELL = 0.2  # inches


@styled
def encoder_figure(trace, layer: int, *, branch: str = "cond", head: int | None = None) -> Figure:
    """Attention of one encoder layer, rows the reading token, columns the token that is read; each row sums to 1.

    `layer` counts from 0 as in the site names; `head` None is the mean of the heads. Tokens are labelled with their
    characters.
    """
    attention = trace.encoder_attention(layer, branch)
    values = (attention.mean("head") if head is None else attention.sel(head=head)).values
    tokens = trace.tokens(branch)[: len(values)]
    names = [drawable(token.text) or "␣" for token in tokens]
    side = max(len(names) * CELL, 1.2)
    left = 0.25 + 0.085 * max((cells(name) for name in names), default=0)
    above = left + 0.3
    wide, tall = left + side + 1.0, above + side + 0.1
    figure = Figure(figsize=(max(wide, 2.6), tall))
    wide = figure.get_figwidth()
    axes = figure.add_axes((left / wide, 0.1 / tall, side / wide, side / tall))
    top = float(values.max()) if values.size else 1.0
    axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="nearest")
    axes.xaxis.tick_top()
    ticks = range(len(names))
    axes.set_xticks(ticks, ["\n".join(name) if stands(name) else name for name in names], linespacing=1)
    for label, name in zip(axes.get_xticklabels(), names):
        label.set_rotation(0 if stands(name) else 90)
    axes.set_yticks(ticks, names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    which = "mean of heads" if head is None else f"head {head}"
    figure.text(0.1 / wide, 1 - 0.08 / tall, f"encoder layer {layer}, {which}", size=10, va="top")
    figure.text(0.1 / wide, 1 - 0.27 / tall, "row reads column", size=7, va="top", color=FAINT)
    place = ((left + side + 0.12) / wide, 0.1 / tall, 0.11 / wide, min(side, 2.2) / tall)
    colour_bar(figure, place, top, "attention probability", matplotlib.colormaps[SEQUENTIAL])
    return figure


def stands(name: str) -> bool:
    """Whether a label is set upright, sign under sign: one character, or Chinese."""
    return len(name) == 1 or cells(name) == 2 * len(name)
