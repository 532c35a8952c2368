"""Writes mini-unet's model card from its scores. Run `make scores` before.

python -m toushi.experiments.training.model_card
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import tyro

from toushi.experiments.training.checkpoint import LOG, read_log
from toushi.probe.pipelines.load import SHIPPED, load_own

GOALS = {"object": 0.95, "position": 0.95, "colour": 0.90, "sense": 0.90}
PREVIEW = 0.85  # below this, on objects or positions, the weights are a preview

CARD = """# mini-unet{mark}

A small text-to-image model of the popular article's design, made for looking inside: byte-level BPE, 77 tokens, a
bidirectional text encoder of 12 layers ({encoder:.2f}M parameters), a latent U-Net with cross-attention at every
resolution ({unet:.2f}M), and a VAE ({vae:.2f}M). Pictures have 64x64 pixels. Weights sha256 `{sha}`.

## Data

Generated scenes of this project's scene world (`experiments/scene_world`), with generated captions in Chinese (about 7
in 10) and English. There are 102 kinds of objects, colours, places, times, styles, and words with two meanings. Held
out by rule: one in ten pairs of objects, some colours of objects, some sentence forms. There are no photographs and no
personal data. The model knows nothing else.

## Training

`python -m toushi.experiments.training.train_mini_unet` on two CPU cores, often shared with other work: {samples:,}
samples in {hours:.1f} hours, held-out velocity loss {loss:.4f}. The log is beside this card (`log.jsonl`). The released
weights are a running average, stored in fp16.

{history}

## Scores

Written by `make scores` and `python -m toushi.experiments.training.model_card`. 95% intervals resample scenes. `usual`
is the rate of always answering the commonest place, time and style.

### Does it draw what the prompt says? Held-out prompts, 20 steps, guidance 3, judged by the recogniser

{held_out}

### The same on the distribution of training, other seeds

{test}

### Do its heat maps point at the objects?

`hit` is the share of objects whose word has the peak of its map inside the object's mask. `other` is the same for
another word's map, `chance` the mask's share of the picture, `found` the share of objects that could be scored.

{pointing}

The best layer is chosen on even scenes and scored on odd ones. `trace.heat_map` shows {shown}.

{best}

## Faults

{faults}
"""

HISTORY = """The weights come from several runs of that command. The tokenizer and the VAE were trained by the same functions before
the script included them. `samples` counts what the U-Net saw. The text encoder was replaced at 536 thousand: it saw the
samples since then, and 96 thousand captions of its own. The U-Net's attention to the text was never supervised; the
text encoder was taught places by the `Reader`.

| from thousand samples | what changed |
| --- | --- |
| 0 | Stopped and resumed from checkpoints four times. `object_weight` changed from 0 to 4 at 62 thousand. |
| 124 | Restart from the shipped average, without the optimizers' state: naming head (`naming_weight`), batches of 48 instead of 32, an average of 0.998, `--pool-first 40000 --pool 60000`. |
| 392 | `--begin shipped --batch 64 --average 0.999 --pool-first 100000 --pool 100000 --precision bf16 --adam-share 0.4` |
| 498 | Also `--early 0.3 --naming-weight 1.0`, with colours named. At pure noise the namer named 100% of single objects, and 56% of those in pairs: which of two stood where had not been learnt. |
| 536 | The scores of the encoder's first layer had grown (deviation 35), so its softmax was saturated. A fresh encoder with normalised, rotary attention replaced it. It learnt what lies where from 96 thousand captions alone (`Reader`, `experiments/training/train_encoder.py`). Training of both continued with `--decay 0.1`: 27 thousand samples later, 93% of the objects in pairs were named right at pure noise. |
| 703 | `--minutes 34 --cooldown 0.75 --average 0.998 --early 0.12 --naming-weight 0.15 --reading-weight 0.1` |
| 834 | The same with `--minutes 106 --cooldown 0.55 --pool-first 200000 --pool 200000`. The process stood still for half an hour near its end, which the log counts as training time. |
| 1202 | A last fall of the learning rate: `--minutes 8.5 --lr 0.0008 --cooldown 1` |
| 1235 | `--minutes 80 --lr 0.002 --cooldown 0.85`. Then 84% of the objects of held-out prompts stood in the right position, hardly more than before. Sentence forms that training never shows failed, such as 位于. |
| 1457 | `--minutes 28 --lr 0.0015 --cooldown 1 --early 0.15 --reading-weight 0.3 --garbled 0.25`: a quarter of what stands between the parts of a caption is left out or replaced at random. This included sentences with a relation, which the code now leaves unchanged. |"""


@dataclass(frozen=True)
class Config:
    scores: Path = Path("runs/score_mini_unet")
    pointing: Path = Path("runs/pointing")
    model: str = "mini-unet"


def heat_map_rule(rates: pd.DataFrame, best: pd.DataFrame) -> dict | None:
    """The default of `trace.heat_map`: the layer that points best at exact masks, if it is better than the plain mean of
    all layers; else None, which is that mean."""
    layer = best.set_index("kind").best_layer["noised"]
    hits = rates.loc[rates.kind == "noised"].groupby("layer").hit.mean()
    if hits["plain mean"] >= hits[layer]:
        return None
    return {"sites": [layer], "rule": f"mean over heads and steps of {layer}, the layer that points best (model card)"}


def list_faults(held_out: pd.DataFrame) -> str:
    """The rates that are below their goals, with the numbers."""
    rates = held_out.loc[held_out.language == "all"].set_index("what").right
    short = [f"- {what}: {rates[what]:.3f}, the goal is {goal}" for what, goal in GOALS.items() if rates[what] < goal]
    return "\n".join([*short, "- Trained at 64x64 alone; nothing was measured at other sizes."])


def markdown_table(frame: pd.DataFrame) -> str:
    """A Markdown table, numbers to three digits."""

    def cell(value) -> str:
        return "" if pd.isna(value) else f"{value:.3f}" if isinstance(value, float) else str(value)

    rows = [frame.columns, ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(cell, row)) + " |" for row in rows)


def main(config: Config) -> None:
    folder = SHIPPED / config.model
    pointing, best = (pd.read_csv(config.pointing / name) for name in ("rates.csv", "best_layers.csv"))
    rule = heat_map_rule(pointing, best)
    model = load_own(config.model, "cpu")
    replace(model.config, heat_map=rule).save(folder)
    *_, last = read_log(folder / LOG).values()
    held_out = pd.read_csv(config.scores / "held_out_rates.csv")
    test = config.scores / "test_rates.csv"
    rates = held_out.loc[held_out.language == "all"].set_index("what").right
    sizes = {
        name: sum(p.numel() for p in getattr(model, name).parameters()) / 1e6 for name in ("encoder", "unet", "vae")
    }
    card = CARD.format(
        mark=" (preview)" if min(rates["object"], rates["position"]) < PREVIEW else "",
        sha=model.weights_sha256,
        samples=last["samples"],
        hours=last["hours"],
        loss=last["held_out_loss"],
        held_out=markdown_table(held_out),
        test=markdown_table(pd.read_csv(test)) if test.exists() else "Not measured for these weights.",
        pointing=markdown_table(pointing),
        best=markdown_table(best),
        shown="the plain mean of all layers, which points better" if rule is None else f"the {rule['rule']}",
        faults=list_faults(held_out),
        history=HISTORY,
        **sizes,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
