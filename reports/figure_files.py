"""Figures as files for a paper: SVG, PDF and PNG, the same bytes when made again."""

import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.figures.style import PAGE, save
from toushi.reports.chapter import LANGUAGES, Picture

ENDINGS = (".svg", ".pdf", ".png")


def save_in_both_languages(
    name: str,
    figures: Mapping[str, Figure],
    caption: Bilingual,
    folder: Path,
    key: str,
    out: Path,
    words: Sequence[str] = (),
) -> Picture:
    """The figure of each language, written as `out/figures/KEY/name.LANGUAGE.ENDING`. It shows the result in `folder`."""
    command = ["toushi", "report", folder.as_posix(), "--figures", name]
    command += [*(["--words", *words] if words else []), "-o", out.as_posix()]
    place = f"figures/{key}"
    stem = Bilingual(**{language: _save(figures[language], f"{name}.{language}", out, place) for language in LANGUAGES})
    inches = Bilingual(**{language: _width(figures[language]) for language in LANGUAGES})
    return Picture(name, caption, stem, inches, shlex.join(command))


def _save(figure: Figure, name: str, out: Path, place: str) -> str:
    """The path of its files from the report's folder, without the ending."""
    if figure.get_figwidth() > PAGE + 0.01:
        warnings.warn(
            f"The figure {name} is {_width(figure)} inches wide, but a page holds {PAGE}. It is made smaller there.",
            stacklevel=4,
        )
    for ending in ENDINGS:
        save(figure, out / place / f"{name}{ending}")
    return f"{place}/{name}"


def _width(figure: Figure) -> str:
    return f"{figure.get_figwidth():.2f}"
