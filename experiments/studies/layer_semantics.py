"""Do layers 1-4 of a text encoder know words, 5-8 phrases, and deeper ones the whole prompt?

    toushi run layer_semantics
    toushi run layer_semantics --config e5

The article's claim. A linear probe at each layer reads three levels at words of scene captions
(`experiments/measures/scene_words.py`): which object a word is; which colour belongs to a noun and which noun to a colour;
place, layout, style and number of objects of the whole scene, read at one of its nouns. Templates of sentences are never
on both sides of a split. The measure is *selectivity*: accuracy minus that on control tasks, which give each word, phrase
or prompt a random label that can only be memorised (Hewitt & Liang 2019). No prompt occurs twice, so at that level there
is nothing to memorise and the control stays at chance.

The rule was set before the first run. A level is *there* from the first layer at which its selectivity, mean over its
tasks, is at least 80% of the largest one. The claim gives each level a third of the layers (of 12: words 0-4, phrases
5-8, the whole prompt 9-12). Intervals are 95% and resample templates.

- Supported: the interval of each level lies inside its third.
- Refuted: the interval of some level lies wholly outside.
- Undecided: anything else, and where a level is never read (the lower end of its best layer is under 0.05).

A level is a mean of tasks, which may disagree. The onset of each task is reported beside it and is no part of the rule.

It could fail to say anything. A linear probe may miss what is there in another form. Layers may store what they never use:
a probe shows presence, not use. The captions may be too easy: the wordings of a place or a style occur in many templates
and are the same on both sides of a split. Probes are chosen for selectivity, layer by layer, so the most accurate layer
need not be the most selective. The intervals cover the choice of templates (13 for some tasks), not that of control tasks
and captions. The floor is an untrained encoder of the same design. The online code length (Voita & Titov 2020) says how
easily, not only whether, labels can be read.

Beside it: does the state of 马 in 河马 still look like 马, and do the bytes of a character that the vocabulary lacks
come together (`experiments/measures/inside_words.py`)?
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from toushi.experiments.measures.encoder_states import WEIGHTS, encoder_label, load_cpu_encoder, states_at, weight_files
from toushi.experiments.measures.inside_words import inside_words
from toushi.experiments.measures.scene_words import LAST_TOKEN, LEVELS, POOLS, units
from toushi.experiments.measures.statistics import bounds, groups, resample_items
from toushi.experiments.runner.settings import Count, Seed, Share
from toushi.experiments.runner.study import FEWEST, Finding, Job, Study, Verdict
from toushi.probe.analysis.probes import code_length, linear_probe, onset_layer
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.base.errors import ToushiError

STUDY = Study(
    title=Bilingual(en="What the layers of a text encoder know", zh="文本编码器的各层懂什么"),
    question=Bilingual(
        en="Do layers 1-4 know words, layers 5-8 phrases, and deeper ones the whole prompt? The claim is refuted if a "
        "level is complete at other layers.",
        zh="第 1-4 层懂词，第 5-8 层懂短语，更深的层懂整句意图吗？若某一级语义在别的层就已齐备，这一说法便被推翻。",
    ),
    method=Bilingual(
        en="Linear probes at each layer, on Chinese and English captions of the scene world. They read which object a "
        "word is, a noun's colour, a colour's noun, and place, layout, style and number of the whole scene, at one "
        "of its nouns. Cross-validation is nested and grouped by sentence template. Selectivity is the accuracy "
        "minus that on control tasks (Hewitt & Liang 2019). A level is there from the first layer with 80 % of its "
        "largest selectivity; intervals resample templates. The baseline is an untrained encoder of the same "
        "design.",
        zh="在场景世界的中英文描述上，逐层训练线性探针：词是哪个物体；名词的颜色、颜色的名词；整个场景的地点、布局、风格、数量"
        "（在一个名词处读取）。按句子模板分组嵌套交叉验证。选择性 = 准确率 − 控制任务的准确率（Hewitt & Liang 2019）。"
        "某一级从选择性达到其最大值 80% 的首层起算作“已懂”，区间由对模板重抽样得到。下限为未经训练的同构编码器。",
    ),
)


NESTED = 3  # templates of each label that nested cross-validation needs


@dataclass(frozen=True)
class Config:
    encoder: str = "mini-unet"  # or a folder, or a hub id
    count: Count = 432  # places for each task
    controls: Count = 4
    share: Share = 0.8  # of the largest selectivity, from which a level is there
    least: Share = 0.05  # selectivity that a level must have somewhere
    resamples: Count = 1000
    seed: Seed = 0


def weights(config: Config) -> list[Path]:
    return weight_files(config.encoder)


def check_templates(config: Config) -> None:
    """Raises ToushiError if nested cross-validation, or the interval, would have too few templates of sentences."""
    for pool in POOLS:
        for task, part in units(pool, config.count, config.seed).groupby("task"):
            of_label = part.groupby("label").template.nunique()
            if of_label.min() < NESTED or part.template.nunique() < FEWEST:
                raise ToushiError(
                    f"count must be larger, but {config.count} came: of the task {task} the label {of_label.idxmin()} "
                    f"stands in {of_label.min()} of {part.template.nunique()} templates of sentences, and {NESTED} are "
                    f"needed (to learn from, to choose by, to ask) of at least {FEWEST}; 100 is enough as a rule"
                )


def jobs(config: Config) -> list[Job]:
    check_templates(config)
    about = {"encoder": config.encoder, "seed": config.seed}
    found = []
    for kind in WEIGHTS:
        for pool in POOLS:
            given = about | {"weights": kind, "pool": pool, "count": config.count, "controls": config.controls}
            found.append(Job(f"{kind}-{pool}", probe_pool, given))
        found.append(Job(f"{kind}-inside", inside_words, about | {"weights": kind}))
    return found


def probe_pool(encoder: str, weights: str, pool: str, count: int, controls: int, seed: int) -> pd.DataFrame:
    """How many labels are named right, for each task of the pool, layer and template; and the code length of each layer."""
    known, table = load_cpu_encoder(encoder, weights, seed), units(pool, count, seed)
    spans = [None if start == LAST_TOKEN else (start, end) for start, end in zip(table.start, table.end)]
    every = states_at(known, list(table.text), spans)
    rows = []
    for (task, level, where), part in groups(table, ["task", "level", "where"]):
        states = every[:, part.index]
        names, template = np.unique(part.template, return_inverse=True)
        about = {"weights": weights, "level": level, "task": task, "where": where}
        found = linear_probe(states, part.label, part.type, part.template, controls=controls, seed=seed)
        parts = (found[name].values for name in ("right", "control", "components"))
        for layer, (right, control, seen) in enumerate(zip(*parts)):
            sums = [np.bincount(template, values, len(names)) for values in (np.ones(len(part)), right, control)]
            for index, (places, named, memorised) in enumerate(zip(*sums)):
                row = {"template": f"t{index}", "places": int(places), "right": named, "control": memorised}
                row |= {"chance": found.attrs["chance"], "components": float(seen)}
                rows.append({"part": "probe", **about, "layer": layer, **row})
        code = code_length(states, part.label, part.template, seed=seed)
        for layer, (bits, compression) in enumerate(zip(code.bits.values, code.compression.values)):
            rows.append({"part": "code", **about, "layer": layer, "bits": bits, "compression": compression})
    return pd.DataFrame(rows)


# --- what is made of it ---------------------------------------------------------------------------------


def conclude(config: Config, rows: pd.DataFrame) -> Finding:
    tasks, selectivities = by_task(rows, config)
    levels, curves = by_level(tasks, selectivities)
    onsets = level_onsets(levels, curves, config)
    tables = {
        "tasks": tasks,
        "levels": levels,
        "onsets": onsets,
        "task_onsets": task_onsets(tasks, selectivities, config),
    }
    inside = rows.loc[rows.part.isin(["characters", "bytes"])].dropna(axis=1, how="all")
    if len(inside):
        tables["inside"] = inside.reset_index(drop=True)
    said = sentence(onsets, tables["task_onsets"], config, encoder_label(config.encoder))
    return Finding(decide(onsets, config), said, tables)


def by_task(rows: pd.DataFrame, config: Config) -> tuple[pd.DataFrame, dict]:
    """The table of all tasks, and for each (weights, level, where) the selectivities [draw, layer] of each task."""
    probes, codes = rows.loc[rows.part == "probe"], rows.loc[rows.part == "code"]
    keys = ["weights", "level", "task", "where"]
    table, selectivities = [], {}
    same: dict[bytes, np.ndarray] = {}  # tasks of the same captions are resampled together, or their mean is too sure
    for about, part in groups(probes, keys):
        wide = {name: part.pivot(index="layer", columns="template", values=name).to_numpy() for name in NUMBERS}
        asked, count = wide["places"][0].tobytes(), wide["places"].shape[1]
        if asked not in same:
            same[asked] = resample_items(count, config.resamples, config.seed + len(same))
        picks = same[asked]
        counts = np.stack([np.bincount(row, minlength=picks.shape[1]) for row in picks])
        sums = {name: values @ counts.T for name, values in wide.items()}  # [layer, draw]
        shares = {name: (sums[name] / sums["places"]).T for name in ("right", "control")}
        selectivities.setdefault((about[0], about[1], about[3]), {})[about[2]] = shares["right"] - shares["control"]
        (lows, highs), (least, most) = bounds(shares["right"]), bounds(shares["right"] - shares["control"])
        whole = {name: values.sum(1) for name, values in wide.items()}
        code = codes.loc[(codes[keys] == list(about)).all(axis=1)].set_index("layer")
        for layer in range(len(wide["places"])):
            accuracy, control = (whole[name][layer] / whole["places"][layer] for name in ("right", "control"))
            table.append(
                dict(zip(keys, about))
                | {"layer": layer, "accuracy": accuracy, "low": lows[layer], "high": highs[layer], "control": control}
                | {"selectivity": accuracy - control, "selectivity_low": least[layer], "selectivity_high": most[layer]}
                | {"chance": part.chance.iloc[0], "compression": float(code.compression[layer])}
                | {"components": float(part.loc[part.layer == layer].components.iloc[0])}
                | {"places": int(whole["places"][layer]), "templates": wide["places"].shape[1]}
            )
    return pd.DataFrame(table).round(5), selectivities


NUMBERS = ("places", "right", "control")


def by_level(tasks: pd.DataFrame, selectivities: dict) -> tuple[pd.DataFrame, dict]:
    """Selectivity of each level, mean over its tasks, with the same means of every draw [draw, layer]."""
    curves = {key: np.mean(list(tasks.values()), axis=0) for key, tasks in selectivities.items()}
    table = []
    for (kind, level, where), part in groups(tasks, ["weights", "level", "where"]):
        means = part.groupby("layer").selectivity.mean()
        low, high = bounds(curves[kind, level, where])
        for layer, value in means.items():
            about = {"weights": kind, "level": level, "where": where, "layer": layer, "selectivity": value}
            table.append(about | {"low": low[layer], "high": high[layer], "tasks": part.task.nunique()})
    return pd.DataFrame(table).round(5), curves


def level_onsets(levels: pd.DataFrame, curves: dict, config: Config) -> pd.DataFrame:
    """The onset of each level, with its interval and the claim's third."""
    table = []
    for (kind, level, where), part in groups(levels, ["weights", "level", "where"]):
        deepest = int(part.layer.max())
        edges = [0, deepest / 3, 2 * deepest / 3, deepest]
        place = LEVELS.index(level)
        first = int(np.floor(edges[place])) + 1 if place else 0
        claim = {"claim_first": first, "claim_last": int(np.floor(edges[place + 1]))}
        best = part.loc[part.selectivity.idxmax()]
        about = {"weights": kind, "level": level, "where": where}
        about |= onset(part.selectivity.to_numpy(), curves[kind, level, where], config)
        most = {"most": best.selectivity, "most_low": best.low, "most_high": best.high, "most_layer": int(best.layer)}
        table.append(about | claim | most)
    return pd.DataFrame(table)


def task_onsets(tasks: pd.DataFrame, selectivities: dict, config: Config) -> pd.DataFrame:
    """The onset of each task; `read`: whether some layer surely reads it, and more of it than any layer of random weights."""
    table = []
    for (kind, level, where, task), part in groups(tasks, ["weights", "level", "where", "task"]):
        others = tasks.loc[(tasks.weights == "random") & (tasks.task == task) & (tasks["where"] == where)].selectivity
        floor = max(config.least, others.max()) if len(others) and kind == "trained" else config.least
        most = {"most": part.selectivity.max(), "last": part.selectivity.iloc[-1]}
        most |= {"read": bool(part.selectivity_low.max() >= floor)}
        about = {"weights": kind, "level": level, "task": task, "where": where}
        found = onset(part.selectivity.to_numpy(), selectivities[kind, level, where][task], config)
        table.append(about | found | most)
    return pd.DataFrame(table)


def onset(curve: np.ndarray, draws: np.ndarray, config: Config) -> dict[str, int]:
    """The first layer at which a curve [layer] has the share of its maximum, with the interval of draws [draw, layer]."""
    low, high = bounds(onset_layer(draws, config.share))
    return {"onset": int(onset_layer(curve, config.share)), "low": int(np.floor(low)), "high": int(np.ceil(high))}


def decide(onsets: pd.DataFrame, config: Config) -> Verdict:
    rule = onsets.loc[(onsets.weights == "trained") & (onsets["where"] == "word")]
    if set(rule.level) != set(LEVELS) or (rule.most_low < config.least).any() or (rule.claim_last < 1).any():
        return "undecided"
    if ((rule.low > rule.claim_last) | (rule.high < rule.claim_first)).any():
        return "refuted"
    return "supported" if ((rule.low >= rule.claim_first) & (rule.high <= rule.claim_last)).all() else "undecided"


def sentence(onsets: pd.DataFrame, tasks: pd.DataFrame, config: Config, encoder: str) -> Bilingual:
    """The onset of each level, the selectivity of an untrained encoder, and the onsets of the tasks."""
    from toushi.probe.figures.layer_semantics_figures import display_name

    zh, en = [], []
    names = {"words": "词", "phrases": "短语", "prompts": "整句"}
    floor = onsets.loc[onsets.weights == "random"].set_index(["level", "where"]).most
    trained = onsets.loc[onsets.weights == "trained"].to_dict("records")
    of_words = tasks.loc[(tasks.weights == "trained") & (tasks["where"] == "word")]
    for row in sorted(trained, key=lambda row: (row["where"] != "word", LEVELS.index(row["level"]))):
        key, layers = (row["level"], row["where"]), _layers(row)
        most = f"{row['most']:.2f} [{row['most_low']:.2f}, {row['most_high']:.2f}]"
        untrained = f"{floor[key]:.2f}" if key in floor.index else "?"
        there = ("", "") if row["where"] == "word" else ("在末词元处", " at the last token")
        parts = of_words.loc[(of_words.level == row["level"]) & of_words.read].to_dict("records")
        parts = parts if row["where"] == "word" and (of_words.level == row["level"]).sum() > 1 else []
        each = ["、".join(f"{display_name(p['task'], 'zh')} {_layers(p)}" for p in parts)]
        each += [", ".join(f"{display_name(p['task'], 'en')} {_layers(p)}" for p in parts)]
        zh.append(
            f"{there[0]}{names[row['level']]}从第 {layers} 层起（最大选择性 {most}，未训练者 {untrained}"
            + (f"；其中{each[0]}）" if parts else "）")
        )
        en.append(
            f"{row['level']}{there[1]} from layer {layers} (largest selectivity {most}, untrained {untrained}"
            + (f"; of it {each[1]})" if parts else ")")
        )
    if never := of_words.loc[~of_words.read].task.tolist():
        zh.append(f"在词处无一层确能比未训练者读出更多的：{'、'.join(display_name(task, 'zh') for task in never)}")
        en.append(
            f"at a word no layer surely tells more than an untrained one: {', '.join(display_name(t, 'en') for t in never)}"
        )
    return Bilingual(en=f"{encoder}: " + "; ".join(en) + ".", zh=f"{encoder}：" + "；".join(zh) + "。")


def _layers(level: dict) -> str:
    return f"{level['onset']} [{level['low']}, {level['high']}]"


def figures(tables: dict[str, pd.DataFrame], language: str) -> dict:
    from toushi.probe.figures.layer_semantics_figures import inside_figure, levels_figure, tasks_figure

    found = {"levels": levels_figure(tables["levels"], tables["onsets"], language)}
    found["tasks"] = tasks_figure(tables["tasks"], language)
    if "inside" in tables and (tables["inside"].part == "characters").any():
        found["inside"] = inside_figure(tables["inside"], language)
    return found
