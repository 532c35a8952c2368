"""How much of the attention each word got as the picture came into being."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from toushi.probe.analysis.maps import timeline
from toushi.probe.base.bilingual_text import translate
from toushi.probe.figures.fonts import drawable
from toushi.probe.figures.style import CATEGORIES, FAINT, LINES, styled
from toushi.probe.figures.words_figure import chosen, rule
from toushi.probe.text.alignment import word_labels


@styled
def timeline_figure(trace, words=None, *, branch: str = "cond", sites=None, language: str = "en") -> Figure:
    """One line for each word: its share of the attention at every recorded step (heads, then sites equally).

    Step 0 is the first and noisiest. `words` and `language` as `words_figure` takes them.
    """
    asked = chosen(trace, words, branch)
    figure = Figure(figsize=(5.4, 3.0), layout="constrained")
    axes = figure.add_subplot()
    for i, (word, name) in enumerate(zip(asked, word_labels(asked, trace.words(branch)))):
        shares = timeline(trace.attention(word, branch=branch, sites=sites, grid="native"))
        line = LINES[i // len(CATEGORIES) % len(LINES)]
        colour = CATEGORIES[i % len(CATEGORIES)]
        axes.plot(shares["step"], shares.values, line, color=colour, lw=1.4, marker="o", ms=2, label=drawable(name))
    axes.set_xlabel(translate(language, en="step (0 = noise)", zh="步（0：噪声）"))
    axes.set_ylabel(translate(language, en="share of the attention", zh="注意力占比"))
    axes.set_ylim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.grid(axis="y", lw=0.4, alpha=0.5)
    if asked:
        figure.legend(loc="outside right upper", fontsize=9, handlelength=1.8, ncols=1 + (len(asked) - 1) // 14)
    how = translate(language, en="mean over heads within a site, then over sites", zh="先平均一处的各头，再平均各处")
    note = rule(trace, branch, how)
    axes.set_title(note, size=7, loc="left", color=FAINT)
    return figure
