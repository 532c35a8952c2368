"""A gain that was planted is found, none is not, and layers are not chosen on what they are judged by."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from toushi.experiments.studies import bilingual
from toushi.experiments.studies.bilingual import (
    Config,
    chosen_layer_gain,
    conclude,
    decide,
    figures,
    jobs,
    phrases,
    sentence,
)
from toushi.probe.figures.style import save


def planted(trained: list[float], floor: float = 0.3, sentences: int = 80, seed: int = 0) -> pd.DataFrame:
    random, rows = np.random.default_rng(seed), []
    for weights, curve in (("trained", trained), ("random", [floor] * len(trained))):
        for layer, share in enumerate(curve):
            for pair in range(4 * sentences):
                about = {"weights": weights, "data": "scenes", "layer": layer, "pair": pair}
                rows.append(about | {"sentence": pair // 4, "name": pair % 60, "right": float(random.random() < share)})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "curve, verdict",
    [([0.3, 0.4, 0.8, 0.6], "supported"), ([0.8, 0.5, 0.4, 0.3], "refuted"), ([0.5, 0.5, 0.52, 0.51], "undecided")],
)
def test_the_verdict_follows_what_was_planted(curve, verdict):
    one = pd.Series(chosen_layer_gain(planted(curve), Config(resamples=300)) | {"data": "scenes"})
    layers = pd.DataFrame([{"weights": "trained", "data": "scenes", "layer": 0, "pairs": 320, "retrieval": curve[0]}])
    assert decide(one) == verdict and sentence(one, "made", layers).en.startswith("made")


@pytest.mark.parametrize(
    "interval, lead_low, sentences, verdict",
    [
        ((0.01, 0.06), 0.5, 200, "supported"),
        ((0.02, 0.05), 0.5, 200, "supported"),  # 5 points are not below 5
        ((0.01, 0.049), 0.5, 200, "refuted"),  # small, however sure
        ((-0.2, 0.049), 0.5, 200, "refuted"),
        ((-0.2, 0.049), -0.1, 200, "refuted"),
        ((0.0, 0.06), 0.5, 200, "undecided"),  # 0 is not above 0
        ((0.01, 0.06), 0.0, 200, "undecided"),  # no better than random weights
        ((-0.1, 0.1), 0.5, 200, "undecided"),
        ((0.3, 0.5), 0.3, 6, "supported"),
        ((0.3, 0.5), 0.3, 5, "undecided"),  # too few sentences
        ((-0.5, -0.3), 0.3, 5, "undecided"),
    ],
)
def test_the_rule_gives_one_verdict_at_each_of_its_borders(interval, lead_low, sentences, verdict):
    numbers = {"gain_low": interval[0], "gain_high": interval[1], "lead_low": lead_low}
    assert decide(pd.Series(numbers | {"sentences": sentences, "words": 50})) == verdict
    assert decide(pd.Series(numbers | {"sentences": 50, "words": sentences})) == verdict


def test_a_word_that_is_lost_wherever_it_stands_widens_the_interval():
    table, config = planted([0.3, 0.4, 0.8, 0.6]), Config(resamples=300)
    lost = table.assign(right=table.right.where((table.name % 3 > 0) | (table.layer == 0), 0.0))
    alone, together = chosen_layer_gain(lost.assign(name=lost.pair), config), chosen_layer_gain(lost, config)
    assert together["gain"] == alone["gain"]
    width = [found["gain_high"] - found["gain_low"] for found in (alone, together)]
    assert width[1] > 1.2 * width[0]


def test_the_best_of_many_equal_layers_gains_nothing():
    gains = [
        chosen_layer_gain(planted([0.5] * 13, seed=n).sample(frac=1), Config(resamples=50))["gain"] for n in range(8)
    ]
    assert abs(np.mean(gains)) < 0.05


def test_both_sides_of_a_pair_mean_the_same():
    table = phrases("scenes", 60, seed=0)
    assert len(table) > 150 and table.group.nunique() <= 60
    for row in table.itertuples():
        assert row.zh[row.zh_start : row.zh_end].strip() and row.en[row.en_start : row.en_end].strip()
    red = table[table.name == "colour red"]
    assert len(red) and {row.en[row.en_start : row.en_end] for row in red.itertuples()} == {"red"}
    assert len(phrases("parallel", 0, 0)) == 249


def test_a_run_on_a_tiny_encoder_comes_through(tiny, tmp_path):
    config = Config(encoder=tiny, scenes=12, shuffles=5, resamples=50)
    made = jobs(config)
    assert [job.name for job in made] == ["trained-scenes", "random-scenes"]
    assert [file.name for file in bilingual.weights(config)] == ["model.safetensors"]
    assert [file.name for file in bilingual.weights(replace(config, data="both"))] == [
        "model.safetensors",
        "parallel.tsv",
    ]
    finding = conclude(config, pd.concat([job.function(**job.arguments) for job in made]))
    assert set(finding.tables) == {"layers", "gains"}
    for language in ("zh", "en"):
        for name, figure in figures(finding.tables, language).items():
            save(figure, tmp_path / f"{name}-{language}.png")
            assert figure.get_label()
