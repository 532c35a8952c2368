"""Figures as files for a paper: SVG, PDF and PNG, the same bytes when made again."""

import warnings
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from experiments.study import Said
from probe.errors import ToushiError
from probe.figures.style import PAGE, save
from reports.chapter import LANGUAGES, Picture

ENDINGS = (".svg", ".pdf", ".png")


def picture(name: str, figures: Mapping[str, Figure], caption: Said, out: Path, place: str, command: str) -> Picture:
    """Writes the figure of each language as `out/place/name.LANGUAGE.ENDING`."""
    home = out / place
    widths = {}
    for language in LANGUAGES:
        figure = figures[language]
        widths[language] = f"{figure.get_figwidth():.2f}"
        if figure.get_figwidth() > PAGE + 0.01:
            warnings.warn(
                f"the figure {name} is {widths[language]} inches wide, and a page holds {PAGE}: it is made smaller there",
                stacklevel=2,
            )
        try:
            home.mkdir(parents=True, exist_ok=True)
            for ending in ENDINGS:
                save(figure, home / f"{name}.{language}{ending}")
        except OSError as error:
            raise ToushiError(f"cannot write to {home}: {error.strerror or error}; choose another -o") from None
    stem = Said(*(f"{place}/{name}.{language}" for language in LANGUAGES))
    return Picture(name, caption, stem, Said(**widths), command)
