"""The verdict follows the numbers; pairs are minimal; what is left out is told apart by its side; bad data are refused."""

import numpy as np
import pandas as pd
import pytest

from toushi.experiments.measures.encoder_states import bags_at, load_cpu_encoder, states_at
from toushi.experiments.measures.minimal_pairs import check_sentences, sentences
from toushi.experiments.studies import disambiguation as experiment
from toushi.experiments.studies.disambiguation import Config, conclude, decide, figures, jobs, judge_senses
from toushi.probe.base.bilingual_text import Bilingual
from toushi.probe.base.errors import ToushiError
from toushi.probe.figures.style import save


def planted(by_layer: list[float], words: int = 24) -> pd.DataFrame:
    noise = np.random.default_rng(0).normal(scale=0.02, size=(words, len(by_layer)))
    about = {"part": "told", "weights": "trained", "data": "scenes", "where": "word", "place": "both"}
    return pd.DataFrame(
        about | dict(word=f"w{w}", layer=k, accuracy=a + noise[w, k], accuracy_shuffled=0.48, separation=0.0)
        for w in range(words)
        for k, a in enumerate(by_layer)
    )


@pytest.mark.parametrize(
    "by_layer, verdict",
    [
        ([0.5] * 5 + [0.7] * 4 + [0.9] * 4, "supported"),
        ([0.5] + [0.9] * 12, "refuted"),
        ([0.5] * 13, "undecided"),
        ([0.5, 0.9], "undecided"),
    ],
)
def test_the_verdict_follows_the_numbers(by_layer, verdict):
    found, said = judge_senses(planted(by_layer), Config(resamples=200), "made", "scenes")
    assert found == verdict and said.en.startswith("made")


def test_few_words_decide_nothing():
    for words, verdict in ((5, "undecided"), (6, "refuted")):
        rows = planted([0.5] + [0.9] * 12, words)
        assert judge_senses(rows, Config(resamples=200), "made", "scenes")[0] == verdict


@pytest.mark.parametrize(
    "low, high, deeper, words, verdict",
    [
        (0.1, 0.49, 0.9, 32, "supported"),
        (0.51, 0.9, 0.9, 32, "refuted"),
        (0.7, 1.2, 0.9, 32, "refuted"),  # the first third may read off more than the rest
        (0.3, 0.7, 0.9, 32, "undecided"),
        (0.1, 0.5, 0.9, 32, "undecided"),  # one half is not below one half
        (0.5, 0.9, 0.9, 32, "undecided"),  # nor above
        (0.1, 0.4, 0.6, 32, "supported"),
        (0.1, 0.4, 0.59, 32, "undecided"),  # the deeper layers do not read them off either
        (0.6, 0.9, 0.59, 32, "undecided"),
        (0.1, 0.4, 0.9, 6, "supported"),
        (0.1, 0.4, 0.9, 5, "undecided"),  # too few words
        (0.6, 0.9, 0.9, 5, "undecided"),
        (float("nan"), float("nan"), 0.9, 32, "undecided"),
    ],
)
def test_the_rule_gives_one_verdict_at_each_of_its_borders(low, high, deeper, words, verdict):
    assert decide(words, low, high, deeper) == verdict


@pytest.mark.parametrize("data", ["scenes", "polysemy"])
def test_a_pair_is_the_same_on_the_side_that_does_not_decide(data):
    table = check_sentences(sentences(data))
    assert table.word.nunique() == {"scenes": 12, "polysemy": 32}[data]
    number = table.groupby(["word", "sense", "place"]).cumcount()
    for (_, place, _), pair in table.groupby(["word", "place", number]):
        assert len(pair) == 2 and pair.sense.nunique() == 2 and pair.pair.nunique() == 1
        if place == "before":
            assert len({row.sentence[row.start :] for row in pair.itertuples()}) == 1
        else:
            assert len({row.sentence[: row.start + len(row.word)] for row in pair.itertuples()}) == 1
    assert table.place.value_counts(normalize=True).max() < 0.6


def test_bad_sentences_are_refused():
    table = sentences("scenes")
    with pytest.raises(ToushiError, match="'银行' is not at character 0"):
        check_sentences(table.assign(start=0)[table.start != 0])
    river = table[table.word == "银行"]
    with pytest.raises(ToushiError, match="one sense only"):
        check_sentences(river[river.sense == "bank"])
    one = pd.concat([river[river.sense == "bank"], river[river.sense == "riverbank"].head(1)])
    with pytest.raises(ToushiError, match="sense riverbank of 银行 has 1 sentence;"):
        check_sentences(one)


@pytest.mark.slow
def test_a_run_on_a_tiny_encoder_comes_through(tiny, tmp_path):
    config = Config(encoder=tiny, words=2, shuffles=1, left_out=1, resamples=50)
    made = jobs(config)
    assert [job.name for job in made] == [
        "trained-scenes-00",
        "random-scenes-00",
        "left-out-scenes-00",
        "example-scenes",
    ]
    finding = conclude(config, pd.concat([job.function(**job.arguments) for job in made]))
    assert set(finding.tables) == {"senses", "left_out", "example"}
    senses = finding.tables["senses"]
    assert (
        senses[senses["where"] == "bag"].layer == 0
    ).all() and "A bag of the words around reads off" in finding.sentence.en
    assert (senses.low <= senses.accuracy).all() and (senses.accuracy <= senses.high).all()
    for language in ("zh", "en"):
        for name, figure in figures(finding.tables, language).items():
            save(figure, tmp_path / f"{name}-{language}.png")
            assert figure.get_label()


def test_a_side_is_set_against_itself_in_its_other_role_word_by_word():
    """Words before the ambiguous one move it by 0.3 more than those after it, whatever they decide: that is no finding."""
    rows = [
        {"word": f"w{n}", "place": place, "side": side, "layer": layer, "change": (change + far) * layer + 0.01 * n}
        for n in range(8)
        for place in ("before", "after")
        for layer in (0, 1)
        for side, change in (("decides", 0.2), ("shared", 0.1))
        for far in [0.3 * ((side == "decides") == (place == "before"))]
    ]
    alone = {"word": "w9", "place": "after", "side": "shared", "layer": 1, "change": 5.0}  # nothing to set it against
    one_sided = [row for row in rows if (row["place"], row["side"]) not in (("after", "decides"), ("before", "shared"))]
    for some, moved in ((rows, "0.385 (1 - cosine)"), (one_sided, "0.535 (1 - cosine)")):
        said = experiment._add_context_effect(
            Bilingual(en="", zh=""), pd.DataFrame([*some, alone]), Config(resamples=100)
        )
        assert f"by {moved} where its side decides" in said.en and "0.100 [0.100, 0.100] apart" in said.en


def test_a_bag_knows_the_words_around_and_not_their_order(tiny):
    texts = ["猫在左边，狗在右边", "猫在右边，狗在左边", "猫在左边，牛在右边"]
    bags = bags_at(load_cpu_encoder(tiny), texts, [(0, 1)] * 3)
    own = states_at(load_cpu_encoder(tiny), texts, [(0, 1)] * 3)
    assert bags.shape == (1, 3, own.shape[2])
    np.testing.assert_allclose(bags[0, 0], bags[0, 1], atol=1e-6)
    assert not np.allclose(bags[0, 0], bags[0, 2], atol=1e-3) and not np.allclose(bags[0, 0], own[0, 0], atol=1e-3)


def test_at_the_embeddings_no_sense_is_told_and_no_word_changes_another(tiny):
    """The word is the same token at the same place in both sentences of a pair, so layer 0 knows nothing."""
    table = experiment.read_senses(tiny, "trained", "scenes", 0, 1, shuffles=2, seed=0)
    after = table[(table.layer == 0) & (table["where"] == "word") & (table.place == "after")]
    assert (after.accuracy == 0.5).all()
    moved = experiment.ablate_context(tiny, "scenes", 0, 1, sentences_each=1, seed=0)
    assert (moved[moved.layer == 0].change == 0).all() and (moved[moved.layer > 0].change > 0).any()
