"""An experiment for the runner's own tests: is a coin fair? It costs nothing, and fails or waits when it is told to."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from toushi.experiments.runner.study import Finding, Job, Study
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.figures.style import CATEGORIES, styled

STUDY = Study(
    title=Bilingual(en="Is a coin fair?", zh="硬币是否公平"),
    question=Bilingual(
        en="Does each coin show heads as often as tails? Refuted by a coin whose interval leaves out a half.",
        zh="每枚硬币正面与反面一样多吗？若有一枚的区间不含一半，则否。",
    ),
    method=Bilingual(
        en="Each coin is thrown, and throws are resampled for an interval.", zh="每枚硬币抛若干次，按抛掷重抽样求区间。"
    ),
)


@dataclass(frozen=True)
class Config:
    coins: int = 4
    throws: int = 50
    bias: float = 0.5
    names: tuple[str, ...] = ("铜钱", "银元")
    kind: Literal["metal", "wood"] = "metal"
    seed: int = 0
    metal: Path | None = None
    bad: tuple[int, ...] = ()
    dies: int | None = None
    wait: float = 0.0
    gate: Path | None = None
    wrong: str = ""


def weights(config: Config) -> list[Path]:
    return [config.metal] if config.metal else []


def jobs(config: Config) -> list[Job]:
    shared = dict(throws=config.throws, bias=config.bias, seed=config.seed, wait=config.wait)
    shared["gate"] = str(config.gate) if config.gate else None
    found = []
    for i in range(config.coins):
        how = "die" if i == config.dies else "fail" if i in config.bad else ""
        name = f"{config.names[i % len(config.names)]}-{i}"
        found.append(Job(name, thrown, dict(coin=name, number=i, how=how, **shared)))
    return found


def thrown(coin: str, number: int, how: str, throws: int, bias: float, seed: int, wait: float, gate: str | None):
    print("thrown", coin)
    time.sleep(wait if number else 0)
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "fail" and not (gate and Path(gate).exists()):
        raise ValueError(f"{coin} rolled\nunder the table")
    random = np.random.default_rng([seed, number])
    heads = random.random(throws) < bias
    forgot_to_seed = np.random.random()
    order = "".join({"a", "b", "c", "d", "e"})
    return pd.DataFrame(
        dict(
            coin=coin,
            heads=heads,
            weight=random.normal(size=throws).astype("float32"),
            luck=forgot_to_seed,
            order=order,
        )
    )


def conclude(config: Config, rows: pd.DataFrame) -> Finding:
    if config.wrong:
        raise ValueError(config.wrong)
    found = rows.groupby("coin", sort=False).agg(share=("heads", "mean"), weight=("weight", "mean")).reset_index()
    error = 1.96 * (found.share * (1 - found.share) / config.throws) ** 0.5
    found = found.assign(low=found.share - error, high=found.share + error)
    fair = bool(((found.low < 0.5) & (found.high > 0.5)).all())
    mean = found.share.mean()
    said = Bilingual(en=f"{mean:.1%} heads on average", zh=f"平均有 {mean:.1%} 为正面")
    return Finding("supported" if fair else "refuted", said, {"coins": found})


@styled
def shares_figure(coins: pd.DataFrame, language: str) -> Figure:
    figure = Figure(figsize=(3.35, 2.2))
    axes = figure.add_axes((0.2, 0.2, 0.75, 0.7))
    places = range(len(coins))
    axes.errorbar(
        coins.share, places, xerr=[coins.share - coins.low, coins.high - coins.share], fmt="o", color=CATEGORIES[0]
    )
    axes.set_yticks(places, coins.coin)
    axes.set_xlabel("正面的比例" if language == "zh" else "share of heads")
    return figure


def figures(tables: dict[str, pd.DataFrame], language: str) -> dict[str, Figure]:
    return {"shares": shares_figure(tables["coins"], language)}
