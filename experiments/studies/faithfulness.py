"""Does a map that points right also tell what changes when the word is removed?

    toushi run faithfulness

Everyone draws attention maps. A map of 猫 on the cat is read in two ways: here is the cat (true or false by the mask), and
because of this word (true or false by removing it). Each map is scored both ways, on pictures of the scene world: real
held-out scenes noised to several times, with exact masks, and pictures that the model draws, with masks of the sprites that
the recogniser finds in them.

*Points right*: the measures of `probe/analysis/map_measures.py`, of each word of an object (and of a colour) against the
mask of its object. *Foretells*: for each object's region, all words of the prompt are ranked by the share of their map that
lies in the region, and by the effect of removing them on it (`experiments/measures/word_effects.py`); Spearman's correlation
of the two rankings. A word is removed by writing the prompt without it (*written*), or by attending to it nowhere
(*attended*). Intervals resample scenes.

The rule, set before the first run. The claim is: where the plain mean map lies tells which words a region needs. It is
judged on noised scenes at `times[0]`, by words that are not written.

- Supported: the mean correlation lies above 0.5, and above that of the maps of other words (each word has its neighbour's
  map), both by 95% intervals (the second by that of the difference).
- Refuted: the mean correlation lies below 0.5, by the interval.
- Undecided: anything else, and fewer than 6 scenes.

Three more answers are no part of the verdict:

- How often does a plain map point at the wrong place? The share of object words whose peak misses the mask.
- Which rule is best? Of the methods and single sites, the one with the highest average precision on even scenes is judged
  on odd ones. It is better than the plain mean if the interval of the difference lies above 0. The same by correlation.
- Does pointing right matter? The share of words with the largest effect of all words in their object's region, among those
  whose map points there and those whose map does not.

Controls: a centred blob, noise, the other word's map, and the mean attention without a place.

On the first `costly` noised scenes, integrated gradients and Shapley values take part, and all methods are scored by
deletion and insertion of their words (probe/attribution/map_faithfulness.py), beside words in random order.

A first run had 9 scenes, 6 pictures and 2 costly scenes, because the machine was busy. Its result was seen before this one;
the rule did not change.

It could fail to say anything: at late times the noisy latents show the object already, so that no word has much effect, and
rankings of small effects are noise. A word that is named twice has no effect when one of the two is removed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from toushi.experiments.measures.explanations import scenes_of_two
from toushi.experiments.measures.pictures import load_cpu_model
from toushi.experiments.measures.statistics import bounds, groups, resample_items, share
from toushi.experiments.measures.word_effects import (
    BASELINES,
    CaptionWord,
    caption_words,
    changes_by_removal,
    effects_on,
    maps_by_method,
    rank_correlation,
    values_in,
)
from toushi.experiments.runner.settings import Count, NoiseTime, Seed
from toushi.experiments.runner.study import FEWEST, Finding, Job, Study, Verdict
from toushi.experiments.scene_world.example import Example
from toushi.experiments.scene_world.recogniser import detected_masks
from toushi.probe.analysis.map_measures import MEASURES, score_maps
from toushi.probe.analysis.maps import resample
from toushi.probe.attribution.denoising import Denoising, denoise_at
from toushi.probe.attribution.explain import explain_at
from toushi.probe.attribution.map_faithfulness import area
from toushi.probe.attribution.word_scores import WordScores
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.pipelines.load import model_files

STUDY = Study(
    title=Bilingual(en="Does the map tell the cause?", zh="热力图说的是原因吗？"),
    question=Bilingual(
        en="Does where the plain attention map lies tell which words a region needs? If the words' shares in a region and "
        "the effects of removing them correlate (by ranks) below 0.5, no.",
        zh="平均注意力图落在哪里，能说明一个区域需要哪些词吗？若各词落在区域内的份额与删去该词的影响之间的秩相关低于 0.5，便不能。",
    ),
    method=Bilingual(
        en="Held-out scenes of two objects, noised to several times (exact masks), and pictures that the model draws (masks "
        "of the recognised sprites). Every map is scored against the mask of its object. For each object's region, the words "
        "are ranked by the share of their map in it, and by how much the predicted clean latents change there without the "
        "word, which is either not written or not attended to. Intervals resample scenes. Controls: a centred blob, noise, "
        "the next word's map, mean attention without a place.",
        zh="含两个物体的留出场景加噪到若干时刻（掩膜精确），以及模型自己画的图（掩膜取自识别出的图标）。每张热力图与其物体的掩膜比较。"
        "对每个物体的区域，各词一按其图落在其中的份额排序，一按去掉该词（不写，或不让图像关注）后预测的干净潜变量在其中的变化排序。"
        "区间由对场景重抽样得到。对照：居中光斑、噪声、下一个词的图、不含位置的平均注意力。",
    ),
)
PLAIN = "attention"
GENERATED = 100  # the first scene that the model draws


@dataclass(frozen=True)
class Config:
    model: str = "mini-unet"  # or another of our own: twins/causal, a folder
    noised: Count = 90  # scenes
    generated: Count = 60  # pictures, at the first of the times
    costly: Count = 9  # noised scenes that integrated gradients and Shapley values explain
    chunk: Count = 10  # scenes in a job
    times: tuple[NoiseTime, ...] = (0.8, 0.5)
    steps: Count = 8  # of a picture that the model draws
    resamples: Count = 2000
    seed: Seed = 0


def weights(config: Config) -> list[Path]:
    return model_files(config.model)


def jobs(config: Config) -> list[Job]:
    """Of each kind in turn, so that a run that is stopped has some of all."""
    about = {"model": config.model, "times": list(config.times), "seed": config.seed}
    drawn = about | {"times": list(config.times[:1]), "steps": config.steps}
    kinds = (
        _chunks("noised", score_noised, 0, config.noised, config.chunk, about),
        _chunks("generated", score_generated, GENERATED, config.generated, config.chunk, drawn),
        _chunks("costly", score_costly, 0, config.costly, 1, about),
    )
    return [job for round in zip_longest(*kinds) for job in round if job is not None]


def _chunks(name: str, function: Callable, first: int, count: int, size: int, arguments: dict) -> list[Job]:
    last = first + count
    return [
        Job(f"{name}-{start:03}", function, arguments | {"start": start, "stop": min(start + size, last)})
        for start in range(first, last, size)
    ]


def noised_scenes(
    model: str, time: float, start: int, stop: int, seed: int
) -> Iterator[tuple[int, Example, Denoising]]:
    known = load_cpu_model(model)
    for number, scene, _ in islice(scenes_of_two(), start, stop):
        picture = Image.fromarray(scene.picture)
        yield number, scene, denoise_at(known, scene.caption.text, time, image=picture, seed=seed + number + 1)


def score_noised(model: str, times: list[float], start: int, stop: int, seed: int) -> pd.DataFrame:
    rows = []
    for time in times:
        for number, scene, denoising in noised_scenes(model, time, start, stop, seed):
            masks = {index: mask for index, mask in enumerate(scene.masks) if mask.any()}
            rows += [
                {"item": number, "kind": "noised", "time": time} | row
                for row in score_scene(denoising, scene, masks, seed)
            ]
    return pd.DataFrame(rows)


def score_generated(model: str, times: list[float], start: int, stop: int, steps: int, seed: int) -> pd.DataFrame:
    known, rows = load_cpu_model(model), []
    for number, scene, _ in islice(scenes_of_two(), start, stop):
        text, noise = scene.caption.text, seed + number
        picture = known.sample(text, steps=steps, seed=noise)
        masks = {i: mask for i, mask in enumerate(detected_masks(scene.scene, np.asarray(picture))) if mask is not None}
        for time in times if masks else ():
            denoising = denoise_at(known, text, time, seed=noise, steps=steps)
            about = {"item": number, "kind": "generated", "time": time}
            rows += [about | row for row in score_scene(denoising, scene, masks, seed)]
    return pd.DataFrame(rows)


def score_scene(denoising: Denoising, scene: Example, masks: dict[int, np.ndarray], seed: int) -> Iterator[dict]:
    """A row for each map of an object or colour word, and one for each region, method and way of removing words."""
    words = caption_words(scene.caption)
    maps = maps_by_method(denoising, [one.word for one in words], seed)
    changes = changes_by_removal(denoising, [one.word for one in words])
    for method, found in maps.items():
        for index, one in enumerate(words):
            if one.role in ("object", "colour") and one.object in masks and method != "no place":
                other = next((mask for thing, mask in masks.items() if thing != one.object), None)
                mask = masks[one.object]
                scores = (
                    score_maps(found[index], mask, other) if ", head" not in method else score_head(found[index], mask)
                )
                followed = rank_correlation(found[index].ravel(), _like(changes["written"][index], found[index]))
                about = {"part": "maps", "method": method, "role": one.role, "word": one.word.text}
                yield (
                    about
                    | {name: round(float(value), 5) for name, value in scores.items()}
                    | {"cells": round(followed, 5)}
                )
        for thing, mask in masks.items() if ", head" not in method else ():
            values = values_in(found, method, mask)
            for removal, change in changes.items():
                yield region_row(method, removal, thing, words, values, effects_on(change, mask), maps[PLAIN], mask)


def score_head(word_map: np.ndarray, mask: np.ndarray) -> dict:
    """The two measures that cost least: there are many heads."""
    return {name: MEASURES[name].function(word_map, mask) for name in ("pointing_game", "mass_inside")}


def _like(change: np.ndarray, word_map: np.ndarray) -> np.ndarray:
    return resample(change, word_map.shape).ravel()


def region_row(
    method: str,
    removal: str,
    thing: int,
    words: list[CaptionWord],
    values: np.ndarray,
    effects: np.ndarray,
    plain: np.ndarray,
    mask: np.ndarray,
) -> dict:
    """How well the words' values in a region foretell their effects, and whether the object's own word has the largest."""
    own = [index for index, one in enumerate(words) if one.role == "object" and one.object == thing]
    hits = [bool(MEASURES["pointing_game"].function(plain[index], mask)) for index in own]
    row = {"part": "regions", "method": method, "removal": removal, "thing": thing, "words": len(words)}
    row |= {
        "correlation": round(rank_correlation(values, effects), 5),
        "top": bool(values.argmax() == effects.argmax()),
    }
    return row | {"hit": any(hits), "own": bool(effects.argmax() in own), "effect": round(float(effects.max()), 5)}


def score_costly(model: str, times: list[float], start: int, stop: int, seed: int) -> pd.DataFrame:
    """For the first object of each scene: deletion and insertion, and the rank correlation, of methods that need a target."""
    rows = []
    for number, scene, denoising in noised_scenes(model, times[0], start, stop, seed):
        words = caption_words(scene.caption)
        thing = next(one.object for one in words if one.role == "object" and one.object is not None)
        mask, spans = scene.masks[thing], [one.word.span for one in words]
        scores = WordScores(denoising, mask.astype(np.float32), spans)
        effects = effects_on(changes_by_removal(denoising, [one.word for one in words])["written"], mask)
        found = {
            name: explain_at(denoising, mask.astype(np.float32), name, words=spans, seed=seed)
            for name in ("ablation", "shapley", "integrated-gradients")
        }
        like = found["ablation"]
        for name, maps in maps_by_method(denoising, [one.word for one in words], seed).items():
            if name in (PLAIN, "gradient-attention", "other-word", "no place"):
                found[name] = like.copy(data=values_in(maps, name, mask))
        found["random order"] = like.copy(data=np.random.default_rng([seed, number]).random(len(words)))
        for name, values in found.items():
            curves = {kind: round(area(scores, values, kind), 5) for kind in ("deletion", "insertion")}
            about = {"part": "curves", "item": number, "kind": "noised", "time": times[0], "method": name}
            rows.append(about | {"correlation": round(rank_correlation(values.values, effects), 5)} | curves)
    return pd.DataFrame(rows)


# --- what is made of it ---------------------------------------------------------------------------------

SHARES = ("pointing_game", "top", "own")  # shares of yes or no; the others are means


def mean(
    values: pd.Series | pd.DataFrame, items: pd.Series | pd.DataFrame, config: Config, is_share: bool = False
) -> dict:
    """The mean with its interval over scenes, and the number of values and of scenes."""
    table = pd.DataFrame({"value": values.to_numpy(float), "scene": items.to_numpy()}).dropna()
    counts = {"cases": len(table), "scenes": table.scene.nunique()}
    if table.empty:
        return {"mean": np.nan, "low": np.nan, "high": np.nan} | counts
    if is_share:
        whole, low, high = share(table.value, table.scene, config.resamples, config.seed)
    else:
        by_item = table.value.groupby(table.scene).agg(["sum", "count"]).to_numpy()
        sums, number = by_item[resample_items(len(by_item), config.resamples, config.seed)].sum(1).T
        whole, (low, high) = table.value.mean(), bounds(sums / number)
    return {"mean": whole, "low": low, "high": high} | counts


def summarise(rows: pd.DataFrame, keys: list[str], numbers: list[str], config: Config) -> pd.DataFrame:
    table = [
        dict(zip(keys, values)) | {"measure": name} | mean(part[name], part["item"], config, name in SHARES)
        for values, part in groups(rows, keys)
        for name in numbers
    ]
    return pd.DataFrame([row for row in table if row["cases"]]).round(5)


def conclude(config: Config, rows: pd.DataFrame) -> Finding:
    maps, regions, curves = (rows.loc[rows.part == part] for part in ("maps", "regions", "curves"))
    judged = regions.loc[
        (regions.kind == "noised") & (regions.time == config.times[0]) & (regions.removal == "written")
    ]
    tables = {
        "maps": summarise(maps, ["kind", "time", "role", "method"], [*MEASURES, "cells"], config),
        "regions": summarise(regions, ["kind", "time", "removal", "method"], ["correlation", "top"], config),
        "own": summarise(
            regions.loc[regions.method == PLAIN], ["kind", "time", "removal", "hit"], ["own", "correlation"], config
        ),
        "curves": summarise(curves, ["method"], ["correlation", "deletion", "insertion"], config),
        "best": pd.DataFrame(list(best_rules(maps, judged, config))).round(5),
    }
    own = pd.DataFrame(judged.loc[judged.method == PLAIN])
    plain = mean(own["correlation"], own["item"], config)
    lead = mean(*difference(judged, PLAIN, "other-word", "correlation"), config)
    return Finding(decide(plain, lead), sentence(plain, lead, tables, config), tables)


def difference(rows: pd.DataFrame, first: str, second: str, number: str) -> tuple[pd.Series, pd.Series]:
    """The number of one method minus that of the other for each map or region, and the scenes of these."""
    keys = [key for key in ("item", "time", "thing", "word") if key in rows and rows[key].notna().to_numpy().any()]
    both = rows.loc[rows.method.isin((first, second))].pivot_table(number, keys, "method").dropna().reset_index()
    return both[first] - both[second], both["item"]


def best_rules(maps: pd.DataFrame, judged: pd.DataFrame, config: Config) -> Iterator[dict]:
    """By average precision and by correlation, the rule that is best on even scenes, and its lead over the plain mean on
    odd ones."""
    objects = maps.loc[(maps.kind == "noised") & (maps.time == config.times[0]) & (maps.role == "object")]
    for number, rows in (("average_precision", objects), ("correlation", judged)):
        rows = rows.loc[~rows.method.isin(BASELINES) & ~rows.method.str.contains(", head")]
        is_odd = rows["item"].to_numpy(int) % 2 == 1
        if is_odd.all() or not is_odd.any():
            continue
        best = str(rows.loc[~is_odd].groupby("method", sort=False)[number].mean().idxmax())
        odd = rows.loc[is_odd]
        yield (
            {"by": number, "rule": best, "lead": 0.0}
            | {
                {"mean": "lead"}.get(name, name): value
                for name, value in mean(*difference(odd, best, PLAIN, number), config).items()
            }
            | {
                "value": odd.loc[odd.method == best, number].mean(),
                "plain": odd.loc[odd.method == PLAIN, number].mean(),
            }
        )


def decide(plain: dict, lead: dict) -> Verdict:
    """The verdict by the rule."""
    if plain["scenes"] < FEWEST:
        return "undecided"
    if plain["high"] < 0.5:
        return "refuted"
    return "supported" if plain["low"] > 0.5 and lead["low"] > 0 else "undecided"


def sentence(plain: dict, lead: dict, tables: dict[str, pd.DataFrame], config: Config) -> Bilingual:
    def numbers(row: dict | pd.Series) -> str:
        return f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"

    table = tables["maps"]
    hits = table.loc[
        (table.kind == "noised") & (table.time == config.times[0]) & (table.role == "object")
        & (table.method == PLAIN) & (table.measure == "pointing_game")
    ]  # fmt: skip
    hit = hits.iloc[0]
    return Bilingual(
        en=f"{config.model}, {plain['scenes']} noised scenes at time {config.times[0]}: the plain map of an object's word "
        f"points right in {numbers(hit)}; its place foretells the effect of removing words with a rank correlation of "
        f"{numbers(plain)}, {numbers(lead)} more than other words' maps.",
        zh=f"{config.model}，{plain['scenes']} 个加噪场景，时刻 {config.times[0]}：物体词的平均图指对的比例为 {numbers(hit)}；"
        f"它的位置与删词影响的秩相关为 {numbers(plain)}，比别的词的图高 {numbers(lead)}。",
    )


def figures(tables: dict[str, pd.DataFrame], language: str) -> dict:
    from toushi.probe.figures.faithfulness_figures import foretell_figure, measures_figure

    return {
        "foretell": foretell_figure(tables["regions"], language),
        "measures": measures_figure(tables["maps"], language),
    }
