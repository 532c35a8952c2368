"""Pictures that one of our models draws for prompts of the scene world, judged by the recogniser.

Two sets of prompts, all Chinese. *Scenes*: captions of drawn scenes. A thing counts only where the prompt asks for it: a
named colour, a place that is not plain, a position that is not the middle. *Senses*: the minimal pairs of
`experiments/measures/minimal_pairs.py`, one word with two meanings in a context before it or after it.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import count as naturals
from itertools import islice

import numpy as np
import pandas as pd
import torch

from toushi.experiments.measures.minimal_pairs import check_sentences, sentences
from toushi.experiments.measures.statistics import groups
from toushi.experiments.scene_world.captions import describe
from toushi.experiments.scene_world.recogniser import Verdict, judge, recognise
from toushi.experiments.scene_world.scenes import Scene, draw_scene
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.load import load_own

BATCH = 25


@lru_cache(maxsize=2)
def load_cpu_model(model: str) -> MiniUNet:
    """The model on the CPU, where every job of a study gets the same bits, with the threads of the job's process."""
    return load_own(model, "cpu", threads=torch.get_num_threads())


def draw_pictures(
    model: MiniUNet, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float
) -> Iterator:
    for start in range(0, len(prompts), BATCH):
        some = slice(start, start + BATCH)
        yield from model.sample(prompts[some], seed=list(seeds[some]), steps=steps, guidance=guidance)


def fully_described_scenes(split: str, count: int) -> list[int]:
    """The first scenes that ask for a colour and a position of each object, so that all measures are of the same objects."""

    def asks(scene: Scene) -> bool:
        coloured = all(thing.colour is not None for thing in scene.objects)
        return coloured and scene.style == "flat" and scene.layout != "middle"

    return list(islice((number for number in naturals() if asks(draw_scene(number, split))), count))


def score_scenes(
    model: MiniUNet, split: str, numbers: Sequence[int], steps: int, guidance: float, seed: int
) -> Iterator[dict]:
    """How many are right, for each scene of the split and each thing that its caption asks for."""
    scenes = [draw_scene(number, split) for number in numbers]
    prompts = [describe(scene, "zh", number).text for number, scene in zip(numbers, scenes)]
    pictures = draw_pictures(model, prompts, [seed + number for number in numbers], steps, guidance)
    for number, scene, picture in zip(numbers, scenes, pictures):
        for thing, answers in list_answers(scene, judge(scene, np.asarray(picture), "zh")).items():
            if answers:
                yield dict(item=f"scene {number}", thing=thing, right=sum(answers), cases=len(answers))


def list_answers(scene: Scene, verdict: Verdict) -> dict[str, list[bool]]:
    """Whether each thing that the scene's caption asks for is right; `drawn`: only for objects that are there."""
    there, stands = verdict.objects, scene.layout != "middle"
    return {
        "object": list(there),
        "colour": [right for right in verdict.colours if right is not None],
        "position": list(verdict.positions) if stands else [],
        "place": [verdict.place] if scene.place != "plain" else [],
        "colour, drawn": [right for seen, right in zip(there, verdict.colours) if seen and right is not None],
        "position, drawn": [right for seen, right in zip(there, verdict.positions) if seen and stands],
    }


def conditional(thing: str) -> bool:
    """Whether the thing is counted only where a picture shows the object, which may be few pictures."""
    return thing.startswith("choice, ") or thing.endswith(", drawn")


def sense_prompts(contexts: int, words: int | None) -> pd.DataFrame:
    """The first contexts of each word (or of the first so many), sense and place, in one frame each."""
    table = sense_pairs(words)
    frame = table.groupby(["word", "sense", "place", "pair"]).cumcount()
    number = table.pair.str.removeprefix("before").str.removeprefix("after").astype(int)
    return table.loc[(number < contexts) & (frame == number % 3)].reset_index(drop=True)


def sense_pairs(words: int | None) -> pd.DataFrame:
    """The minimal pairs of all words of the scene world, or of the first `words`."""
    table = check_sentences(sentences("scenes"))
    return table.loc[table.word.isin(table.word.unique()[:words])].reset_index(drop=True)


def score_senses(
    model: MiniUNet, contexts: int, words: int | None, steps: int, guidance: float, seed: int
) -> Iterator[dict]:
    """For each word and place of its context: how many pictures have the right sense and nothing of the other; and
    (`choice`) how many are right of those with one of the two senses."""
    table = sense_prompts(contexts, words)
    kinds = table.groupby("word").sense.unique()
    # The two sentences of a pair begin with the same noise: nothing but the words tells which sense to draw.
    seeds = [seed + list(dict.fromkeys(table.pair)).index(pair) for pair in table.pair]
    rows = []
    pictures = draw_pictures(model, list(table.sentence), seeds, steps, guidance)
    for word, sense, place, picture in zip(table.word, table.sense, table.place, pictures):
        seen = {detection.kind for detection in recognise(np.asarray(picture)).objects} & set(kinds[word])
        right = seen == {sense}
        rows.append(dict(item=word, thing=f"sense, {place}", right=right, cases=1))
        rows.append(dict(item=word, thing=f"choice, {place}", right=right, cases=int(len(seen) == 1)))
    for (word, thing), cases in groups(pd.DataFrame(rows), ["item", "thing"]):
        yield dict(item=word, thing=thing, right=cases.right.sum(), cases=cases.cases.sum())


def to_table(rows: Iterable[dict], **columns: object) -> pd.DataFrame:
    """The rows, each with the same further columns before its own."""
    return pd.DataFrame([columns | row for row in rows])
