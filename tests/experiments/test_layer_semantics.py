"""The verdict follows what was planted; the data are what they are said to be; a run on a tiny encoder comes through."""

import numpy as np
import pandas as pd
import pytest

from toushi.experiments.measures.encoder_states import load_cpu_encoder, states_at, weight_files
from toushi.experiments.measures.inside_words import inside_words
from toushi.experiments.measures.scene_words import LAST_TOKEN, POOLS, units
from toushi.experiments.runner.study import FEWEST
from toushi.experiments.studies import layer_semantics as experiment
from toushi.experiments.studies.layer_semantics import Config, conclude, figures, jobs, weights
from toushi.probe.base.errors import ToushiError
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.figures.style import save
from toushi.probe.models.mini_unet import MiniUNet

TASKS = {"words": ["object"], "phrases": ["colour", "noun"], "prompts": ["place", "style"]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    MiniUNet.tiny(layers=2).save(folder)
    return str(folder)


def planted(begins: dict[str, int], layers: int = 12, templates: int = 30) -> pd.DataFrame:
    """Rows of probes that name nearly all from a layer of each level on, and a third before; a tenth by memory."""
    random, rows = np.random.default_rng(0), []
    for kind in ("trained", "random"):
        for level, tasks in TASKS.items():
            for task in tasks:
                for where in ("word", "last token") if level == "prompts" else ("word",):
                    about = {"weights": kind, "level": level, "task": task, "where": where}
                    for layer in range(layers + 1):
                        there = kind == "trained" and layer >= begins[level]
                        rows.append({"part": "code", **about, "layer": layer, "bits": 100.0, "compression": 2.0})
                        for number in range(templates):
                            right = random.binomial(10, 0.95 if there else 0.33)
                            counts = {"places": 10, "right": right, "control": 1.0, "chance": 0.25, "components": 8.0}
                            rows.append({"part": "probe", **about, "layer": layer, "template": f"t{number}", **counts})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "begins, verdict",
    [
        ({"words": 1, "phrases": 6, "prompts": 10}, "supported"),
        ({"words": 1, "phrases": 2, "prompts": 3}, "refuted"),
        ({"words": 8, "phrases": 6, "prompts": 10}, "refuted"),
    ],
)
def test_the_verdict_follows_what_was_planted(begins, verdict):
    finding = conclude(Config(resamples=200), planted(begins))
    assert finding.verdict == verdict and finding.sentence.en.startswith("mini-unet: ")
    onsets = finding.tables["onsets"].query("weights == 'trained' and where == 'word'").set_index("level")
    assert onsets.onset.to_dict() == begins
    for level, layer in begins.items():
        assert f"{level} from layer {layer} [{layer}, {layer}]" in finding.sentence.en
    assert onsets.loc["phrases", ["claim_first", "claim_last"]].tolist() == [5, 8]


def test_tasks_of_the_same_captions_are_resampled_together():
    rows = planted({"words": 1, "phrases": 6, "prompts": 10})
    noun, colour = rows.task == "noun", rows.task == "colour"
    rows.loc[noun, "right"] = rows.loc[colour, "right"].to_numpy()
    tables = conclude(Config(resamples=200), rows).tables
    of_task = tables["tasks"].query("weights == 'trained' and task == 'colour'").set_index("layer")
    of_level = tables["levels"].query("weights == 'trained' and level == 'phrases'").set_index("layer")
    # The mean of two tasks that are right at the same places is as unsure as either.
    assert np.allclose(of_level.high - of_level.low, of_task.selectivity_high - of_task.selectivity_low, atol=1e-4)


def test_what_is_never_read_off_is_left_undecided():
    never = {"words": 1, "phrases": 99, "prompts": 10}
    rows = planted(never)
    rows.loc[(rows.level == "phrases") & (rows.part == "probe"), "right"] = 1
    assert conclude(Config(resamples=100), rows).verdict == "undecided"
    short = planted({"words": 0, "phrases": 1, "prompts": 2}, layers=2)
    assert conclude(Config(resamples=100), short).verdict == "undecided"


def test_a_task_that_the_mean_of_its_level_hides_is_named():
    rows = planted({"words": 1, "phrases": 6, "prompts": 10})
    assert "no layer" not in conclude(Config(resamples=100), rows).sentence.en
    rows.loc[(rows.task == "style") & (rows.part == "probe"), "right"] = 1
    finding = conclude(Config(resamples=100), rows)
    assert finding.verdict == "supported"
    assert finding.sentence.en.endswith("; at a word no layer surely tells more than an untrained one: style.")
    assert finding.sentence.zh.endswith("；在词处无一层确能比未训练者读出更多的：风格。")


def test_each_task_begins_where_it_was_planted_and_random_weights_are_its_floor():
    rows = planted({"words": 1, "phrases": 6, "prompts": 10})
    probes = (rows.part == "probe") & (rows.weights == "trained")
    rows.loc[probes & (rows.task == "noun") & (rows.layer >= 3), "right"] = 10
    rows.loc[(rows.part == "probe") & (rows.weights == "random") & (rows.task == "place"), "right"] = 10
    tables = conclude(Config(resamples=100), rows).tables
    found = tables["task_onsets"].query("weights == 'trained' and where == 'word'").set_index("task")
    assert found.onset.to_dict() == {"object": 1, "colour": 6, "noun": 3, "place": 10, "style": 10}
    assert found.index[~found.read].tolist() == ["place"]


@pytest.mark.parametrize("count", [1, 12, 48])
def test_too_few_templates_are_refused_before_any_work(count, tiny):
    with pytest.raises(ToushiError, match=f"count must be larger, but {count} came: of the task .* stands in"):
        jobs(Config(encoder=tiny, count=count))
    assert jobs(Config(encoder=tiny, count=100))


@pytest.mark.parametrize("pool", POOLS)
def test_units_are_where_they_are_said_to_be(pool):
    table = units(pool, 144, seed=1)
    assert units(pool, 144, seed=1).equals(table) and not units(pool, 144, seed=2).equals(table)
    for task, part in table.groupby("task"):
        counts = part.label.value_counts()
        assert counts.min() >= 3 and counts.max() <= 3.5 * counts.min(), task
        assert part.groupby("label").template.nunique().min() >= 3, task
    words = table[table.start != LAST_TOKEN]
    assert all(row.text[row.start : row.end].strip() for row in words.itertuples())
    if pool == "words":
        assert all(row.text[row.start : row.end] == row.type for row in table.itertuples())
        assert table.groupby("label").type.nunique().min() >= 3
    if pool == "phrases":
        share = pd.crosstab(table.type.str.split(" ").str[0], table.type.str.split(" ").str[1])
        assert (share > 0).mean(axis=None) > 0.6  # neither half of a phrase tells the other


def test_a_place_is_read_once_and_where_it_was_asked_for(tiny):
    known = load_cpu_encoder(tiny)
    texts, spans = ["猫在左边", "狗和猫", "猫在左边"], [(0, 1), None, (2, 4)]
    states = states_at(known, texts, spans)
    cat, dog = encode_layers(known, ["猫在左边", "狗和猫"])
    np.testing.assert_array_equal(states[:, 0], cat.word_states([(0, 1)]).values[:, 0])
    np.testing.assert_array_equal(states[:, 1], dog.states.values[:, -1])
    np.testing.assert_array_equal(states[:, 2], cat.word_states([(2, 4)]).values[:, 0])


def test_the_untrained_twin_is_of_the_same_design_and_seed(tiny):
    trained, other, again = (
        load_cpu_encoder(tiny),
        load_cpu_encoder(tiny, "random", 1),
        load_cpu_encoder.__wrapped__(tiny, "random", 1),
    )
    a, b, c = (states_at(one, ["红色的猫"], [(3, 4)]) for one in (trained, other, again))
    assert a.shape == b.shape and not np.allclose(a, b)
    np.testing.assert_array_equal(b, c)


@pytest.mark.slow
def test_a_run_on_a_tiny_encoder_comes_through(tiny, tmp_path):
    config = Config(encoder=tiny, count=72, controls=2, resamples=50)
    made = jobs(config)
    assert len({job.name for job in made}) == len(made) == 10
    rows = pd.concat([job.function(**job.arguments) for job in made if job.name != "random-prompts"])
    finding = conclude(config, rows)
    assert finding.verdict == "undecided"  # it has learnt nothing
    assert set(finding.tables) == {"tasks", "levels", "onsets", "task_onsets", "inside"}
    tasks = finding.tables["tasks"].query("level == 'prompts' and weights == 'trained'")
    assert (tasks.control - tasks.chance).abs().max() < 0.25  # no prompt comes twice: there is nothing to memorise
    assert tasks.components.between(1, 64).all()
    for language in ("zh", "en"):
        for name, figure in figures(finding.tables, language).items():
            save(figure, tmp_path / f"{name}-{language}.png")
            assert figure.get_label()
    assert weights(config) == weight_files(tiny) and weights(config)[0].suffix == ".safetensors"


def test_characters_that_stand_alone_find_themselves(tiny):
    table = inside_words(tiny, "trained", 0)
    assert set(table.part) == {"characters", "bytes"} and (table["items"] >= FEWEST).all()
    own = table[(table.which == "own token") & (table.layer == 0)]
    assert (own.retrieval > 0.8).all() and (own.retrieval_shuffled < 0.3).all()  # equal states, less two means
    first = table[(table.part == "bytes") & (table.layer == 0)]
    assert (first.retrieval_high < 1).all()  # a token that many characters share tells none of them


def test_a_folder_that_is_not_there_is_told():
    with pytest.raises(ToushiError, match="no encoder 'nowhere'"):
        experiment.probe_pool("nowhere", "trained", "words", 10, 1, 0)
    with pytest.raises(ToushiError, match="no encoder"):
        weights(Config(encoder="no/such/folder"))
