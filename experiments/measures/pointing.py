"""Do heat maps lie on the objects of their words? The pointing game, with known masks.

    python -m toushi.experiments.measures.pointing

Two kinds of pictures. *Noised*: real scenes with exact masks, noised to several times and evaluated once by the denoiser.
*Drawn*: pictures that the model drew, whose masks are those of the sprites that the recogniser finds. An object that it
does not find has no mask and is not scored, so the share of found objects is reported beside each rate: these are the
objects that were drawn best.

A word hits if the peak of its map lies inside the mask of its object. Each layer is scored, and the plain mean over layers,
from recorded traces. `other` is the control: how often the map of another word (the other object, or, in a scene of one
object, <eos>) has its peak in that mask. A map that points at any object scores as high there. `chance` is the mask's share
of the picture. Intervals resample scenes. The best layer is chosen on even scenes and scored on odd ones, because the best
of several scores is partly luck.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from tqdm import tqdm
from xarray import DataArray

from toushi.experiments.measures.statistics import groups, share
from toushi.experiments.scene_world.example import Example, example
from toushi.experiments.scene_world.recogniser import detected_masks
from toushi.experiments.training.scene_batches import stack_pictures, unit
from toushi.probe.analysis.maps import auc, mean_of_sites, pointing_game
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.load import load_own
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_collection
from toushi.probe.trace.picture_trace import Trace

SITES = "unet.*cross_attention"


@dataclass(frozen=True)
class Config:
    """Number of scenes, their times, and the sampling of pictures."""

    model: str = "mini-unet"
    split: str = "held_out"
    noised_scenes: int = 200
    drawn_pictures: int = 200
    times: tuple[float, ...] = (0.9, 0.7, 0.5, 0.3)
    steps: int = 20
    seed: int = 0
    batch: int = 20
    out: Path = Path("runs/pointing")


def score_words(trace: Trace, example: Example, masks: list[np.ndarray | None]) -> Iterator[dict]:
    """A row for each object and layer, by the first word that names it: whether its peak hits, whether that of another
    word does, AUC and chance. An object without a mask gives one row with `found` False."""
    parts = [part for part in reversed(example.caption.parts) if part.role == "object"]
    named = {part.object: (part.start, part.end) for part in parts if part.object is not None}
    maps = {item: layer_maps(trace, span) for item, span in named.items()}
    last = trace.tokens()[-1].column
    for item, span in named.items():
        about = dict(word=example.caption.text[span[0] : span[1]], objects=len(example.scene.objects))
        mask = masks[item]
        if mask is None or not mask.any():
            yield about | dict(found=False)
            continue
        others = [maps[k] for k in named if k != item] or [layer_maps(trace, None, last)]
        for layer, map in maps[item].items():
            hit, other = (bool(pointing_game(m, mask)) for m in (map, others[0][layer]))
            area = dict(auc=float(auc(map, mask)), chance=float(mask.mean()))
            yield about | dict(found=True, layer=layer, hit=hit, other=other) | area


def layer_maps(trace: Trace, word: tuple[int, int] | None, column: int | None = None) -> dict[str, np.ndarray]:
    """The mean over steps [y, x] of each layer, and the plain mean of all layers, for a word or for a token's column."""

    def mean_of_steps(maps: DataArray) -> np.ndarray:
        return (maps if column is None else maps.sel(token=column)).mean("step").values

    maps = {site: mean_of_steps(m) for site, m in trace.attention(word, sites=SITES, grid="native").items()}
    return maps | {"plain mean": mean_of_sites(list(maps.values()))}


def score_noised_scenes(model: MiniUNet, config: Config) -> Iterator[dict]:
    generator = torch.Generator().manual_seed(config.seed)
    seeds = range(config.noised_scenes)
    for start in tqdm(range(0, len(seeds), config.batch), desc="noised scenes", unit="batch"):
        some = seeds[start : start + config.batch]
        examples = [example(seed, config.split) for seed in some]
        pictures = unit(stack_pictures(e.picture for e in examples))
        latents = model.vae.encode(pictures.to(model.device, model.dtype)).float()
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        for time in config.times:
            with tempfile.TemporaryDirectory() as folder:
                with record(model, Path(folder) / "runs", keep="mean", sites=SITES):
                    model.denoise((1 - time) * latents + time * noise, time, [e.caption.text for e in examples])
                for seed, e, trace in zip(some, examples, open_collection(Path(folder) / "runs")):
                    for row in score_words(trace, e, list(e.masks)):
                        yield dict(kind="noised", scene=seed, time=time) | row


def score_drawn_pictures(model: MiniUNet, config: Config) -> Iterator[dict]:
    # Other scenes than the noised ones.
    seeds = range(10_000, 10_000 + config.drawn_pictures)
    for start in tqdm(range(0, len(seeds), config.batch), desc="drawn pictures", unit="batch"):
        some = seeds[start : start + config.batch]
        examples = [example(seed, config.split) for seed in some]
        with tempfile.TemporaryDirectory() as folder:
            with record(model, Path(folder) / "runs", keep="mean", sites=SITES, branches="cond"):
                pictures = model.sample(
                    [e.caption.text for e in examples], steps=config.steps, seed=[config.seed + seed for seed in some]
                )
            for seed, e, picture, trace in zip(some, examples, pictures, open_collection(Path(folder) / "runs")):
                masks = detected_masks(e.scene, np.asarray(picture))
                yield from (dict(kind="drawn", scene=seed, time=None) | row for row in score_words(trace, e, masks))


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """Hit rate with its interval, the control, AUC and chance for each kind, time and layer; and the share of
    objects that could be scored."""
    rows = []
    for (kind, time), part in groups(table, ["kind", "time"]):
        found = len(part.loc[part.found].drop_duplicates(["scene", "word"]))
        for layer, some in part.loc[part.found].groupby("layer", sort=False):
            hit, low, high = share(some.hit, some.scene)
            means = dict(other=some.other.mean(), auc=some.auc.mean(), chance=some.chance.mean())
            counts = dict(words=len(some), found=found / (found + int((~part.found).sum())))
            rows.append(dict(kind=kind, time=time, layer=layer, hit=hit, low=low, high=high) | means | counts)
    return pd.DataFrame(rows)


def best_layers(table: pd.DataFrame) -> pd.DataFrame:
    """For each kind: the layer with the most hits on even scenes (over all times), and its rate on odd ones."""
    rows = []
    for kind, part in table.loc[table.found & (table.layer != "plain mean")].groupby("kind"):
        choosing, judging = part.loc[part.scene % 2 == 0], part.loc[part.scene % 2 == 1]
        layer = choosing.groupby("layer").hit.mean().idxmax()
        judged = judging.loc[judging.layer == layer]
        hit, low, high = share(judged.hit, judged.scene)
        other = judged.other.mean()
        rows.append(dict(kind=kind, best_layer=layer, hit=hit, low=low, high=high, other=other, words=len(judged)))
    return pd.DataFrame(rows)


def main(config: Config) -> None:
    model = load_own(config.model, threads=torch.get_num_threads())  # large batches gain from all threads
    table = pd.DataFrame([*score_noised_scenes(model, config), *score_drawn_pictures(model, config)])
    config.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(config.out / "words.csv", index=False)
    rates(table).to_csv(config.out / "rates.csv", index=False)
    best_layers(table).to_csv(config.out / "best_layers.csv", index=False)
    (config.out / "config.json").write_text(json.dumps(asdict(config), default=str, indent=1))
    print(rates(table).to_string(index=False, float_format="{:.3f}".format))
    print("\nThe best layer, chosen on the even scenes and scored on the odd ones:")
    print(best_layers(table).to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
