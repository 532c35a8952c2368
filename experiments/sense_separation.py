"""At which layer does a text encoder tell the two senses of a Chinese word apart?

    python -m experiments.sense_separation --encoder FOLDER --out runs/sense_separation

The claim: layers 1-4 know words, 5-8 phrases, deeper ones the whole intent; so the sense of 苹果 or 小米, which only
the rest of the sentence tells, should appear in the middle layers, and not in the first. It would be refuted by
senses that can be read off as well at layers 1-4 as anywhere, or that can be read off nowhere.

Each word of `experiments/data/polysemy.tsv` has 32 sentences in matched pairs, one of each sense. At each layer the
word's own state is read out by nearest centroids, each pair judged by the others (`probe.analysis.layers`). Beside
it stand the same with senses shuffled, the same encoder with random weights, and, as the rest of a sentence can come
first or later, the sentences with the context before and after the word apart. Intervals resample words.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from tqdm import tqdm

from experiments.polysemy import read_polysemy
from probe.analysis.layers import sense_separation
from probe.figures.senses import senses_figure
from probe.figures.style import save
from probe.lens.encoders import Encoder, lens, open_encoder, wrapped
from probe.recording.provenance import git_commit, versions

CLAIM = {"words": range(1, 5), "phrases": range(5, 9)}  # of the article, the deeper layers being the third part


@dataclass(frozen=True)
class Config:
    encoder: str
    """Folder of a text encoder of the transformers library."""
    out: Path = Path("runs/sense_separation")
    words: int | None = None
    """Only so many words, for a first look."""
    shuffles: int = 49
    resamples: int = 1000
    seed: int = 0


def with_random_weights(folder: str, tokenizer, seed: int) -> Encoder:
    """The floor: the same design that has learnt nothing."""
    from transformers import AutoConfig, AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder), attn_implementation="sdpa")
    return wrapped(model.eval(), tokenizer, "random weights")


def of_word(encoder: Encoder, word: str, rows: pd.DataFrame, config: Config) -> Iterator[dict]:
    """A row for each place of the context and each layer."""
    readings = lens(encoder, list(rows.sentence))
    states = readings.states_of([(start, start + len(word)) for start in rows.start]).values
    pair = rows.groupby(["sense", "place"]).cumcount().astype(str) + rows.place
    for place in ("both", "before", "after"):
        some = np.ones(len(rows), bool) if place == "both" else (rows.place == place).to_numpy()
        found = sense_separation(
            states[:, some],
            rows.sense.to_numpy()[some],
            pair.to_numpy()[some],
            resamples=1,
            shuffles=config.shuffles,
            seed=config.seed,
        )
        for layer in found.layer.values.tolist():
            at = found.sel(layer=layer)
            numbers = {name: float(at[name]) for name in ("separation", "accuracy", "accuracy_shuffled")}
            yield dict(word=word, place=place, layer=layer, **numbers)


def measured(name: str, encoder: Encoder, config: Config) -> pd.DataFrame:
    """The table of one encoder, kept word by word: started again it goes on."""
    file = config.out / f"{name}.csv"
    done = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["word"])
    words = list(read_polysemy().groupby("word", sort=False))[: config.words]
    for word, rows in tqdm(words, desc=name, unit="word"):
        if word not in set(done.word):
            new = pd.DataFrame(of_word(encoder, word, rows, config))
            done = new if done.empty else pd.concat([done, new], ignore_index=True)
            temporary = file.with_suffix(".tmp")
            done.to_csv(temporary, index=False)
            temporary.replace(file)
    return pd.read_csv(file)


def summary(table: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Means over words by place and layer, with 95% intervals that resample words."""
    rows = []
    for (place, layer), part in table.groupby(["place", "layer"], sort=False):
        chosen = np.random.default_rng(seed).integers(len(part), size=(resamples, len(part)))
        low, high = np.quantile(part.accuracy.to_numpy()[chosen].mean(1), (0.025, 0.975))
        means = {name: part[name].mean() for name in ("accuracy", "accuracy_shuffled", "separation")}
        rows.append(dict(place=place, layer=layer, low=low, high=high, words=len(part), **means))
    return pd.DataFrame(rows)


def verdict(table: pd.DataFrame, resamples: int, seed: int) -> str:
    """What the numbers say of the claim: how much of what the best layer reads off is there by each part."""
    wide = table[table.place == "both"].pivot(index="word", columns="layer", values="accuracy")
    chosen = np.random.default_rng(seed).integers(len(wide), size=(resamples, len(wide)))
    parts = {name: [layer for layer in span if layer in wide] for name, span in CLAIM.items()}
    parts["intent"] = [layer for layer in wide.columns if layer > max(CLAIM["phrases"])]
    if not all(parts.values()):
        return "undecided: the claim speaks of more layers than this encoder has"
    best = {name: wide[layers].max(axis=1).to_numpy() for name, layers in parts.items()}
    early = best["words"][chosen].mean(1) - 0.5
    late = np.maximum(best["phrases"], best["intent"])[chosen].mean(1) - 0.5
    low, high = np.quantile(early / late, (0.025, 0.975))
    share = (best["words"].mean() - 0.5) / (np.maximum(best["phrases"], best["intent"]).mean() - 0.5)
    said = f"layers 1-4 read off {share:.0%} [{low:.0%}, {high:.0%}] of what layers 5 and deeper do (above chance)"
    if high < 0.5:
        return f"supported: {said}; senses appear after the first layers"
    return f"refuted: {said}; senses are there in the first layers already" if low > 0.5 else f"undecided: {said}"


def main(config: Config) -> None:
    started = time.perf_counter()
    config.out.mkdir(parents=True, exist_ok=True)
    real = open_encoder(config.encoder, "cpu")
    from transformers import AutoTokenizer

    floor = with_random_weights(config.encoder, AutoTokenizer.from_pretrained(config.encoder), config.seed)
    tables = {"trained": measured("trained", real, config), "random": measured("random", floor, config)}
    summaries = [summary(table, config.resamples, config.seed).assign(weights=name) for name, table in tables.items()]
    found = pd.concat(summaries, ignore_index=True)
    found.round(4).to_csv(config.out / "summary.csv", index=False)
    for kind in ("png", "pdf"):
        save(senses_figure(found, Path(config.encoder).name), config.out / f"summary.{kind}")
    said = verdict(tables["trained"], config.resamples, config.seed)
    weights = Path(config.encoder) / "model.safetensors"
    about = {
        "verdict": said,
        "config": {**asdict(config), "encoder": Path(config.encoder).name, "out": config.out.name},
        "weights_sha256": sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None,
        "versions": versions(),
        "git": git_commit(),
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    (config.out / "manifest.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = found[found.place == "both"].pivot(index="layer", columns="weights", values="accuracy")
    print(f"{shown.round(3).to_string()}\n\n{said}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
