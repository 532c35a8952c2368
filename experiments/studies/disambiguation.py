"""At which layer does a text encoder separate the two senses of a Chinese word, and what separates them?

    toushi run disambiguation
    toushi run disambiguation --config e5

The claim: the first third of the layers (1-4 of 12) knows words, the second phrases, the last the whole intent. So the
sense of 苹果 or 小米, which only the rest of the sentence tells, should appear after the first third. It would be refuted
by senses that can be read in the first third as well as anywhere.

Sentences come in pairs, one for each sense, that are the same on one side of the word
(`experiments/measures/minimal_pairs.py`): ordinary Chinese for encoders that can read it; for ours, which knows only the
words of the scene world, pairs from it, where each sense has a picture. At each layer the sense is read from the word's own
state by nearest centroids, each pair judged by the others (`toushi.probe.analysis.layer_measures`). Controls:

- the same with shuffled senses, and with random weights;
- the context before and after the word separately;
- the state of the *neighbour* on the shared side: what can be read there as well is the topic of the sentence, not the
  sense of the word;
- a *bag*: the mean of the embeddings of all other tokens, which has understood nothing.

Then each other word is blanked: its embedding is replaced by the mean, so that no token moves. Does a word move the
state of the ambiguous word more where its side decides the sense than where its side is the shared one? (One side is not
compared with the other, because words far away move it less than those beside it, whatever they mean.)

The rule was set before the first run. Take the best layer of the first third and the best of the deeper ones, of the mean
over words, chosen anew in every resample. s is the share of what is read above chance that is there in the first third.

- Supported: the 95% interval of s, which resamples words, lies below one half.
- Refuted: it lies above one half.
- Undecided: anything else; where the deeper layers do not read the senses either (lower end under 60%); fewer than 6 words.

Limits. The best of several layers is taken on both sides, of fewer on the first. Some senses can be guessed from the
characters of the other side alone (a naive Bayes: 86%, `data/polysemy.md`), so a state that merely holds the words around
separates them without any understanding. The bag shows how much that could be; the rule does not use it. (Random weights
do not show it: they hardly mix, so there the word's state holds nothing but the word.) In ordinary sentences with the
context before the word only a full stop follows it, so only the side before the word can be compared with itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from toushi.experiments.measures.encoder_states import (
    WEIGHTS,
    bags_at,
    data_sets,
    encoder_label,
    load_cpu_encoder,
    states_at,
    weight_files,
)
from toushi.experiments.measures.minimal_pairs import check_sentences, sentences
from toushi.experiments.measures.polysemy import POLYSEMY
from toushi.experiments.measures.statistics import bounds, means, resample_items
from toushi.experiments.runner.settings import Count, Seed
from toushi.experiments.runner.study import FEWEST, Finding, Job, Study, Verdict
from toushi.probe.analysis.layer_measures import sense_separation
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.encoders.ablation import ablate_words, attention_rollout
from toushi.probe.encoders.encode_layers import encode_layers

STUDY = Study(
    title=Bilingual(en="At which layer two senses part", zh="一词两义在哪一层分开"),
    question=Bilingual(
        en="Only the rest of the sentence decides the sense of a word such as 苹果 or 银行. Does the sense appear after "
        "the first third of the layers? The claim is refuted if the senses can be read there just as well.",
        zh="苹果、银行这样的词，意思只由句中别的词决定。编码器是在前三分之一的层之后才分清词义吗？若前三分之一已分得一样清，"
        "这一说法便被推翻。",
    ),
    method=Bilingual(
        en="The two sentences of a pair are the same on one side of the word; the other side decides its sense. At "
        "each layer the sense is read from the word's own state by nearest centroids, which come from the other "
        "pairs. Baselines: shuffled senses, an untrained encoder of the same design, the neighbour on the shared "
        "side, and a bag, which is the mean embedding of the other tokens. Each other word is also left out in "
        "turn, to see how much the word's state changes. Intervals resample words.",
        zh="成对的句子在词的一侧逐字相同，另一侧决定词义。逐层用最近质心从该词自身的状态读出词义，每一对由其余各对判断；"
        "对照：打乱词义、随机权重的同构编码器、相同一侧的邻字、其余各词嵌入的均值（词袋）。再逐个去掉别的词，看该词的状态变化多少。区间由对词重抽样得到。",
    ),
)
AT_A_TIME = 8  # words in a job
NUMBERS = ["accuracy", "accuracy_shuffled", "separation"]  # of `sense_separation`
EXAMPLES = {"scenes": "河边的银行在左边，树在右边", "polysemy": "我在河边的银行钓鱼"}


@dataclass(frozen=True)
class Config:
    encoder: str = "mini-unet"  # or a folder, or a hub id
    data: Literal["auto", "scenes", "polysemy", "both"] = "auto"  # scenes for ours, both for the others
    words: Count | None = None  # only so many, for a first look
    shuffles: Count = 20
    left_out: Annotated[int, Field(ge=0)] = 2  # sentences of each sense and place from which words are left out
    resamples: Count = 1000
    seed: Seed = 0


def weights(config: Config) -> list[Path]:
    data = [POLYSEMY] if "polysemy" in data_sets(config.encoder, config.data, "polysemy") else []
    return weight_files(config.encoder) + data


def jobs(config: Config) -> list[Job]:
    about, found = {"encoder": config.encoder, "seed": config.seed}, []
    for data in data_sets(config.encoder, config.data, "polysemy"):
        count = min(sentences(data).word.nunique(), config.words or 10**6)
        for first in range(0, count, AT_A_TIME):
            given = about | {"data": data, "first": first, "last": min(first + AT_A_TIME, count)}
            for kind in WEIGHTS:
                call = given | {"weights": kind, "shuffles": config.shuffles}
                found.append(Job(f"{kind}-{data}-{first:02}", read_senses, call))
            if config.left_out:
                call = given | {"sentences_each": config.left_out}
                found.append(Job(f"left-out-{data}-{first:02}", ablate_context, call))
        found.append(Job(f"example-{data}", example_matrices, about | {"data": data}))
    return found


def select_words(data: str, first: int, last: int) -> Iterator[tuple[str, pd.DataFrame]]:
    table = check_sentences(sentences(data))
    for word in table.word.unique()[first:last]:
        yield word, table.loc[table.word == word].reset_index(drop=True)


def read_senses(encoder: str, weights: str, data: str, first: int, last: int, shuffles: int, seed: int) -> pd.DataFrame:
    """The share of senses that is read, for each word, place of the context, state and layer."""
    known, rows = load_cpu_encoder(encoder, weights, seed), []
    for word, table in select_words(data, first, last):
        own = [(start, start + len(word)) for start in table.start]
        beside = [_neighbour(*row) for row in zip(table.sentence, table.start, [len(word)] * len(table), table.place)]
        there = np.array([span is not None for span in beside])
        spans = own + [span for span in beside if span is not None]
        states = states_at(known, list(table.sentence) + list(table.sentence[there]), spans)
        asked = [("word", table, states[:, : len(table)]), ("neighbour", table[there], states[:, len(table) :])]
        if weights == "trained":
            asked.append(("bag", table, bags_at(known, list(table.sentence), own)))
        for where, part, some in asked:
            for place in ("both", "before", "after"):
                chosen = np.ones(len(part), bool) if place == "both" else (part.place == place).to_numpy()
                if part[chosen].groupby("sense").pair.nunique().min() < 2:
                    continue
                senses, pairs = part.sense.to_numpy()[chosen], part.pair.to_numpy()[chosen]
                found = sense_separation(some[:, chosen], senses, pairs, resamples=0, shuffles=shuffles, seed=seed)
                about = {"part": "told", "weights": weights, "data": data, "word": word, "place": place, "where": where}
                for layer in found.layer.values.tolist():
                    numbers = {name: float(found[name][layer]) for name in NUMBERS}
                    rows.append(about | {"layer": layer} | numbers)
    return pd.DataFrame(rows)


def ablate_context(encoder: str, data: str, first: int, last: int, sentences_each: int, seed: int) -> pd.DataFrame:
    """The change of the word's state (1 - cosine) at each layer, mean over the blanked words of each side."""
    known, rows = load_cpu_encoder(encoder, "trained", seed), []
    for word, table in select_words(data, first, last):
        table = table.groupby(["sense", "place"]).head(sentences_each)
        spans = [[(start, start + len(word))] for start in table.start]
        ablations = ablate_words(known, list(table.sentence), spans)
        for sentence, place, (own,), changes in zip(table.sentence, table.place, spans, ablations):
            reading_words = encode_layers(known, [sentence], attention=False)[0].words
            for side in ("decides", "shared"):
                first_half = (side == "decides") == (place == "before")
                here = [w.end <= own[0] if first_half else w.start >= own[1] for w in reading_words]
                values = changes.values[:, 0, here]
                if values.size and np.isfinite(values).any():
                    about = {"part": "left_out", "weights": "trained", "data": data, "word": word, "place": place}
                    for layer, value in enumerate(np.nanmean(values, axis=1)):
                        rows.append(about | {"side": side, "layer": layer, "change": float(value)})
    return pd.DataFrame(rows)


def example_matrices(encoder: str, data: str, seed: int) -> pd.DataFrame:
    """The word-by-word matrices of one sentence: by blanking words, and by attention rollout if it can be read."""
    known, rows = load_cpu_encoder(encoder, "trained", seed), []
    (reading,) = encode_layers(known, [EXAMPLES[data]])
    matrices = {"left out": ablate_words(known, [EXAMPLES[data]])[0]}
    if not reading.blind:
        matrices["rollout"] = attention_rollout(reading)
    about = {"part": "example", "data": data, "sentence": EXAMPLES[data]}
    for kind, matrix in matrices.items():
        values = matrix.astype(float).to_dataframe("value").reset_index().rename(columns={"word": "read"})
        rows += [about | {"kind": kind} | row for row in values.to_dict("records")]
    return pd.DataFrame(rows)


def _neighbour(sentence: str, start: int, length: int, place: str) -> tuple[int, int] | None:
    """The character next to the word on the shared side."""
    if place == "before":
        return (start + length, start + length + 1) if start + length < len(sentence) else None
    return (start - 1, start) if start else None


# --- what is made of it ---------------------------------------------------------------------------------


def conclude(config: Config, rows: pd.DataFrame) -> Finding:
    told, moved, shown = (
        rows.loc[rows.part == part].dropna(axis=1, how="all") for part in ("told", "left_out", "example")
    )
    keys = ["data", "weights", "where", "place", "layer"]
    senses = means(told, keys, NUMBERS, config.resamples, config.seed)
    data = told.data.iloc[0]  # what was asked first
    verdict, said = judge_senses(told.loc[told.data == data], config, encoder_label(config.encoder), data)
    tables = {"senses": senses}
    if len(moved):
        tables["left_out"] = means(moved, ["data", "place", "side", "layer"], ["change"], config.resamples, config.seed)
        said = _add_context_effect(said, moved.loc[moved.data == data], config)
    if len(shown):
        tables["example"] = shown.drop(columns="part").reset_index(drop=True)
    return Finding(verdict, said, tables)


def decide(words: int, low: float, high: float, deeper: float) -> Verdict:
    """The verdict by the rule, from the interval of s and the lower end of what the deeper layers read."""
    if words >= FEWEST and deeper >= 0.6:
        if high < 0.5:
            return "supported"
        if low > 0.5:
            return "refuted"
    return "undecided"


def judge_senses(readings: pd.DataFrame, config: Config, encoder: str, data: str) -> tuple[Verdict, Bilingual]:
    some = readings.loc[(readings.weights == "trained") & (readings["where"] == "word") & (readings.place == "both")]
    curves = some.pivot(index="word", columns="layer", values="accuracy").to_numpy()
    first = (curves.shape[1] - 1) // 3
    if first < 1:
        return "undecided", Bilingual(en=f"{encoder}: it has too few layers.", zh=f"{encoder}：层数太少。")
    picks = resample_items(len(curves), config.resamples, config.seed)
    drawn = np.concatenate([curves.mean(0)[None], curves[picks].mean(1)]) - 0.5  # the first is the real one
    early, late = drawn[:, 1 : first + 1].max(1), drawn[:, first + 1 :].max(1)
    share, (low, high) = (early / late)[0], bounds((early / late)[1:])
    verdict = decide(len(curves), low, high, bounds(late[1:])[0] + 0.5)
    bag = readings.loc[(readings["where"] == "bag") & (readings.place == "both")].accuracy.mean()
    numbers = f"{share:.0%} [{low:.0%}, {high:.0%}]"
    tops = f"{early[0] + 0.5:.0%}", f"{late[0] + 0.5:.0%}"
    zh = f"{encoder}（{data}，{len(curves)} 个词）：第 1-{first} 层至多读对 {tops[0]}，更深层至多 {tops[1]}；" + (
        f"高于随机水平的部分，前三分之一的层已有 {numbers}；仅凭周围各词的词袋读对 {bag:.0%}。"
    )
    en = f"{encoder} ({data}, {len(curves)} words): layers 1-{first} read off at most {tops[0]} of the senses, " + (
        f"deeper ones {tops[1]}; of what is above chance {numbers} is there in the first third. "
        f"A bag of the words around reads off {bag:.0%}."
    )
    return verdict, Bilingual(en=en, zh=zh)


def _add_context_effect(text: Bilingual, changes: pd.DataFrame, config: Config) -> Bilingual:
    """The sentence, with how much more a side moves the word's last state where it decides the sense than where it is
    the shared one: word by word, mean over the sides that occur in both roles."""
    last = changes.loc[changes.layer == changes.layer.max()]
    before = (last.side == "decides") == (last.place == "before")  # where the word that was left out stood
    roles = last.assign(before=before).groupby(["word", "before", "side"]).change.mean().unstack()
    if not {"decides", "shared"} <= set(roles) or (roles := roles.dropna().groupby("word").mean()).empty:
        return text
    more = (roles.decides - roles.shared).to_numpy()
    low, high = bounds(more[resample_items(len(more), config.resamples, config.seed)].mean(1))
    decides, shared = f"{roles.decides.mean():.3f}", f"{roles.shared.mean():.3f}"
    apart = f"{more.mean():.3f} [{low:.3f}, {high:.3f}]"
    return Bilingual(
        en=f"{text.en} Leaving out a word moves the word's last state by {decides} (1 - cosine) where its side decides the "
        f"sense, by {shared} where the same side does not, {apart} apart.",
        zh=f"{text.zh}去掉一个词，若它那一侧决定词义，末层该词状态平均变化 {decides}（1 − 余弦），若同一侧不决定词义则为 {shared}，相差 {apart}。",
    )


def figures(tables: dict[str, pd.DataFrame], language: str) -> dict:
    from toushi.probe.figures.sense_figures import changes_figure, matrix_figure, senses_figure

    found = {}
    for data in tables["senses"].data.unique():
        of_data = {name: table.loc[table.data == data] for name, table in tables.items()}
        found[f"senses-{data}"] = senses_figure(of_data["senses"], language)
        if "left_out" in of_data:
            found[f"left-out-{data}"] = changes_figure(of_data["left_out"], language)
        if "example" in of_data:
            example = of_data["example"]
            found[f"example-{data}"] = matrix_figure(example.loc[example.kind == "left out"], language)
    return found
