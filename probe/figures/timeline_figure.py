"""The share of the attention that each word got, step by step."""

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator

from toushi.probe.analysis.maps import timeline
from toushi.probe.base.bilingual_text import translate
from toushi.probe.figures.fonts import drawable
from toushi.probe.figures.style import CATEGORIES, FAINT, LINES, StyledFigure, styled
from toushi.probe.figures.words_figure import footnote, words_to_draw
from toushi.probe.text.alignment import word_labels
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.selection import Sites, WordSpec
from toushi.probe.trace.trace_errors import NotRecorded


@styled
def timeline_figure(
    trace: Trace,
    words: Sequence[WordSpec] | None = None,
    *,
    branch: str = "cond",
    sites: Sites = None,
    language: str = "en",
) -> StyledFigure:
    """One line for each word: its share of the attention at every recorded step, mean over heads, then over sites.

    Step 0 is the first and noisiest. `words` and `language` are as in `words_figure`. Raises NotRecorded for a trace
    that keeps only the sum over its steps.
    """
    if trace.keep == "sum":
        raise NotRecorded(f"{trace.folder} keeps only the sum over its steps, so there is no line to draw over them.")
    asked = words_to_draw(trace, words, branch)
    figure = StyledFigure(figsize=(5.4, 3.0), layout="constrained")
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
    note = footnote(trace, branch, how)
    axes.set_title(note, size=7, loc="left", color=FAINT)
    return figure
