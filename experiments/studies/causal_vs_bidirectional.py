"""Does attention in both directions resolve Chinese ambiguity where a causal model fails?

    toushi run causal_vs_bidirectional

The article's claim. Two small models (`experiments/training/train_twins.py`) differ in one thing: whether their text
encoder sees what comes after a token. First weights, captions, pictures, noise, their order and number are the same. A
causal state cannot know what comes after it, so the state of the ambiguous word itself is no fair test where the context
follows: it is at chance by construction. Both models are judged by their pictures; the image model may attend to every
token.

(a) *Pictures* of held-out captions, and of minimal pairs in which only the context of one word differs, before it
(河边的银行) or after it (银行在左边，河水缓缓流过), from the same noise. The recogniser says what is there. (b) *Last token*: the
sense read from the state at the end, which has seen all in both models. (c) *Word*: the sense read from the word's own
state, with the context before it (fair) and after it (chance for the causal model). (d) How similar the two have become, and
what their heads attend to: debiased CKA of every layer with every layer, over the objects of held-out captions; entropy,
distance and share of special tokens of each head.

The rule was set before the twins were trained. It uses contexts after the word, in pictures. D is by how much the
bidirectional model draws the right sense, and nothing of the other, more often than the causal one. C is how often the
causal one is right where it draws one of the two senses. Intervals are 95% and resample the 12 words. That of C is no
surer than so many words can make one (`statistics.interval`): for C above 75% all 12 must be drawn, and nearly
always right. That of D is the plain one, which has no width where all words agree.

- Refuted: D lies below 10 points, or C above 75%, half way from chance to always.
- Supported: not refuted, D lies above 0, and C below 75%.
- Undecided: anything else; where either draws one of the two senses in less than 30% of the pictures, too few to tell
  what it understood; fewer than 6 words.

As first set, C's interval was Wilson's where all was right and resampled elsewhere, so a causal model with one wrong
picture was refuted more surely than a flawless one.

It could fail to say anything: if the twins saw too little to draw words at all; if the recogniser takes one icon for
another (it is the same for both). It speaks of small models of this world, with the contexts of their training, and of one
pair of twins: no interval covers how much another pair, from other first weights, would differ.
"""

from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from toushi.experiments.measures.encoder_states import load_cpu_encoder, states_at
from toushi.experiments.measures.pictures import load_cpu_model, score_scenes, score_senses, sense_pairs, to_table
from toushi.experiments.measures.statistics import bounds, groups, means, rates, resample_items
from toushi.experiments.runner.settings import Count, Seed
from toushi.experiments.runner.study import FEWEST, Finding, Job, Study, Verdict
from toushi.experiments.scene_world.captions import describe
from toushi.experiments.scene_world.scenes import draw_scene
from toushi.probe.analysis.layer_measures import cka, head_statistics, sense_separation
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.base.errors import ToushiError
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.figures.embedded_picture import embed_picture
from toushi.probe.figures.picture_figures import NAMES
from toushi.probe.pipelines.load import model_files, shipped_models

STUDY = Study(
    title=Bilingual(en="Both directions or one: which resolves ambiguity", zh="双向与因果：谁能分清一词两义"),
    question=Bilingual(
        en="“Bidirectional attention resolves Chinese ambiguity where a causal model fails.” With the context after "
        "the word, does the bidirectional model draw the right sense more often, and is the causal model near "
        "chance? The claim is refuted if they hardly differ, or if the causal model is mostly right.",
        zh="“双向注意力能化解中文歧义，因果模型则不能”——当语境在词之后时，双向模型是否更常画对词义，而因果模型是否只有随机水平？"
        "若二者相差无几，或因果模型多半画对，便被推翻。",
    ),
    method=Bilingual(
        en="Two small models start from the same weights and see the same captions, pictures and noise in the same "
        "order. Only the attention mask of the text encoder differs. From the same noise they draw held-out "
        "captions and minimal pairs, which the recogniser judges. The sense is also read from the last token and "
        "from the word itself, by nearest centroids. No context is on both sides of a split. The best layer is "
        "chosen on one half of the words and judged on the other half. A causal state cannot see what follows it, "
        "so the word's own state does not count with the context after it. Also shown: how alike their layers are "
        "(debiased linear CKA), and where their heads attend. Intervals resample scenes, or words for the senses; "
        "differences are paired.",
        zh="两个小模型从同样的初始权重出发，以同样的次序见到同样的描述、图、噪声，只有文本编码器的注意力掩码不同。以同样的噪声画训练中"
        "未出现的描述与最小对句，由识别器判断；另从末词元与词自身的状态以最近质心读出词义，同一语境不分在两边；所报最佳层在一半词上选出，在另一半词上评判。因果状态看不到其后的"
        "内容，故语境在后时词自身的状态不作为判据。另比较二者各层的相似度（去偏线性 CKA）与各注意力头看向何处。区间由对场景（词义为词）重抽样得到，差值成对计算。",
    ),
)
TWINS = ("bidirectional", "causal")
MATTERS, HALF, SEEN = 0.1, 0.75, 0.3  # of the rule: difference that counts, causal choices right, pictures with a sense
HEADS = ("entropy", "distance", "special")  # of `head_statistics`
SHOWN = ("银行", "苹果", "宝马", "杜鹃")


@dataclass(frozen=True)
class Config:
    bidirectional: str = "twins/bidirectional"  # or a folder
    causal: str = "twins/causal"
    scenes: Count = 150  # held-out captions
    contexts: Count = 5  # of each sense and each place of the context, for pictures; the read-outs use all
    words: Annotated[int, Field(ge=2)] | None = None  # with two senses; only so many, for a first look
    steps: Count = 20
    guidance: Annotated[float, Field(ge=0)] = 3.0
    shuffles: Count = 20
    resamples: Count = 1000
    seed: Seed = 0


def weights(config: Config) -> list[Path]:
    models = [getattr(config, name) for name in TWINS]
    if lacking := [name for name in models if name not in shipped_models() and not Path(name).is_dir()]:
        raise ToushiError(
            f"{' and '.join(lacking)} are not here: train them by `python -m toushi.experiments.training.train_twins` and then with "
            "--ship, or give two folders with --set bidirectional=… causal=…"
        )
    return list(dict.fromkeys(file for name in models for file in model_files(name)))


AT_A_TIME = 50  # scenes in a job
CAPTIONS = 150  # that likeness and heads are measured on


def jobs(config: Config) -> list[Job]:
    found, about = [], {"words": config.words}
    for twin in TWINS:
        call = {"twin": twin, "model": getattr(config, twin), "seed": config.seed}
        drawing = call | {"steps": config.steps, "guidance": config.guidance}
        for first in range(0, config.scenes, AT_A_TIME):
            count = min(AT_A_TIME, config.scenes - first)
            found.append(
                Job(f"{twin}-scenes-{first:04}", score_twin_scenes, drawing | {"first": first, "count": count})
            )
        found.append(Job(f"{twin}-senses", score_twin_senses, drawing | about | {"contexts": config.contexts}))
        found.append(Job(f"{twin}-shown", draw_examples, drawing))
        found.append(Job(f"{twin}-states", read_senses, call | about | {"shuffles": config.shuffles}))
        found.append(Job(f"{twin}-heads", measure_heads, {"twin": twin, "model": call["model"], "count": CAPTIONS}))
    models = {twin: getattr(config, twin) for twin in TWINS}
    return [*found, Job("likeness", layer_similarity, models | {"count": CAPTIONS})]


def score_twin_scenes(
    twin: str, model: str, first: int, count: int, steps: int, guidance: float, seed: int
) -> pd.DataFrame:
    found = score_scenes(load_cpu_model(model), "held_out", range(first, first + count), steps, guidance, seed)
    return to_table(found, part="scenes", model=twin)


def score_twin_senses(
    twin: str, model: str, contexts: int, words: int | None, steps: int, guidance: float, seed: int
) -> pd.DataFrame:
    return to_table(
        score_senses(load_cpu_model(model), contexts, words, steps, guidance, seed), part="senses", model=twin
    )


def draw_examples(twin: str, model: str, steps: int, guidance: float, seed: int) -> pd.DataFrame:
    """Pictures of the first pair of some words whose context comes after them."""
    table = sense_pairs(None)
    table = table.loc[(table.place == "after") & table.word.isin(SHOWN)].drop_duplicates(["word", "sense"])
    drawn = load_cpu_model(model).sample(list(table.sentence), steps=steps, guidance=guidance, seed=seed)
    rows = [{"prompt": prompt, "picture": embed_picture(picture)} for prompt, picture in zip(table.sentence, drawn)]
    return to_table(rows, part="shown", model=twin)


def read_senses(twin: str, model: str, words: int | None, shuffles: int, seed: int) -> pd.DataFrame:
    """The share of senses that is read, for each word, place of its context, state and layer."""
    encoder, rows = load_cpu_encoder(model), []
    for (word, place), table in groups(sense_pairs(words), ["word", "place"]):
        for where in ("word", "last token"):
            spans = [(start, start + len(word)) if where == "word" else None for start in table.start]
            states = states_at(encoder, list(table.sentence), spans)
            found = sense_separation(states, table.sense, table.pair, resamples=0, shuffles=shuffles, seed=seed)
            about = {"part": "states", "model": twin, "where": where, "place": place, "word": word}
            for layer in found.layer.values.tolist():
                numbers = {name: float(found[name][layer]) for name in ("accuracy", "accuracy_shuffled")}
                rows.append(about | {"layer": layer} | numbers)
    return pd.DataFrame(rows)


def layer_similarity(bidirectional: str, causal: str, count: int) -> pd.DataFrame:
    """CKA of every layer of each twin with every layer of both, over objects in captions."""
    known = {twin: load_cpu_encoder(model) for twin, model in zip(TWINS, (bidirectional, causal))}
    places = [place for caption in captions(count) for place in caption]
    texts, spans = zip(*[place for place in places if not known["causal"].tokenize(place[0])[1]])  # whole texts
    states = {twin: states_at(encoder, texts, spans) for twin, encoder in known.items()}
    rows = []
    for one, other in combinations_with_replacement(TWINS, 2):
        for (layer, beside), value in np.ndenumerate(cka(states[one], states[other])):
            # Equal states, such as those before any layer has mixed them, may leave nothing to compare: None.
            number = round(float(value), 5) if np.isfinite(value) else None
            rows.append({"one": one, "other": other, "layer": layer, "other_layer": beside, "cka": number})
    return to_table(rows, part="likeness")


def measure_heads(twin: str, model: str, count: int) -> pd.DataFrame:
    """Entropy, distance and share of special tokens of each head, mean over captions."""
    texts = list(dict.fromkeys(text for caption in captions(count) for text, _ in caption))
    found = []
    for reading in encode_layers(load_cpu_encoder(model), texts):
        special = [token.span is None or token.span[0] == token.span[1] for token in reading.tokens]
        found.append(head_statistics(reading.attention.values, special).to_array("what").values)
    means = np.nanmean(found, axis=0)  # [what, layer, head]
    rows = [
        {"layer": layer + 1, "head": head, **dict(zip(HEADS, means[:, layer, head].round(5).tolist()))}
        for layer, head in np.ndindex(means.shape[1:])
    ]
    return to_table(rows, part="heads", model=twin)


def captions(count: int) -> list[list[tuple[str, tuple[int, int]]]]:
    """The first held-out captions, each as a list of its text with the characters of an object."""
    found = (describe(draw_scene(number, "held_out"), "zh", number) for number in range(count))
    return [[(one.text, (part.start, part.end)) for part in one.parts if part.role == "object"] for one in found]


# --- what is made of it ---------------------------------------------------------------------------------


def conclude(config: Config, rows: pd.DataFrame) -> Finding:
    by_twin, differences = [], []
    for part in ("scenes", "senses"):
        some = rows.loc[rows.part == part]
        things = list(dict.fromkeys(some.thing))
        table, right, draws = rates(some, {"thing": things, "model": TWINS}, config.resamples, config.seed)
        by_twin.append(table.loc[:, ["model", "thing", *table.columns[2:]]])
        for i, thing in enumerate(things):
            low, high = bounds(draws[:, i, 0] - draws[:, i, 1])  # the same items in every draw: paired
            differences.append({"thing": thing, "difference": right[i, 0] - right[i, 1], "low": low, "high": high})
    tables = {"rates": pd.concat(by_twin, ignore_index=True), "differences": pd.DataFrame(differences)}
    tables = {name: table.round(5) for name, table in tables.items()}
    states = rows.loc[rows.part == "states"]
    keys, numbers = ["model", "where", "place", "layer"], ["accuracy", "accuracy_shuffled"]
    tables["read_off"] = means(states, keys, numbers, config.resamples, config.seed).astype({"layer": int})
    tables["best"] = best_layers(states, config)
    alike, heads = (rows.loc[rows.part == part].dropna(axis=1, how="all") for part in ("likeness", "heads"))
    alike = alike.loc[:, ["one", "other", "layer", "other_layer", "cka"]].astype({"layer": int, "other_layer": int})
    heads = heads.loc[:, ["model", "layer", "head", *HEADS]].astype({"layer": int, "head": int})
    tables |= {"likeness": alike.reset_index(drop=True), "heads": heads.reset_index(drop=True)}
    tables["pictures"] = rows.loc[rows.part == "shown", ["model", "prompt", "picture"]].reset_index(drop=True)
    verdict = decide(tables["rates"], tables["differences"])
    return Finding(verdict, sentence(tables), tables)


def best_layers(states: pd.DataFrame, config: Config) -> pd.DataFrame:
    """What the best layer reads, chosen on one half of the words and judged on the other, both ways round."""
    table = []
    for about, part in groups(states, ["model", "where", "place"]):
        curves = part.pivot(index="word", columns="layer", values="accuracy").to_numpy()
        half = np.arange(len(curves)) % 2 == 0
        chosen = np.where(half, curves[~half].mean(0).argmax(), curves[half].mean(0).argmax())
        values = curves[np.arange(len(curves)), chosen]
        draws = values[resample_items(len(values), config.resamples, config.seed)].mean(1)
        low, high = bounds(draws)
        names = dict(zip(("model", "where", "place"), about))
        layers = "/".join(map(str, sorted(set(chosen.tolist()))))
        table.append(names | {"layers": layers, "accuracy": values.mean(), "low": low, "high": high})
    return pd.DataFrame(table).round(5)


def decide(by_twin: pd.DataFrame, differences: pd.DataFrame) -> Verdict:
    better = differences.set_index("thing").loc["sense, after"]
    choice = by_twin.loc[by_twin.thing == "choice, after"].set_index("model")
    asked = by_twin.loc[by_twin.thing == "sense, after"].set_index("model")
    if (choice.cases < SEEN * asked.cases).any() or asked["items"].min() < FEWEST:
        return "undecided"
    if better.high < MATTERS or choice.low["causal"] > HALF:
        return "refuted"
    return "supported" if better.low > 0 and choice.high["causal"] < HALF else "undecided"


def sentence(tables: dict[str, pd.DataFrame]) -> Bilingual:
    by_twin, differences = tables["rates"], tables["differences"].set_index("thing")
    zh, en = [], []
    for thing in ("sense, after", "sense, before"):
        pair = by_twin.loc[by_twin.thing == thing].set_index("model")
        numbers = [f"{one.right:.0%} [{one.low:.0%}, {one.high:.0%}]" for one in (pair.loc[twin] for twin in TWINS)]
        gap = differences.loc[thing]
        points = f"{100 * gap.difference:+.0f} [{100 * gap.low:+.0f}, {100 * gap.high:+.0f}]"
        zh.append(f"{NAMES[thing].zh}：双向画对 {numbers[0]}，因果 {numbers[1]}，相差 {points} 个百分点")
        en.append(
            f"{NAMES[thing].en}: {numbers[0]} drawn right bidirectional, {numbers[1]} causal, {points} points apart"
        )
    choice = by_twin.loc[(by_twin.thing == "choice, after") & (by_twin.model == "causal")].iloc[0]
    numbers = f"{choice.right:.0%} [{choice.low:.0%}, {choice.high:.0%}]"
    zh.append(f"语境在后、因果模型画出二义之一的 {choice.cases} 张中画对 {numbers}")
    en.append(
        f"of {choice.cases} pictures with either sense and the context after, the causal model has {numbers} right"
    )
    best = tables["best"].set_index(["model", "where", "place"])
    for where, place in (("last token", "after"), ("word", "before")):
        pair = (best.loc[model, where, place] for model in TWINS)
        tops = [f"{one.accuracy:.0%} [{one.low:.0%}, {one.high:.0%}]" for one in pair]
        zh.append(f"{NAMES[where].zh}（{NAMES[place].zh}）最佳层读对：双向 {tops[0]}，因果 {tops[1]}")
        en.append(f"{NAMES[where].en} ({NAMES[place].en}) the best layers read off {tops[0]} and {tops[1]}")
    return Bilingual(en="; ".join(en) + ".", zh="；".join(zh) + "。")


def figures(tables: dict[str, pd.DataFrame], language: str) -> dict:
    from toushi.probe.figures.encoder_comparison import heads_figure, likeness_figure
    from toushi.probe.figures.picture_figures import pairs_figure, read_out_figure, twins_figure

    return {
        "rates": twins_figure(tables["rates"], tables["differences"], language),
        "read_off": read_out_figure(tables["read_off"], language),
        "pictures": pairs_figure(tables["pictures"], language),
        "likeness": likeness_figure(tables["likeness"], language),
        "heads": heads_figure(tables["heads"], language),
    }
