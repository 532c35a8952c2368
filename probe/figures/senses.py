"""How well each layer of a text encoder tells the senses of words apart."""

import pandas as pd
from matplotlib.figure import Figure

from probe.figures.style import CATEGORIES, FAINT, styled


@styled
def senses_figure(summary: pd.DataFrame, title: str = "") -> Figure:
    """Read-out accuracy by layer, mean over words with its interval; dashed the same with the senses shuffled.

    `summary` has columns weights, place (both, before, after), layer, accuracy, low, high, accuracy_shuffled. One
    panel for each place of the context, one line for each of the weights.
    """
    places = list(dict.fromkeys(summary.place))
    figure = Figure(figsize=(2.3 * len(places) + 0.6, 2.6))
    figure.suptitle(title, x=0.06, ha="left", size=9)
    for axes, place in zip(figure.subplots(1, len(places), sharey=True, squeeze=False)[0], places):
        some = summary[summary.place == place]
        for colour, (weights, part) in zip(CATEGORIES, some.groupby("weights", sort=False)):
            axes.fill_between(part.layer, part.low, part.high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(part.layer, part.accuracy, color=colour, linewidth=1.4, label=weights)
            axes.plot(part.layer, part.accuracy_shuffled, color=colour, linewidth=0.8, linestyle="--")
        axes.axhline(0.5, color=FAINT, linewidth=0.5)
        axes.set_title("all sentences" if place == "both" else f"context {place} the word", loc="left")
        axes.set_xlabel("layer (0: embeddings)")
        axes.set_ylim(0.4, 1.02)
        axes.set_xticks(range(0, int(some.layer.max()) + 1, 2))
    figure.axes[0].set_ylabel("right senses")
    figure.axes[0].legend(loc="center right", title="dashed: senses shuffled", title_fontsize=7, fontsize=7)
    figure.subplots_adjust(left=0.09, right=0.99, bottom=0.19, top=0.8, wspace=0.08)
    return figure
