"""When does the right picture appear, if the image model gets the output of layer k instead of the last one?

    toushi run picture_by_layer
    toushi run picture_by_layer --config causal

The article's claim: layers 1-4 of the text encoder know words, 5-8 phrases, deeper ones the whole intent. If so, a picture
that is conditioned on the output of layer k (final norm applied), k = 0..12, should take shape in that order: first the
objects (words), then their colours (which colour belongs to which noun: phrases), then their positions (the whole prompt).
Scenes from the distribution of training are drawn for every layer from the same noise, and the recogniser says what is
right. Only scenes that ask for a colour and a position of each object count, so the three curves are of the same objects.
Places, and senses of words with two meanings, are reported beside it and are no part of the rule.

The rule. A thing is *there* from the first layer that draws at least 80% of what the best layer draws of it.

- Supported: objects come before colours and colours before positions, each in at least 95% of resamples of scenes.
- Refuted: colours are there within the first third of the layers (by 4 of 12), or positions within the first two (by 8),
  by the upper ends of the 95% intervals.
- Undecided: anything else; where the best layer draws less than a fifth of any of the three; fewer than 6 scenes.

It could fail to say anything: the image model has never seen any state but the last one. What it cannot draw from layer k
may be there in another form (`layer_semantics` asks that); what it can draw from layer k is there. So a thing never
appears here before it is known: it can come too soon for the claim, never too late.

As first set, the rule also refuted the claim by colours and positions that came no later than objects; but all three
appear together where the image model cannot use earlier layers. It also took all scenes: after a first look at other
weights it takes only those that ask for all three, because shapes, which mostly have colours, are drawn sooner than
animals.

An object in the wrong colour is an object. A missing object has no position: positions and colours are counted among all
that were asked for, so the three curves begin together. Beside them the same is counted for drawn objects alone: whether
an object that is there has its own colour, and is in its place.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from toushi.experiments.measures.pictures import (
    conditional,
    fully_described_scenes,
    load_cpu_model,
    score_scenes,
    score_senses,
    to_table,
)
from toushi.experiments.measures.statistics import bounds, rates
from toushi.experiments.runner.settings import Count, Seed, Share
from toushi.experiments.runner.study import FEWEST, Finding, Job, Study, Verdict
from toushi.probe.analysis.probes import onset_layer
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.encoders.early_exit import exit_at_layer
from toushi.probe.figures.embedded_picture import embed_picture
from toushi.probe.figures.picture_figures import NAMES
from toushi.probe.pipelines.load import model_files

STUDY = Study(
    title=Bilingual(en="The picture from each layer", zh="由各层画出的图"),
    question=Bilingual(
        en="The image model gets the output of layer k instead of the last one. From which layer on is the picture "
        "right? The claim is supported if objects (words) come first, then colours (phrases), then positions "
        "(whole prompt). It is refuted if colours are right within the first third of the layers, or positions "
        "within the first two thirds.",
        zh="让图像模型以第 k 层（而非末层）的输出为条件，正确的图何时出现？若先有物体（词），再有颜色（短语），最后有位置（整句），"
        "“浅层懂词、中层懂短语、深层懂整句”便得到支持；若颜色在前三分之一的层、或位置在前三分之二的层就已画对，便被推翻。",
    ),
    method=Bilingual(
        en="The same Chinese captions ask for a colour and a position of each object. Every layer k draws them from "
        "the same noise: the image model gets state k of the encoder, after the final norm. The recogniser says "
        "whether the objects, colours, positions and places of the caption are right. Words with two senses have "
        "minimal pairs of their own. A thing is there from the first layer with 80 % of the best layer's share; "
        "intervals resample scenes, or words for the senses. The image model was trained on last states only, so a "
        "layer may know what the image model cannot draw.",
        zh="同一批中文场景描述（每个物体都说了颜色与位置），从同样的噪声出发，逐层取编码器第 k 层的输出（经末端归一化）作图，由识别器判断提示所要的物体、颜色、位置、"
        "地点是否正确；多义词另用最小对句。某事物从达到最佳层 80% 的首层起算作“已有”；区间由对场景（多义词为词）重抽样得到。"
        "图像模型只见过末层的状态：画不出不等于不知道。",
    ),
)
ORDER = ("object", "colour", "position")  # words, phrases, the whole prompt
SHOWN = (
    "左边是猫，右边是月亮，夜晚",
    "红色的圆和蓝色的方块",
    "沙滩上有一把绿色的伞",
    "一只河马",
    "河边的银行在左边",
    "银行在左边，利率又涨了",
    "新发布的苹果",
)


@dataclass(frozen=True)
class Config:
    model: str = "mini-unet"  # or another of our own: twins/causal, twins/bidirectional, a folder
    scenes: Count = 100
    split: Literal["train", "test", "held_out"] = "test"  # training's own distribution, scenes that it has not seen
    contexts: Count = 2  # of each sense and each place of the context
    words: Count | None = None  # with two senses; only so many, for a first look
    steps: Count = 12
    guidance: Annotated[float, Field(ge=0)] = 3.0
    share: Share = 0.8  # of the best layer's, from which a thing is there
    least: Share = 0.2  # that the best layer must draw
    resamples: Count = 1000
    seed: Seed = 0


def weights(config: Config) -> list[Path]:
    return model_files(config.model)


def jobs(config: Config) -> list[Job]:
    about = {"model": config.model, "steps": config.steps, "guidance": config.guidance, "seed": config.seed}
    found = []
    for layer in range(len(load_cpu_model(config.model).encoder.layers) + 1):
        call = about | {"layer": layer, "split": config.split, "count": config.scenes}
        call |= {"contexts": config.contexts, "words": config.words}
        found.append(Job(f"layer-{layer:02}", score_layer, call))
    return [*found, Job("shown", draw_examples, about)]


def score_layer(
    model: str,
    layer: int,
    split: str,
    count: int,
    contexts: int,
    words: int | None,
    steps: int,
    guidance: float,
    seed: int,
) -> pd.DataFrame:
    known = load_cpu_model(model)
    with exit_at_layer(known, layer):
        scenes = score_scenes(known, split, fully_described_scenes(split, count), steps, guidance, seed)
        senses = score_senses(known, contexts, words, steps, guidance, seed)
        tables = [to_table(scenes, part="scenes", layer=layer), to_table(senses, part="senses", layer=layer)]
    return pd.concat(tables, ignore_index=True)


def draw_examples(model: str, steps: int, guidance: float, seed: int) -> pd.DataFrame:
    known, rows = load_cpu_model(model), []
    for layer in range(len(known.encoder.layers) + 1):
        with exit_at_layer(known, layer):
            drawn = known.sample(SHOWN, steps=steps, guidance=guidance, seed=seed)
        rows += [
            {"part": "shown", "layer": layer, "prompt": prompt, "picture": embed_picture(picture)}
            for prompt, picture in zip(SHOWN, drawn)
        ]
    return pd.DataFrame(rows)


# --- what is made of it ---------------------------------------------------------------------------------


def conclude(config: Config, rows: pd.DataFrame) -> Finding:
    curves, by_thing = [], {}
    for part in ("scenes", "senses"):
        some = rows.loc[rows.part == part]
        keys = {name: list(dict.fromkeys(some[name])) for name in ("thing", "layer")}
        table, right, draws = rates(some, keys, config.resamples, config.seed)
        curves.append(table.drop(columns="items").astype({"layer": int}))
        by_thing |= {thing: (right[i], draws[:, i]) for i, thing in enumerate(keys["thing"])}
    table = pd.concat(curves, ignore_index=True)
    onsets = thing_onsets(by_thing, config)
    verdict, said = decide(onsets, by_thing, config, rows.loc[rows.part == "scenes"].item.nunique())
    pictures = rows.loc[rows.part == "shown", ["prompt", "layer", "picture"]].reset_index(drop=True)
    pictures["layer"] = pictures.layer.astype(int)
    return Finding(verdict, said, {"curves": table.round(5), "onsets": onsets, "pictures": pictures})


def onset(curve: np.ndarray, config: Config) -> np.ndarray:
    return onset_layer(np.nan_to_num(curve), config.share)


def thing_onsets(by_thing: dict, config: Config) -> pd.DataFrame:
    """For each thing its onset, the share of the best layer, and the share of the last layer."""
    table = []
    for thing, (curve, draws) in by_thing.items():
        if conditional(thing):
            continue
        low, high = bounds(onset(draws, config))
        most = np.nanmax(curve) if np.isfinite(curve).any() else 0.0
        first = {"onset": int(onset(curve, config)), "low": int(np.floor(low)), "high": int(np.ceil(high))}
        shares = {"most": round(float(most), 5), "last": round(float(np.nan_to_num(curve)[-1]), 5)}
        table.append({"thing": thing} | first | shares)
    return pd.DataFrame(table)


def decide(onsets: pd.DataFrame, by_thing: dict, config: Config, scenes: int) -> tuple[Verdict, Bilingual]:
    table = onsets.set_index("thing")
    lacking = [thing for thing in ORDER if thing not in table.index or table.most[thing] < config.least]
    later = []
    if not lacking:
        begins = [onset(by_thing[thing][1], config) for thing in ORDER]
        later = [float((after > before).mean()) for before, after in pairwise(begins)]
    verdict: Verdict = "undecided"
    if later and scenes >= FEWEST:
        layers = by_thing["object"][0].shape[-1] - 1
        if table.high["colour"] <= layers // 3 or table.high["position"] <= 2 * layers // 3:
            verdict = "refuted"
        elif min(later) >= 0.95:
            verdict = "supported"
    return verdict, sentence(table, lacking, later, config)


def sentence(onsets: pd.DataFrame, lacking: list[str], later: list[float], config: Config) -> Bilingual:
    zh, en = [], []
    for thing, name in NAMES.items():
        if thing in onsets.index and (most := onsets.most[thing]) > 0:
            first, low, high = onsets.loc[thing, ["onset", "low", "high"]].astype(int)
            zh.append(f"{name.zh}从第 {first} 层 [{low}, {high}] 起（最佳层画对 {most:.0%}）")
            en.append(f"{name.en} from layer {first} [{low}, {high}] (best layer {most:.0%} right)")
    if lacking:
        zh.append(f"画对的{'、'.join(NAMES[thing].zh for thing in lacking)}太少，无法判断")
        en.append(f"too few {', '.join(NAMES[thing].en for thing in lacking)} are drawn right to tell")
    else:
        zh.append(f"颜色晚于物体的重抽样占 {later[0]:.0%}，位置晚于颜色的占 {later[1]:.0%}")
        en.append(
            f"colours come after objects in {later[0]:.0%} of resamples, positions after colours in {later[1]:.0%}"
        )
    return Bilingual(en=f"{config.model}: {'; '.join(en)}.", zh=f"{config.model}：{'；'.join(zh)}。")


def figures(tables: dict[str, pd.DataFrame], language: str) -> dict:
    from toushi.probe.figures.picture_figures import by_layer_figure, pictures_figure

    curves = tables["curves"]
    shown = curves.loc[~curves.thing.str.startswith("choice, ")]
    return {
        "curves": by_layer_figure(shown, tables["onsets"], language),
        "pictures": pictures_figure(tables["pictures"], language),
    }
