"""Does the model draw what it is told? The recogniser looks at pictures of prompts that training never saw.

    python -m experiments.score_mini_unet                # 500 held-out prompts, 20 steps
    python -m experiments.score_mini_unet --split test   # training's own distribution, other seeds

Rates with 95% Wilson intervals go to the screen and, with every single verdict, to the folder `out`.
"""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from PIL import Image
from tqdm import tqdm

from experiments.statistics import wilson
from probe.models.load import load
from probe.world.example import example
from probe.world.recogniser import judge


@dataclass(frozen=True)
class Config:
    """Which prompts are drawn, and how."""

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
    """One row for each thing that a prompt asked for: scene, language, what, right; and the pictures."""
    model = load(config.model)
    examples = [example(seed, config.split) for seed in range(config.count)]
    rows, pictures = [], []
    for start in tqdm(range(0, config.count, config.batch), desc="pictures", unit="batch"):
        some = examples[start : start + config.batch]
        drawn = model.sample(
            [e.caption.text for e in some],
            steps=config.steps,
            guidance=config.guidance,
            sampler=config.sampler,
            seed=config.seed + start,
        )
        pictures += drawn
        for index, (e, picture) in enumerate(zip(some, drawn)):
            verdict = judge(e.scene, np.asarray(picture), e.caption.language)
            asked = dict(
                object=verdict.objects, position=verdict.positions, colour=verdict.colours, sense=verdict.senses,
                place=(verdict.place,), time=(verdict.time,), style=(verdict.style,),
            )  # fmt: skip
            for what, answers in asked.items():
                rows += [
                    dict(
                        scene=start + index, prompt=e.caption.text, language=e.caption.language, what=what, right=right
                    )
                    for right in answers
                    if right is not None
                ]
    return pd.DataFrame(rows), pictures


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """Share right with its interval and the number of cases, for each thing asked, in all and by language."""
    groups = defaultdict(list)
    for what, part in table.groupby("what", sort=False):
        for language, some in [("all", part), *part.groupby("language")]:
            low, high = wilson(int(some.right.sum()), len(some))
            groups["what"].append(what)
            groups["language"].append(language)
            groups["right"].append(some.right.mean())
            groups["low"].append(low)
            groups["high"].append(high)
            groups["cases"].append(len(some))
    return pd.DataFrame(groups)


def contact_sheet(pictures: list[Image.Image], columns: int = 20) -> Image.Image:
    side = pictures[0].width
    page = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side))
    for i, picture in enumerate(pictures):
        page.paste(picture, (i % columns * side, i // columns * side))
    return page


def main(config: Config) -> None:
    table, pictures = verdicts(config)
    found = rates(table)
    config.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(config.out / f"{config.split}_verdicts.csv", index=False)
    found.to_csv(config.out / f"{config.split}_rates.csv", index=False)
    contact_sheet(pictures[:200]).save(config.out / f"{config.split}_pictures.png")
    (config.out / f"{config.split}_config.json").write_text(json.dumps(asdict(config), default=str, indent=1))
    print(found.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
