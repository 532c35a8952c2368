"""Does the model draw what the prompt says? The recogniser judges pictures of prompts that training never saw.

    python -m toushi.experiments.measures.score_mini_unet                # 500 held-out prompts, 20 steps
    python -m toushi.experiments.measures.score_mini_unet --split test   # the distribution of training, other seeds

It prints rates with 95% intervals (bootstrap over scenes), and writes them with every verdict to the folder `out`.
`everything` is right if all that the prompt asked for is right. `nothing more` is right if the picture has no other
object. `usual` is the rate of always answering the commonest place, time and style.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from PIL import Image
from tqdm import tqdm

from toushi.experiments.measures.statistics import share
from toushi.experiments.scene_world.contact_sheet import contact_sheet
from toushi.experiments.scene_world.example import Example, example
from toushi.experiments.scene_world.recogniser import Verdict, judge
from toushi.probe.pipelines.load import load_own


@dataclass(frozen=True)
class Config:
    """The prompts, and how they are sampled."""

    model: str = "mini-unet"
    split: str = "held_out"
    """`held_out`: every scene holds a pair, a coloured object or a sentence form that training never saw."""
    count: int = 500
    steps: int = 20
    guidance: float = 3.0
    sampler: str = "euler"
    seed: int = 0
    batch: int = 25
    out: Path = Path("runs/score_mini_unet")


def verdicts(config: Config) -> tuple[pd.DataFrame, list[Image.Image]]:
    """A row for each thing that a prompt asked for (scene, language, what, right), and the pictures."""
    model = load_own(config.model, threads=torch.get_num_threads())  # large batches gain from all threads
    rows, pictures = [], []
    starts = range(0, config.count, config.batch)
    for start in tqdm(starts, desc="pictures", unit="batch"):
        seeds = range(start, min(start + config.batch, config.count))
        examples = [example(seed, config.split) for seed in seeds]
        drawn = model.sample(
            [e.caption.text for e in examples],
            steps=config.steps,
            guidance=config.guidance,
            sampler=config.sampler,
            seed=[config.seed + seed for seed in seeds],
        )
        pictures += drawn
        for seed, e, picture in zip(seeds, examples, drawn):
            rows += answers(seed, e, judge(e.scene, np.asarray(picture), e.caption.language))
    return pd.DataFrame(rows), pictures


def answers(seed: int, e: Example, verdict: Verdict) -> list[dict]:
    """The verdict on one picture, a row for each answer."""
    usual = {"place": e.scene.place == "plain", "time": e.scene.time == "day", "style": e.scene.style == "flat"}
    given = verdict.answers()
    given["nothing more"] = [verdict.extra == 0]
    given["everything"] = [all(right for some in given.values() for right in some)]
    about = dict(scene=seed, prompt=e.caption.text, language=e.caption.language)
    return [
        dict(**about, what=what, right=right, usual=usual.get(what)) for what, some in given.items() for right in some
    ]


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """The share that is right, its interval and the number of cases, for each thing, overall and by language."""
    rows = []
    for what, part in table.groupby("what", sort=False):
        for language, some in [("all", part), *part.groupby("language")]:
            right, low, high = share(some.right, some.scene)
            numbers = dict(right=right, low=low, high=high, cases=len(some), usual=some.usual.astype(float).mean())
            rows.append(dict(what=what, language=language) | numbers)
    return pd.DataFrame(rows)


def main(config: Config) -> None:
    table, pictures = verdicts(config)
    found = rates(table)
    config.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(config.out / f"{config.split}_verdicts.csv", index=False)
    found.to_csv(config.out / f"{config.split}_rates.csv", index=False)
    prompts = table.drop_duplicates("scene").prompt
    cells = [([np.asarray(picture)], prompt) for picture, prompt in zip(pictures[:100], prompts)]
    contact_sheet(cells, columns=10).save(config.out / f"{config.split}_pictures.png")
    (config.out / f"{config.split}_config.json").write_text(json.dumps(asdict(config), default=str, indent=1))
    print(found.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
