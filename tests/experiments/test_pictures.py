"""Pictures from each layer, and the twins: what is measured, by models that know nothing and verdicts that are planted."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.experiments.in_process import Here
from toushi.experiments.measures import pictures
from toushi.experiments.measures.pictures import fully_described_scenes, list_answers, sense_prompts
from toushi.experiments.measures.statistics import interval, shares
from toushi.experiments.runner import run_study as runner
from toushi.experiments.runner.result_folder import read_manifest, read_tables
from toushi.experiments.scene_world.captions import describe
from toushi.experiments.scene_world.recogniser import Detection, Recognition, Verdict
from toushi.experiments.scene_world.scenes import Object, Scene, draw_scene
from toushi.experiments.studies import causal_vs_bidirectional as twins
from toushi.experiments.studies import picture_by_layer as layers
from toushi.experiments.studies.picture_by_layer import ORDER
from toushi.probe.base.errors import ToushiError
from toushi.probe.encoders.early_exit import exit_at_layer
from toushi.probe.figures.embedded_picture import decode_picture, embed_picture
from toushi.probe.figures.style import PAGE
from toushi.probe.models.mini_unet import MiniUNet
from toushi.reports.chapter import format_cell

PROMPTS = ["左边是猫，右边是月亮", "河边的银行"]
LAYERS = 4


@pytest.fixture(scope="module")
def model() -> MiniUNet:
    return MiniUNet.tiny(layers=LAYERS)


@pytest.fixture
def blind(monkeypatch):
    """A recogniser that costs nothing: it sees a bank on grass in every picture."""
    seen = Recognition("grass", "day", "flat", (Detection("bank", None, 20, 32, 32, 1.0),))
    monkeypatch.setattr(pictures, "recognise", lambda picture: seen)
    judge = pictures.judge
    monkeypatch.setattr(pictures, "judge", lambda scene, picture, language: judge(scene, seen, language))


# --- an encoder that ends early -------------------------------------------------------------------------


def test_the_last_layer_gives_the_usual_picture_to_the_bit(model):
    usual = model.sample(PROMPTS, steps=2)
    with exit_at_layer(model, LAYERS):
        last = model.sample(PROMPTS, steps=2)
    assert all(np.array_equal(a, b) for a, b in zip(usual, last))


def test_an_earlier_layer_is_handed_on_with_the_final_norm(model):
    ids, mask = torch.tensor([[1, 20, 30, 2]]), torch.ones(1, 4, dtype=torch.bool)
    encoder, states = model.encoder, []
    with torch.no_grad():
        states.append(encoder.embed(ids))
        for layer in encoder.layers:
            states.append(layer(states[-1], mask[:, None, None]))
        for number in range(LAYERS):
            with exit_at_layer(model, number):
                found = encoder(ids, mask)
            assert torch.equal(found, encoder.norm(states[number]))
        assert torch.equal(encoder(ids, mask), encoder.norm(states[-1]))  # and afterwards all is as it was


def test_pictures_of_an_earlier_layer_differ_and_are_not_remembered(model):
    usual = model.sample(PROMPTS, steps=2)
    with exit_at_layer(model, 3):
        early = model.sample(PROMPTS, steps=2)
    assert not np.array_equal(usual[0], early[0])
    assert np.array_equal(usual[0], model.sample(PROMPTS, steps=2)[0])


@pytest.mark.parametrize("layer", [-1, LAYERS + 1])
def test_a_layer_that_is_not_there_is_refused(model, layer):
    with pytest.raises(ToushiError, match=rf"a layer in 0\.\.{LAYERS}"), exit_at_layer(model, layer):
        pass


# --- what is counted ------------------------------------------------------------------------------------


def test_a_thing_counts_where_it_is_asked_for():
    right = Verdict((True,), (True,), (None,), (None,), True, True, True, 0)
    cat = Object("cat", None, None, "medium", 32, 33, 38)
    plain = Scene((cat,), "plain", "day", "flat", "middle")
    assert {thing for thing, answers in list_answers(plain, right).items() if answers} == {"object"}
    beach = Scene((replace(cat, colour="red"),), "beach", "day", "flat", "left")
    verdict = replace(right, colours=(False,))
    found = {"object": [True], "colour": [False], "position": [True], "place": [True]}
    assert list_answers(beach, verdict) == found | {"colour, drawn": [False], "position, drawn": [True]}
    missing = list_answers(beach, replace(verdict, objects=(False,), positions=(False,)))
    assert missing["position"] == [False] and missing["colour, drawn"] == missing["position, drawn"] == []


def test_scenes_that_ask_all_ask_it_of_each_object():
    numbers = fully_described_scenes("test", 20)
    assert numbers == sorted(set(numbers)) and numbers[:5] == fully_described_scenes("test", 5)
    right = Verdict((True, True), (True, True), (True, True), (None, None), True, True, True, 0)
    for number in numbers:
        scene = draw_scene(number, "test")
        answers = list_answers(scene, right)
        assert all(answers[thing] for thing in ORDER)
        parts = describe(scene, "zh", number).parts
        assert len({part.object for part in parts if part.role == "colour"}) == len(scene.objects)


def test_pairs_differ_in_the_context_alone_and_begin_with_one_noise(model, blind, monkeypatch):
    table = sense_prompts(2, 3)
    assert table.groupby(["word", "sense", "place"]).size().tolist() == [2] * 12
    for _, pair in table.groupby(["word", "pair"]):
        first, second = pair.sentence
        assert first != second and set(pair.sense) == set(table[table.word == pair.word.iloc[0]].sense)
    begun: dict[str, set[int]] = {}

    def draw(model, prompts, seeds, steps, guidance):
        for prompt, seed in zip(prompts, seeds):
            row = table[table.sentence == prompt].iloc[0]
            begun.setdefault(row.word + row.pair, set()).add(seed)
            yield np.zeros((64, 64, 3), np.uint8)

    monkeypatch.setattr(pictures, "draw_pictures", draw)
    rows = pd.DataFrame(pictures.score_senses(model, 2, 3, 1, 3.0, 7)).set_index(["item", "thing"])
    assert all(len(seeds) == 1 for seeds in begun.values())
    # A bank is in every picture: right for one of the two senses of 银行, and no sense at all of the other words.
    for place in ("before", "after"):
        assert rows.loc["银行", f"sense, {place}"].tolist() == [2, 4]
        assert rows.loc["银行", f"choice, {place}"].tolist() == [2, 4]
        assert rows.loc["苹果", f"sense, {place}"].tolist() == [0, 4]
        assert rows.loc["苹果", f"choice, {place}"].tolist() == [0, 0]


def test_shares_and_their_intervals():
    right, cases = np.array([[2.0, 0, 1], [0, 0, 0]]), np.array([[2.0, 1, 1], [0, 0, 0]])
    share, draws = shares(right, cases, np.array([[0, 1, 2], [0, 0, 0]]))
    assert share[0] == 0.75 and math.isnan(share[1])
    assert draws[:, 0].tolist() == [0.75, 1.0]
    low, high = interval(np.ones(5), 10)
    assert 0.7 < low < 0.75 and high == 1
    assert all(map(math.isnan, interval(draws[:, 1], 0)))


def test_a_picture_in_a_table_comes_back():
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[10:20, 5:30] = (226, 44, 52)
    text = embed_picture(Image.fromarray(pixels))
    assert np.abs(decode_picture(text).astype(int) - pixels).max() <= 8 and "\n" not in text
    assert format_cell(text) == "PNG"  # in the tables of a report


# --- whole runs -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_of_each_layer(model, blind, tmp_path):
    model.save(tmp_path / "tiny")
    config = layers.Config(model=str(tmp_path / "tiny"), scenes=3, contexts=1, words=2, steps=1, resamples=20)
    done = runner.run_study(layers, config, tmp_path / "run", executor=Here(), quiet=True)
    assert not done.failed and done.manifest.complete
    tables = read_tables(tmp_path / "run", read_manifest(tmp_path / "run"))
    curves = tables["curves"]
    assert set(curves.layer) == set(range(LAYERS + 1))
    assert {"object", "sense, before", "sense, after"} <= set(curves.thing)
    assert (curves[curves.thing == "sense, after"].cases == 4).all()
    assert len(tables["pictures"]) == (LAYERS + 1) * len(layers.SHOWN)
    assert done.manifest.verdict == "undecided"  # nothing is ever right
    check_figures(layers.figures(tables, "zh"), layers.figures(tables, "en"), {"curves", "pictures"})


NAMES = {"rates", "read_off", "pictures", "likeness", "heads"}


@pytest.mark.slow
def test_a_run_of_two_twins(model, blind, tmp_path):
    causal = MiniUNet(replace(model.config, text=replace(model.config.text, causal=True)), model.tokenizer)
    causal.load_state_dict(model.state_dict())
    for name, twin in {"bidirectional": model, "causal": causal}.items():
        twin.save(tmp_path / name)
    both = {name: str(tmp_path / name) for name in twins.TWINS}
    config = twins.Config(**both, scenes=2, contexts=1, words=2, steps=1, shuffles=2, resamples=20)
    done = runner.run_study(twins, config, tmp_path / "run", executor=Here(), quiet=True)
    assert not done.failed and done.manifest.complete and len(done.manifest.weights) == 2
    tables = read_tables(tmp_path / "run", read_manifest(tmp_path / "run"))

    read = tables["read_off"].set_index(["model", "where", "place"])
    assert (read.loc[("causal", "word", "after")].accuracy == 0.5).all()  # what it cannot have seen
    assert (read.loc[("bidirectional", "word", "after")].accuracy.iloc[1:] != 0.5).any()
    for where, place in product(("word", "last token"), ("before", "after")):
        assert read.loc[("causal", where, place)].layer.tolist() == list(range(LAYERS + 1))
    best = tables["best"].set_index(["model", "where", "place"])
    assert best.loc[("causal", "word", "after"), "accuracy"] == 0.5
    assert (tables["differences"].difference.dropna() == 0).all()  # one bank in every picture of both
    check_figures(twins.figures(tables, "zh"), twins.figures(tables, "en"), NAMES)
    alike = tables["likeness"].set_index(["one", "other", "layer", "other_layer"]).cka
    assert all(alike["causal", "causal", layer, layer] == 1 for layer in range(LAYERS + 1))
    assert alike["bidirectional", "causal", 0, 0] == 1 and alike["bidirectional", "causal", LAYERS, LAYERS] < 1
    assert len(tables["heads"]) == 2 * LAYERS * 2


def test_twins_that_are_not_trained_are_asked_for():
    with pytest.raises(ToushiError, match=r"nowhere/else are not here: train them by .*train_twins.* --set"):
        twins.weights(twins.Config(bidirectional="mini-unet", causal="nowhere/else"))


def check_figures(zh: dict, en: dict, names: set[str]) -> None:
    assert set(zh) == set(en) == names
    for figure in (*zh.values(), *en.values()):
        figure.canvas.draw()  # a glyph that is missing is an error
        assert figure.get_label() and figure.get_figwidth() <= PAGE + 0.01


# --- verdicts -------------------------------------------------------------------------------------------


def curves(onsets: dict[str, int], most: float = 1.0, scenes: int = 40) -> pd.DataFrame:
    """Rows in which each thing is right from a planted layer on, in a share `most` of the scenes."""
    rows = []
    for (thing, onset), layer, scene in product(onsets.items(), range(13), range(scenes)):
        right = int(layer >= onset and scene < most * scenes)
        rows.append(dict(part="scenes", layer=layer, item=f"scene {scene}", thing=thing, right=right, cases=1))
    shown = dict(part="shown", layer=0, prompt="猫", picture="data:image/png;base64,")
    senses = dict(part="senses", item="银行", thing="sense, after", right=1, cases=1)
    return pd.DataFrame([*rows, shown, *({**senses, "layer": layer} for layer in range(13))])


@pytest.mark.parametrize(
    "onsets, most, verdict",
    [
        ((3, 6, 10), 0.9, "supported"),
        ((3, 4, 10), 0.9, "refuted"),  # colours are there in the first third
        ((3, 5, 8), 0.9, "refuted"),  # positions in the first two
        ((3, 5, 9), 0.9, "supported"),
        ((6, 6, 10), 0.9, "undecided"),  # colours are not later, but may have been known before
        ((9, 9, 9), 0.9, "undecided"),  # all from the one layer on with which the image model copes
        ((3, 6, 10), 0.1, "undecided"),  # hardly anything is drawn
    ],
)
def test_planted_layers_are_found(onsets, most, verdict):
    rows = curves(dict(zip(layers.ORDER, onsets)), most)
    found = layers.conclude(layers.Config(resamples=200), rows)
    assert found.verdict == verdict
    table = found.tables["onsets"].set_index("thing")
    assert tuple(table.onset[list(layers.ORDER)]) == onsets
    assert ((table.low <= table.onset) & (table.onset <= table.high)).all()


def test_few_scenes_decide_nothing():
    for scenes, verdict in ((5, "undecided"), (6, "supported")):
        rows = curves(dict(zip(layers.ORDER, (3, 6, 10))), scenes=scenes)
        assert layers.conclude(layers.Config(resamples=200), rows).verdict == verdict


def twin_rows(right: dict[str, float], seen: dict[str, float]) -> pd.DataFrame:
    """12 words, 100 pictures each: of each twin the share with one of the senses, and of those the share right."""
    rows = []
    for model, word, place in product(twins.TWINS, range(12), ("before", "after")):
        count = round(100 * seen[model])
        good = round(count * right[model])
        about = dict(part="senses", model=model, item=f"word {word}")
        rows.append(about | dict(thing=f"sense, {place}", right=good, cases=100))
        rows.append(about | dict(thing=f"choice, {place}", right=good, cases=count))
    for model, scene in product(twins.TWINS, range(5)):
        rows.append(dict(part="scenes", model=model, item=f"scene {scene}", thing="object", right=scene % 2, cases=1))
    for model, where, place, word in product(twins.TWINS, ("word", "last token"), ("before", "after"), "ab"):
        numbers = dict(accuracy=0.5, accuracy_shuffled=0.5)
        rows.append(dict(part="states", model=model, where=where, place=place, word=word, layer=0, **numbers))
    rows.append(dict(part="shown", model="causal", prompt="猫", picture="data:image/png;base64,"))
    rows.append(dict(part="likeness", one="causal", other="causal", layer=0, other_layer=0, cka=1.0))
    rows.append(dict(part="heads", model="causal", layer=1, head=0, entropy=1.0, distance=2.0, special=0.5))
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "right, seen, verdict",
    [
        (dict(bidirectional=0.9, causal=0.5), dict(bidirectional=1.0, causal=1.0), "supported"),
        (dict(bidirectional=0.9, causal=0.9), dict(bidirectional=1.0, causal=1.0), "refuted"),
        (dict(bidirectional=0.5, causal=0.5), dict(bidirectional=1.0, causal=1.0), "refuted"),
        (dict(bidirectional=1.0, causal=0.8), dict(bidirectional=1.0, causal=1.0), "refuted"),  # it is mostly right
        (dict(bidirectional=1.0, causal=0.5), dict(bidirectional=0.2, causal=0.2), "undecided"),
        (dict(bidirectional=0.65, causal=0.6), dict(bidirectional=0.5, causal=0.5), "refuted"),  # better by a little
    ],
)
def test_verdicts_on_the_twins(right, seen, verdict):
    found = twins.conclude(twins.Config(resamples=100), twin_rows(right, seen))
    assert found.verdict == verdict
    gap = found.tables["differences"].set_index("thing").difference["sense, after"]
    expected = right["bidirectional"] * seen["bidirectional"] - right["causal"] * seen["causal"]
    assert gap == pytest.approx(expected, abs=0.006)
