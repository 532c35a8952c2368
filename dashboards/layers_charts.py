"""Interactive charts of what the layers of a text encoder make of sentences. `toushi layers` draws the same for paper."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

from toushi.dashboards.findings_chart import COLOURS
from toushi.probe.base.bilingual_text import translate
from toushi.probe.figures.layer_similarity_figure import OTHERS, cosine_with_embedding
from toushi.probe.figures.style import SEQUENTIAL
from toushi.probe.trace.text_encoding import TextEncoding

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CELL = 34  # pixels
# By numbers: Streamlit takes the first colour of plotly's own "Inferno", #000004, for a placeholder of its theme.
SCALE = [[at / 16, "rgb({:.0f},{:.0f},{:.0f})".format(*(255 * part for part in matplotlib.colormaps[SEQUENTIAL](at / 16)[:3]))]
         for at in range(17)]  # fmt: skip


def embedding_curves(encoding: TextEncoding, language: str) -> "Figure":
    """Cosine of each word with its own embedding, layer by layer; dotted, the mean cosine of different words there."""
    import plotly.graph_objects as go

    states = encoding.word_states()
    layers, names = states["layer"].values, [*states["word"].values.tolist(), OTHERS.translate(language)]
    figure = go.Figure(layout=dict(margin=dict(l=10, r=10, t=10, b=10), height=380))
    layer = translate(language, en="layer (0: embeddings)", zh="层（0 为嵌入）")
    for number, (name, curve) in enumerate(zip(names, cosine_with_embedding(states.values))):
        others = number == len(names) - 1
        line = dict(dash="dot", color="#888888") if others else dict(color=COLOURS[number % (len(COLOURS) - 1)])
        figure.add_scatter(x=layers, y=curve, name=name, mode="lines" if others else "lines+markers", line=line,
                           hovertemplate=f"{name}<br>{layer} %{{x}}<br>%{{y:.3f}}<extra></extra>")  # fmt: skip
    unit = translate(language, en="cosine with layer 0", zh="与第 0 层的余弦")
    return figure.update_xaxes(title=layer, dtick=1).update_yaxes(title=unit)


def word_matrix(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], unit: str, scale: tuple[float, float] | None = None
) -> "Figure":
    """A matrix [row, column] with words along both sides, in square cells."""
    import plotly.graph_objects as go

    low, high = scale or (min(0.0, float(values.min(initial=0.0))), 1.0)
    tip = f"%{{customdata[0]}} – %{{customdata[1]}}<br>{unit} %{{z:.3f}}<extra></extra>"
    pairs = [[[row, column] for column in columns] for row in rows]
    # By position, because one word may stand twice.
    heat = go.Heatmap(z=values, customdata=pairs, colorscale=SCALE, zmin=low, zmax=high, hovertemplate=tip, xgap=1, ygap=1,
                      colorbar=dict(title=dict(text=unit, side="right"), thickness=12))  # fmt: skip
    layout = dict(margin=dict(l=10, r=10, t=10, b=10), width=CELL * len(columns) + 220, height=CELL * len(rows) + 90)
    figure = go.Figure(heat, layout=layout)
    figure.update_xaxes(tickvals=list(range(len(columns))), ticktext=list(columns), side="top", showgrid=False)
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=list(rows), autorange="reversed", showgrid=False)
    return figure
