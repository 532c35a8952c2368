"""The style of every figure: fonts, colours, and files that have the same bytes when they are made again."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from inspect import signature
from pathlib import Path
from typing import IO, TYPE_CHECKING, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from toushi.probe.analysis.maps import resample
from toushi.probe.base.bilingual_text import Bilingual, translate
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.text_width import text_width
from toushi.probe.figures.fonts import FAMILY, drawable, register_fonts
from toushi.probe.figures.svg_fonts import embed_fonts

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.typing import RcKeyType

P = ParamSpec("P")
F = TypeVar("F", bound=Figure)
Target = str | os.PathLike[str] | IO

INK, FAINT = "#222222", "#767676"
COLUMN, PAGE = 3.35, 6.9  # inches: widths of figures for a paper, one column and the whole page
SEQUENTIAL = "inferno"  # perceptually uniform, and safe for colour-blind readers
DIVERGING = "RdBu_r"  # of signed differences: blue is negative, red is positive
# Okabe and Ito, "Color Universal Design", 2008; their yellow is too light for a line on white.
CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
LAYER, SHORT = Bilingual(en="layer (0: embeddings)", zh="层（0：词嵌入）"), Bilingual(en="layer", zh="层")
PROBABILITY = Bilingual(en="attention probability", zh="注意力概率")

RC: "dict[RcKeyType, object]" = {
    "font.family": FAMILY,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a prompt is a $
    "legend.frameon": False,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",  # text as text, and `save` embeds its fonts
    "svg.hashsalt": "toushi",
}


UNDATED: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}


@contextmanager
def matplotlib_style() -> Iterator[None]:
    """Inside, matplotlib draws and saves in this style, whatever the caller's settings are."""
    register_fonts()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def styled(function: Callable[P, F]) -> Callable[P, F]:
    """A figure function that draws in this style. Raises ToushiError for a path in place of its trace."""
    takes_trace = next(iter(signature(function).parameters), None) == "trace"

    @wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> F:
        if takes_trace and args and isinstance(args[0], str | Path):
            raise ToushiError(
                f"expected an opened trace, but {str(args[0])!r} came; write open_trace({str(args[0])!r})"
            )
        with matplotlib_style():
            return function(*args, **kwargs)

    return draw


class StyledFigure(Figure):
    """A figure that `savefig` writes in this style, too: fonts embedded as TrueType, text as text also in SVG."""

    def savefig(self, fname: Target, *, format: str | None = None, metadata=None, **options) -> None:
        """As matplotlib's, in this style. The same figure gives the same bytes: no date, no version is in them."""
        _write(self, fname, format, metadata, options)


def save(figure: Figure, path: Path | str) -> Path:
    """The path, after any figure has been written there in this style: .png, .pdf or .svg by the name's ending.

    Its folder is made if it is not there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(figure, path, None, None, {})
    return path


def _write(figure: Figure, target: Target, format: str | None, metadata: dict | None, options: dict) -> None:
    is_path = isinstance(target, str | os.PathLike)
    if not is_path and not hasattr(target, "write"):
        # A PdfPages: it writes its fonts when it is closed, with the caller's settings, so the text needs them too.
        Figure.savefig(figure, target, format=format, metadata=metadata, **options)
        return
    kind = (format or (Path(target).suffix[1:] if is_path else "") or "png").lower()
    content = io.BytesIO() if kind == "svg" else target
    with matplotlib_style():
        options = {"metadata": UNDATED.get(kind, {}) | (metadata or {}), **options}
        Figure.savefig(figure, content, format="svg" if kind == "svg" else format, **options)
    if kind == "svg" and isinstance(content, io.BytesIO):
        svg = embed_fonts(content.getvalue().decode())
        if is_path:
            Path(target).write_text(svg, encoding="utf-8", newline="\n")
        else:
            target.write(svg if isinstance(target, io.TextIOBase) else svg.encode())


def set_width(figure: Figure, width: float) -> None:
    """Makes a figure `width` inches wide, its height in proportion.

    A figure with a layout engine is laid out again, and its text keeps its size. Any other is scaled as a whole.
    """
    factor = width / figure.get_figwidth()
    figure.set_size_inches(width, figure.get_figheight() * factor)
    if figure.get_layout_engine() is not None:
        return
    for artist in figure.findobj(lambda artist: isinstance(artist, Text | Line2D | Patch)):
        if isinstance(artist, Text):
            artist.set_fontsize(float(artist.get_fontsize()) * factor)
        elif isinstance(artist, Line2D | Patch):
            artist.set_linewidth(artist.get_linewidth() * factor)
    for axes in figure.axes:
        axes.tick_params(labelsize=8 * factor, width=0.6 * factor, length=3 * factor, pad=2 * factor)


@styled
def warm_up() -> StyledFigure:
    """Draws a figure, so that fonts and the like are loaded before the first one of a process. This takes 0.5 s."""
    figure = StyledFigure(figsize=(1, 1))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.zeros((2, 2)))
    axes.text(0, 0, drawable("猫 a"))
    colour_bar(figure, (0, 0, 1, 1), 1.0, "", overlay_colours())
    figure.savefig(io.BytesIO())
    return figure


def overlay(picture: np.ndarray, heat: np.ndarray, top: float) -> np.ndarray:
    """A heat map over the picture in grey, uint8 [Y, X, 3].

    `picture` is uint8 [Y, X, 3]. `heat` [y, x] is resampled to its size. `top` is the value of the brightest colour,
    which larger values have, too. Where values are low, the picture shows through; high values cover most of it.
    """
    levels = np.clip(resample(heat, picture.shape[:2]) / (top or 1), 0, 1)
    grey = picture[..., :3] @ np.array([0.299, 0.587, 0.114]) / 255
    return np.round(_blend(levels, 0.12 + 0.55 * grey) * 255).astype(np.uint8)


@cache
def overlay_colours() -> Colormap:
    """The colours of `overlay` over medium grey, for its colour bar."""
    return ListedColormap(_blend(np.linspace(0, 1, 256), np.full(256, 0.4)), name="overlay")


def _blend(levels: np.ndarray, grey: np.ndarray) -> np.ndarray:
    cover = (0.9 * levels**0.7)[..., None]
    return (1 - cover) * grey[..., None] + cover * matplotlib.colormaps[SEQUENTIAL](levels)[..., :3]


def colour_bar(
    figure: Figure,
    place: tuple[float, float, float, float],
    top: float,
    label: str,
    colours: Colormap,
    lowest: float = 0.0,
) -> Axes:
    """A bar from `lowest` to `top` in absolute units, at `place` (left, bottom, width, height in shares of the figure)."""
    axes = figure.add_axes(place)
    mappable = ScalarMappable(Normalize(lowest, top or 1), colours)
    bar = figure.colorbar(mappable, cax=axes)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.set_label(drawable(label))
    return axes


def hide_axes(axes: Axes) -> Axes:
    """The axes without ticks and frame, for pictures."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def set_layer_axis(
    axes: Axes, layers: Sequence[int], language: str, title: str = "", size: int = 8, reach=(), label=LAYER
) -> None:
    """Sets layers along x, the embeddings first, a title of `size` points, and the limits `reach` of y."""
    axes.set_xticks(range(0, max(layers) + 1, 1 if max(layers) < 7 else 2))
    axes.set_xlim(-0.3, max(layers) + 0.3)
    axes.set_xlabel(label.translate(language))
    if title:
        axes.set_title(title, loc="left", fontsize=size)
    if reach:
        axes.set_ylim(*reach)


def rows_where(table: "pd.DataFrame", **values: object) -> "pd.DataFrame":
    """The rows in which each of these columns has this value."""
    for column, value in values.items():
        table = table.loc[table[column] == value]
    return table


def with_caption(figure: StyledFigure, language: str, *, en: str, zh: str) -> StyledFigure:
    """The figure with a caption for reports."""
    figure.set_label(translate(language, en=en, zh=zh))
    return figure


def is_upright(name: str) -> bool:
    """Whether a label stands upright, one character below the other: a single character, or Chinese."""
    return len(name) == 1 or text_width(name) == 2 * len(name)


def name_matrix(axes: Axes, rows: Sequence[str], columns: Sequence[str], **look) -> None:
    """Writes the names of a matrix's rows to its left and of its columns above, without ticks and frame."""
    axes.xaxis.tick_top()
    names = ["\n".join(name) if is_upright(name) else name for name in columns]
    axes.set_xticks(range(len(columns)), names, linespacing=1, **look)
    for label, name in zip(axes.get_xticklabels(), columns):
        label.set_rotation(0 if is_upright(name) else 90)
    axes.set_yticks(range(len(rows)), rows, **look)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_band(axes: Axes, rows: "pd.DataFrame", value: str, colour: str, **look) -> None:
    """A line by layer with its interval. `value` is a column of the table, which has a column `layer`; the interval is
    in the columns `{value}_low` and `{value}_high`, or `low` and `high`."""
    low, high = (f"{value}_{end}" if f"{value}_{end}" in rows else end for end in ("low", "high"))
    axes.fill_between(rows.layer, rows[low], rows[high], color=colour, alpha=0.16, linewidth=0)
    look.setdefault("linewidth", 1.4)
    axes.plot(rows.layer, rows[value], color=colour, **look)


def draw_intervals(axes: Axes, place: float, rows: "pd.DataFrame", value: str, colour: str, label=None, **line) -> None:
    """A dot for each row at the height `place`, with its interval along x. The table has columns `low` and `high`."""
    for middle, low, high in zip(rows[value], rows.low, rows.high):
        axes.plot([low, high], [place, place], color=colour, **line)
        axes.plot([middle], [place], "o", color=colour, markersize=4, label=label)


def percent(share: float) -> str:
    """A share in 0..1 as people read it: 12 %, 3.4 %, 0.05 %."""
    return f"{100 * share:.{0 if share >= 0.0995 else 1 if share >= 0.00995 else 2}f} %"
