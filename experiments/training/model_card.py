"""Writes mini-unet's model card from what was measured: `make scores` first, then this.

python -m toushi.experiments.training.model_card
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import tyro

from toushi.probe.pipelines.load import SHIPPED, load

GOALS = {"object": 0.95, "position": 0.95, "colour": 0.90, "sense": 0.90}
PREVIEW = 0.85  # below this, on objects or positions, the weights are a preview

CARD = """# mini-unet{mark}

A small text-to-image model of the popular article's design, made to be looked into: byte-level BPE, 77 tokens, a
bidirectional text encoder of 12 layers ({encoder:.2f}M parameters), a latent U-Net with cross-attention at every
resolution ({unet:.2f}M), a VAE ({vae:.2f}M); 64x64 pixels. Weights sha256 `{sha}`.

## Data

Scenes of this project's own world (`probe/world`): 102 kinds of objects, colours, places, times, styles, words with
two meanings; captions in Chinese (about 7 in 10) and English, generated. Held out by rule: one in ten pairs of
objects, some colours of objects, some sentence forms. No photographs, no people's data. It knows nothing else.

## Training

`python -m toushi.experiments.training.train_mini_unet` on two CPU cores, often shared with other work: {samples:,} samples in {hours:.1f} hours,
held-out velocity loss {loss:.4f}. The log is beside this card (`log.jsonl`). The released weights are a running
average, stored in fp16.
{history}

## Scores

Written by `make scores` and `python -m toushi.experiments.training.model_card`; 95% intervals resample scenes. `usual` is the rate of
always answering the commonest place, time and style.

### Does it draw what it is told? Held-out prompts, 20 steps, guidance 3, judged by the recogniser

{held_out}

### The same on training's own distribution, other seeds

{test}

### Do its heat maps point at the objects?

The share of objects in whose mask the map of their word has its peak. `other` is the same for another word's map,
`chance` the mask's share of the picture, `found` the share of objects that could be scored.

{pointing}

The best layer, chosen on even scenes and scored on odd ones. `trace.heat_map` shows {shown}.

{best}

## Faults

{faults}
"""


HISTORY = """They are not one clean run of
that command. Until 124 thousand samples training was stopped and went on from checkpoints four times, and
`object_weight` went from 0 to 4 at 62 thousand. Then it began again from the shipped average, the optimizers' state
lost, with the naming head (`naming_weight`), batches of 48 in place of 32, an average of 0.998 and other scenes
(`--pool-first 40000 --pool 60000`). The tokenizer and the VAE were trained by the same functions before the script
joined them.

From 392 thousand on: `--begin shipped --batch 64 --average 0.999 --pool-first 100000 --pool 100000 --precision bf16
--adam-share 0.4`; from 498 thousand also `--early 0.3 --naming-weight 1.0`, with colours named. At pure noise the
namer then told 100 % of single objects and 56 % of those in pairs: which of two stood where had never been learnt. The
scores of the encoder's first layer had grown (deviation 35): its softmax was saturated. So at 536 thousand the encoder
was replaced by a fresh one with normalised, rotary attention, which learnt what lies where from 96 thousand captions
alone (`Reader`, `experiments/training/train_encoder.py`), and training of both went on with `--decay 0.1`: 27 thousand samples
later 93 % of the objects in pairs were named right at pure noise. From 703 thousand on
`--minutes 34 --cooldown 0.75 --average 0.998 --early 0.12 --naming-weight 0.15 --reading-weight 0.1`; from 834 thousand
on the same with `--minutes 106 --cooldown 0.55 --pool-first 200000 --pool 200000`, where the process stood still for
half an hour near its end, which the log counts as hours; from 1202 thousand on a last fall of the learning rate
(`--minutes 8.5 --lr 0.0008 --cooldown 1`); from 1235 thousand on `--minutes 80 --lr 0.002 --cooldown 0.85`, after which
84 % of the objects of held-out prompts stood in the right position, hardly more than before. What failed were the
sentence forms that training never shows, 位于 for one. So from 1457 thousand on `--minutes 28 --lr 0.0015 --cooldown 1
--early 0.15 --reading-weight 0.3 --garbled 0.25`: a quarter of what stands between the parts of a caption is left out or
replaced at random (then also in sentences with a relation, which the code now spares). `samples` counts
what the U-Net saw; the encoder saw those since 536 thousand, and its own 96 thousand. Attention to the text was never
supervised in the U-Net; the encoder, by the reader, was taught places."""


@dataclass(frozen=True)
class Config:
    scores: Path = Path("runs/score_mini_unet")
    pointing: Path = Path("runs/pointing")
    model: str = "mini-unet"


def heat_map_rule(rates: pd.DataFrame, best: pd.DataFrame) -> dict | None:
    """What `trace.heat_map` shows by default: the layer that pointed best at exact masks, if it does so better than
    the plain mean of all layers; else None, which is that mean."""
    layer = best.set_index("kind").best_layer["noised"]
    hits = rates[rates.kind == "noised"].groupby("layer").hit.mean()
    if hits["plain mean"] >= hits[layer]:
        return None
    return {"sites": [layer], "rule": f"mean over heads and steps of {layer}, the layer that points best (model card)"}


def faults(held_out: pd.DataFrame) -> str:
    """What falls short of the goals, said with the numbers."""
    rates = held_out[held_out.language == "all"].set_index("what").right
    short = [f"- {what}: {rates[what]:.3f}, the goal is {goal}" for what, goal in GOALS.items() if rates[what] < goal]
    return "\n".join([*short, "- Trained at 64x64 alone; nothing was measured at other sizes."])


def table(frame: pd.DataFrame) -> str:
    """A Markdown table, numbers to three digits."""

    def cell(value) -> str:
        return "" if pd.isna(value) else f"{value:.3f}" if isinstance(value, float) else str(value)

    rows = [frame.columns, ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(cell, row)) + " |" for row in rows)


def main(config: Config) -> None:
    folder = SHIPPED / config.model
    pointing, best = (pd.read_csv(config.pointing / name) for name in ("rates.csv", "best_layers.csv"))
    rule = heat_map_rule(pointing, best)
    model = load(config.model, "cpu")
    adopted = asdict(replace(model.config, heat_map=rule))
    (folder / "config.json").write_text(json.dumps(adopted, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    held_out = pd.read_csv(config.scores / "held_out_rates.csv")
    test = config.scores / "test_rates.csv"
    rates = held_out[held_out.language == "all"].set_index("what").right
    sizes = {
        name: sum(p.numel() for p in getattr(model, name).parameters()) / 1e6 for name in ("encoder", "unet", "vae")
    }
    card = CARD.format(
        mark=" (preview)" if min(rates["object"], rates["position"]) < PREVIEW else "",
        sha=model.weights_sha256,
        samples=log[-1]["samples"],
        hours=log[-1]["hours"],
        loss=log[-1]["held_out_loss"],
        held_out=table(held_out),
        test=table(pd.read_csv(test)) if test.exists() else "Not measured for these weights.",
        pointing=table(pointing),
        best=table(best),
        shown="the plain mean of all layers, which points better" if rule is None else f"the {rule['rule']}",
        faults=faults(held_out),
        history=HISTORY,
        **sizes,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
