"""Do heat maps lie on what their words describe? The pointing game, where the true masks are known.

    python -m experiments.pointing

Two kinds of pictures. *Noised*: real scenes with exact masks, noised to several times and looked at once by the
denoiser. *Drawn*: pictures that the model drew itself, whose masks are those of the sprites that the recogniser
finds there; words whose object is not found are counted as not drawn, never as hits or misses.

A word hits when its map has its peak inside the mask of its object. Each layer is scored, and the plain mean over
layers, all of it from recorded traces. The best layer is chosen on the first half of the scenes and scored on the
other half, since the best of several scores is luck in part. `chance` is the hit rate of a random peak.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from tqdm import tqdm

from experiments.statistics import wilson
from experiments.training_data import unit
from probe.analysis.maps import auc, pointing_game
from probe.models.load import load
from probe.models.mini_unet import MiniUNet
from probe.record import record
from probe.trace.reader import Trace, open_collection
from probe.world.example import Example, example
from probe.world.recogniser import found_masks

SITES = "unet.*cross_attention"


def batched(items, size: int) -> Iterator[list]:
    items = iter(items)
    while some := list(islice(items, size)):
        yield some


@dataclass(frozen=True)
class Config:
    """How many scenes, noised to which times, and how pictures are drawn."""

    model: str = "mini-unet"
    split: str = "held_out"
    noised: int = 200
    drawn: int = 200
    times: tuple[float, ...] = (0.9, 0.7, 0.5, 0.3)
    steps: int = 20
    seed: int = 0
    batch: int = 20
    out: Path = Path("runs/pointing")


def scored(trace: Trace, example: Example, masks: list[np.ndarray | None]) -> Iterator[dict]:
    """One row for each object word and layer: whether the peak hits, the AUC, and the mask's share of the picture."""
    for part in example.caption.parts:
        if part.role != "object" or masks[part.object] is None or not masks[part.object].any():
            continue
        word, mask = (part.start, part.end), masks[part.object]
        maps = {site: m.mean("step") for site, m in trace.attention(word, grid="native").items()}
        maps["plain mean"] = trace.heat_map(word)
        for layer, found in maps.items():
            yield dict(
                layer=layer, word=example.caption.text[slice(*word)],
                hit=bool(pointing_game(found.values, mask)), auc=float(auc(found.values, mask)), chance=float(mask.mean()),
            )  # fmt: skip


def noised(model: MiniUNet, config: Config) -> Iterator[dict]:
    generator = torch.Generator().manual_seed(config.seed)
    seeds = range(config.noised)
    for some in batched(tqdm(seeds, desc="noised scenes"), config.batch):
        examples = [example(seed, config.split) for seed in some]
        pictures = torch.from_numpy(np.stack([e.picture for e in examples])).permute(0, 3, 1, 2)
        latents = model.vae.encode(unit(pictures).to(model.device, model.dtype)).float()
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        for time in config.times:
            with tempfile.TemporaryDirectory() as folder:
                with record(model, Path(folder) / "runs", keep="mean", sites=SITES):
                    model.denoise((1 - time) * latents + time * noise, time, [e.caption.text for e in examples])
                for seed, e, trace in zip(some, examples, open_collection(Path(folder) / "runs")):
                    for row in scored(trace, e, list(e.masks)):
                        yield dict(kind="noised", scene=seed, time=time) | row


def drawn(model: MiniUNet, config: Config) -> Iterator[dict]:
    # Other scenes than the noised ones.
    for some in batched(tqdm(range(10_000, 10_000 + config.drawn), desc="drawn pictures"), config.batch):
        examples = [example(seed, config.split) for seed in some]
        with tempfile.TemporaryDirectory() as folder:
            with record(model, Path(folder) / "runs", keep="mean", sites=SITES, branches="cond"):
                pictures = model.sample(
                    [e.caption.text for e in examples], steps=config.steps, seed=config.seed + some[0]
                )
            for seed, e, picture, trace in zip(some, examples, pictures, open_collection(Path(folder) / "runs")):
                masks = found_masks(e.scene, np.asarray(picture))
                rows = list(scored(trace, e, masks))
                yield from (dict(kind="drawn", scene=seed, time=None) | row for row in rows)


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """Hit rate with its 95% Wilson interval, mean AUC and chance, for each kind, time and layer."""
    rows = []
    for (kind, time, layer), part in table.groupby(["kind", "time", "layer"], dropna=False, sort=False):
        low, high = wilson(int(part.hit.sum()), len(part))
        rows.append(
            dict(kind=kind, time=time, layer=layer, hit=part.hit.mean(), low=low, high=high, auc=part.auc.mean(),
                 chance=part.chance.mean(), words=len(part))
        )  # fmt: skip
    return pd.DataFrame(rows)


def best_layers(table: pd.DataFrame) -> pd.DataFrame:
    """For each kind: the layer with the most hits on even scenes (over all times), and its rate on odd ones."""
    rows = []
    for kind, part in table[table.layer != "plain mean"].groupby("kind"):
        choosing, judging = part[part.scene % 2 == 0], part[part.scene % 2 == 1]
        layer = choosing.groupby("layer").hit.mean().idxmax()
        judged = judging[judging.layer == layer]
        low, high = wilson(int(judged.hit.sum()), len(judged))
        rows.append(dict(kind=kind, best_layer=layer, hit=judged.hit.mean(), low=low, high=high, words=len(judged)))
    return pd.DataFrame(rows)


def main(config: Config) -> None:
    model = load(config.model)
    table = pd.DataFrame([*noised(model, config), *drawn(model, config)])
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
