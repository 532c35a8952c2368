"""An interactive chart of a study's table: estimates with their intervals, over layers or one below the other."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.figures.style import CATEGORIES

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BASELINES = ("chance", "control", "accuracy_shuffled", "retrieval_shuffled")  # what is reached without knowing anything
# Without black, which the dark theme hides; then four of Paul Tol's "muted" colours.
MAX_ROWS = 60  # of a chart without layers
COLOURS = (*CATEGORIES[:-1], "#882255", "#44AA99", "#999933", "#888888")

# Columns of the studies' tables, and texts in them. A name that is not here is shown as it is.
COLUMNS = {
    "layer": Bilingual(en="layer (0: embeddings)", zh="层（0 为嵌入）"),
    "accuracy": Bilingual(en="accuracy of a linear probe", zh="线性探针的准确率"),
    "selectivity": Bilingual(en="selectivity: accuracy minus that on random labels", zh="选择性：准确率减去随机标签上的准确率"),
    "onset": Bilingual(en="first layer", zh="起始层"),
    "right": Bilingual(en="share drawn right", zh="画对的比例"),
    "change": Bilingual(en="change of the margin between the senses", zh="两个义项间距的变化"),
    "retrieval": Bilingual(en="share whose translation is the nearest", zh="译文恰为最近者的比例"),
    "gain": Bilingual(en="gain over layer 0", zh="比第 0 层高出"),
    "difference": Bilingual(en="bidirectional minus causal", zh="双向减因果"),
    "weights": Bilingual(en="weights", zh="权重"), "level": Bilingual(en="level", zh="语义级别"),
    "where": Bilingual(en="read at", zh="读取位置"), "task": Bilingual(en="task", zh="任务"),
    "thing": Bilingual(en="what", zh="内容"), "place": Bilingual(en="context", zh="语境"),
    "side": Bilingual(en="left out", zh="去掉的部分"), "data": Bilingual(en="sentences", zh="句子"),
    "kept": Bilingual(en="share kept of what the untouched pictures have right", zh="未改动时画对者保留的比例"),
    "mean": Bilingual(en="mean", zh="均值"), "operation": Bilingual(en="operation", zh="改动"),
    "category": Bilingual(en="tokens", zh="词元"), "method": Bilingual(en="method", zh="方法"),
    "measure": Bilingual(en="measure", zh="度量"), "kind": Bilingual(en="pictures", zh="图像"),
    "time": Bilingual(en="time (1: noise)", zh="时刻（1 为噪声）"), "removal": Bilingual(en="removal", zh="去掉的方式"),
    "model": Bilingual(en="model", zh="模型"), "part": Bilingual(en="part", zh="部分"), "which": Bilingual(en="which", zh="哪些"),
}  # fmt: skip
VALUES = {
    "trained": Bilingual(en="trained", zh="训练过"), "random": Bilingual(en="random weights", zh="随机权重"),
    "words": Bilingual(en="words", zh="词"), "phrases": Bilingual(en="phrases", zh="短语"),
    "prompts": Bilingual(en="whole prompts", zh="整句"), "word": Bilingual(en="the word", zh="词处"),
    "last token": Bilingual(en="the last token", zh="末词元"), "bag": Bilingual(en="bag of words", zh="词袋"),
    "neighbour": Bilingual(en="a neighbour", zh="相邻的词"),
    "object": Bilingual(en="object", zh="物体"), "colour": Bilingual(en="colour", zh="颜色"),
    "position": Bilingual(en="position", zh="位置"), "place": Bilingual(en="place", zh="地点"),
    "colour, drawn": Bilingual(en="colour, of objects drawn", zh="颜色（画出的物体）"),
    "position, drawn": Bilingual(en="position, of objects drawn", zh="位置（画出的物体）"),
    "sense, before": Bilingual(en="sense, context before", zh="词义，语境在前"),
    "sense, after": Bilingual(en="sense, context after", zh="词义，语境在后"),
    "choice, before": Bilingual(en="sense, of those drawn, context before", zh="词义（画出二义之一），语境在前"),
    "choice, after": Bilingual(en="sense, of those drawn, context after", zh="词义（画出二义之一），语境在后"),
    "noun": Bilingual(en="noun", zh="名词"), "style": Bilingual(en="style", zh="风格"),
    "layout": Bilingual(en="layout", zh="布局"), "number": Bilingual(en="number of objects", zh="物体数量"),
    "before": Bilingual(en="before the word", zh="在词前"), "after": Bilingual(en="after the word", zh="在词后"),
    "both": Bilingual(en="both", zh="两者"), "decides": Bilingual(en="what decides the sense", zh="决定义项的部分"),
    "shared": Bilingual(en="what both senses share", zh="两个义项共有的部分"),
    "scenes": Bilingual(en="scene captions", zh="场景描述"), "polysemy": Bilingual(en="ordinary sentences", zh="日常句子"),
    "parallel": Bilingual(en="parallel sentences", zh="对照句子"),
    "bidirectional": Bilingual(en="bidirectional", zh="双向"), "causal": Bilingual(en="causal", zh="因果"),
    "characters": Bilingual(en="characters", zh="字"), "bytes": Bilingual(en="bytes", zh="字节"),
}  # fmt: skip


class Estimates(NamedTuple):
    """The columns of a table that hold estimates: the value, its interval, and the texts that tell the rows apart."""

    value: str
    low: str
    high: str
    keys: list[str]
    baselines: list[str]


def column_name(name: str, language: str) -> str:
    return COLUMNS[name].translate(language) if name in COLUMNS else name


def value_name(value: object, language: str) -> str:
    name = str(value)
    return VALUES[name].translate(language) if name in VALUES else name


def estimates_of(table: pd.DataFrame) -> Estimates | None:
    """The value of a table that lies in an interval beside it; None if there is none. The one before `low` comes first."""
    numbers = [name for name in table.select_dtypes("number") if name not in ("layer", "time")]
    before = numbers[: numbers.index("low")][-1:] if "low" in numbers else []
    for name in (*before, *numbers):
        for low, high in ((f"{name}_low", f"{name}_high"), ("low", "high")):
            if low in numbers and high in numbers and name not in (low, high) and _inside(table, name, low, high):
                keys = [key for key in table if key not in (*numbers, "layer") and len(set(table[key])) > 1]
                return Estimates(name, low, high, keys, [base for base in BASELINES if base in numbers])
    return None


def _inside(table: pd.DataFrame, name: str, low: str, high: str) -> bool:
    value, least, most = table[[name, low, high]].dropna().to_numpy(float).T
    return len(value) > 0 and float(np.mean((least - 1e-4 <= value) & (value <= most + 1e-4))) > 0.9


def shown_key(table: pd.DataFrame, estimates: Estimates) -> str | None:
    """The key whose values a chart shows together, by colour or, without layers, by row: that with most of them."""
    most = len(COLOURS) if "layer" in table else MAX_ROWS
    counts = {key: len(set(table[key])) for key in estimates.keys}
    return max((key for key in counts if counts[key] <= most), key=counts.__getitem__, default=None)


def chart(table: pd.DataFrame, estimates: Estimates, language: str) -> "Figure":
    """Lines over the layers, with their intervals as bands and baselines dotted; without layers, points with bars."""
    import plotly.graph_objects as go

    value = column_name(estimates.value, language)
    figure = go.Figure(layout=dict(margin=dict(l=10, r=10, t=30, b=10), hovermode="closest", height=420))
    if "layer" not in table:
        labels = [" · ".join(value_name(row[key], language) for key in estimates.keys) for _, row in table.iterrows()]
        bars = dict(
            array=table[estimates.high] - table[estimates.value],
            arrayminus=table[estimates.value] - table[estimates.low],
        )
        figure.add_scatter(
            x=table[estimates.value], y=[label or value for label in labels], mode="markers", error_x=bars,
            marker=dict(size=9, color=CATEGORIES[0]), hovertemplate="%{y}<br>%{x:.3f}<extra></extra>",
        )  # fmt: skip
        figure.update_layout(yaxis=dict(autorange="reversed", automargin=True), height=max(200, 34 * len(table) + 80))
        return figure.update_xaxes(title=value)
    key = shown_key(table, estimates)
    for colour, (name, part) in zip(COLOURS, [("", table)] if key is None else table.groupby(key, sort=False)):
        label, x = value_name(name, language), part.layer
        band = dict(x=[*x, *x[::-1]], y=[*part[estimates.high], *part[estimates.low][::-1]], fill="toself", mode="none")
        figure.add_scatter(
            **band, fillcolor=colour, opacity=0.15, hoverinfo="skip", legendgroup=label, showlegend=False
        )
        tip = f"{label}<br>{column_name('layer', language)} %{{x}}<br>%{{y:.3f}}<extra></extra>"
        line = dict(x=x, legendgroup=label, hovertemplate=tip)
        figure.add_scatter(**line, y=part[estimates.value], mode="lines+markers", line_color=colour, name=label,
                           showlegend=key is not None)  # fmt: skip
        for base in estimates.baselines:
            dotted = dict(color=colour, dash="dot", width=1)
            figure.add_scatter(**line, y=part[base], mode="lines", line=dotted, name=base, showlegend=False)
    figure.update_layout(legend=dict(orientation="h", y=1.12))
    return figure.update_xaxes(title=column_name("layer", language), dtick=1).update_yaxes(title=value)
