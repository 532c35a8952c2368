"""`toushi figure`: one figure of a trace, in one file."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from toushi.cli.language import language_of
from toushi.cli.output_file import check_figure_file
from toushi.cli.terminal import table
from toushi.cli.trace import Words
from toushi.probe.base.bilingual_text import Language
from toushi.probe.base.errors import ToushiError

INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4}


@dataclass(frozen=True)
class Figure:
    ABOUT = """Draws one figure of a trace, and prints its caption.

  toushi figure runs/cat -o cat.pdf
  toushi figure runs/cat --words 猫 月亮 --width 3.3in -o fig.pdf      (one column of a paper)
  toushi figure runs/cat --kind layers --words 猫 -o layers.svg
  toushi figure runs/cat --kind timeline --language zh -o timeline.png

words: the picture, and a heat map for each word. layers: one word, at each layer and step. timeline: the share of each
word, step by step. tokens: a table of the tokens. A PDF has embedded TrueType fonts, an SVG has text as text. The same
trace gives the same bytes. toushi report writes all figures, in both languages."""

    trace: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """The trace."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """The file: a .pdf, .svg or .png."""
    kind: Literal["words", "layers", "timeline", "tokens"] = "words"
    """Which figure."""
    words: Words = ()
    """Only these words. If not given, all; --kind layers shows one, that with the
    most concentrated map."""
    width: Annotated[str | None, tyro.conf.arg(metavar="WIDTH")] = None
    """Width, such as 3.3in, 84mm or 8.4cm. --kind words is laid out for it; the others are made smaller or larger as a
    whole, text too. If not given, it follows from the content."""
    language: Language | None = None
    """Language of labels and caption. If not given, that of the system."""
    overwrite: bool = False
    """Replace an existing file."""

    def run(self) -> None:
        check_figure_file(self.out, "-o", self.overwrite)
        width, language = inches(self.width), language_of(self.language)
        if self.kind == "layers" and len(self.words) > 1:
            raise ToushiError(f"--kind layers shows one word, but {len(self.words)} came: draw a figure of each")
        from toushi.probe.figures.style import save, set_width
        from toushi.probe.figures.words_figure import words_figure, words_to_draw
        from toushi.probe.trace.open import open_trace
        from toushi.reports.trace_chapter import figures_by_name

        trace = open_trace(self.trace)
        has_words = trace.steps and "cond" in trace.branches
        recorded = words_to_draw(trace, None, "cond") if has_words else []
        figures = figures_by_name(trace, recorded, self.words)
        if self.kind not in figures:
            there = ", ".join(name for name in figures if "-" not in name) or "none"
            raise ToushiError(f"{self.trace} has no maps for the figure {self.kind}; it has: {there}")
        caption, draw = figures[self.kind]
        if self.kind == "words" and width is not None:
            columns = max(1, min(4, int((width - 1) / 0.92)))  # tiles of at least 0.8 inches, beside the colour bar
            figure = words_figure(trace, self.words or recorded, columns=columns, width=width, language=language)
        else:
            figure = draw(language)
            if width is not None:
                set_width(figure, width)
        save(figure, self.out)
        size = f"{figure.get_figwidth():.2f} x {figure.get_figheight():.2f} inches"
        print(table([("figure", f"{self.out}  ({size})")]))
        print(f"\n{caption.translate(language)}")


def inches(text: str | None) -> float | None:
    """Inches of "3.3in", "84mm" or "8.4cm"; None for None."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(in|cm|mm)", text.strip())
    width = 0.0 if match is None else float(match[1]) * INCHES[match[2]]
    if not 1 <= width <= 40:
        raise ToushiError(f"--width must be like 3.3in, 84mm or 8.4cm, 1 to 40 inches, but {text!r} came")
    return width
