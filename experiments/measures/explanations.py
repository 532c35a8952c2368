"""Which way of explaining finds the objects of a scene? Every map against the exact mask of its word's object.

    python -m toushi.experiments.measures.explanations --scenes 25

Held-out scenes of two objects are noised to the given time, and explained by each method that needs no target. The
table has the mean of each measure over two maps a scene. It is that of docs/explaining.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import pandas as pd
import tyro
from PIL import Image
from tqdm import tqdm

from toushi.experiments.scene_world.example import Example, example
from toushi.probe.analysis.map_measures import score_maps
from toushi.probe.attribution.denoising import denoise_at
from toushi.probe.attribution.explain import explain_at
from toushi.probe.pipelines.load import load

METHODS = ("attention", "daam", "value-weighted", "rollout", "ablation", "blob", "noise", "other-word")
SHOWN = ["pointing_game", "iou_at_mean", "best_iou", "average_precision", "leak"]


@dataclass(frozen=True)
class Config:
    """How many scenes, and how noisy."""

    scenes: int = 25
    time: float = 0.5


def scenes_of_two() -> Iterator[tuple[int, Example, list[tuple[int, tuple[int, int]]]]]:
    """Number, scene, and of each of its first two objects the index and the span of its words."""
    for number in count():
        scene = example(number, "held_out")
        parts = reversed(scene.caption.parts)  # of several words of an object the first counts
        spans = {p.object: (p.start, p.end) for p in parts if p.role == "object" and p.object is not None}
        seen = sorted(((i, span) for i, span in spans.items() if scene.masks[i].any()), key=lambda item: item[1])
        if len(seen) > 1:
            yield number, scene, seen[:2]


def main(config: Config) -> None:
    model, rows = load("mini-unet"), []
    for number, scene, objects in tqdm(islice(scenes_of_two(), config.scenes), "scenes", config.scenes):
        picture = Image.fromarray(scene.picture)
        denoising = denoise_at(model, scene.caption.text, config.time, image=picture, seed=number + 1)
        for method in METHODS:
            maps = explain_at(denoising, None, method, words=[span for _, span in objects]).values
            for found, (own, _), (other, _) in zip(maps, objects, reversed(objects)):
                scores = score_maps(found, scene.masks[own], scene.masks[other])
                rows.append({"method": method, **{name: float(value) for name, value in scores.items()}})
    table = pd.DataFrame(rows).pivot_table(index="method", values=SHOWN, sort=False)
    print(table[SHOWN].to_string(float_format="%.2f"))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
