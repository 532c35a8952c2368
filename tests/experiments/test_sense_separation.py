"""The experiment finds what was planted, says no where there is nothing, and goes on where it was cut off."""

import numpy as np
import pandas as pd
import pytest

from experiments import sense_separation as experiment
from experiments.sense_separation import Config, measured, summary, verdict
from probe.figures.senses import senses_figure
from probe.lens.encoders import open_encoder
from probe.models.mini_unet import MiniUNet


def planted(by_layer: list[float], words: int = 24) -> pd.DataFrame:
    noise = np.random.default_rng(0).normal(scale=0.02, size=(words, len(by_layer)))
    return pd.DataFrame(
        dict(word=str(w), place=place, layer=k, accuracy=a + noise[w, k], accuracy_shuffled=0.48, separation=0.0)
        for w in range(words)
        for place in ("both", "before", "after")
        for k, a in enumerate(by_layer)
    )


@pytest.mark.parametrize(
    "by_layer, said",
    [
        ([0.5] * 5 + [0.7] * 4 + [0.9] * 4, "supported"),
        ([0.5] + [0.9] * 12, "refuted"),
        ([0.5, 0.9], "undecided"),
    ],
)
def test_the_verdict_follows_the_numbers(by_layer, said):
    assert verdict(planted(by_layer), resamples=200, seed=0).startswith(said)


def test_intervals_hold_the_mean_and_the_figure_is_drawn():
    found = summary(planted([0.5, 0.8]), resamples=200, seed=0)
    assert ((found.low < found.accuracy) & (found.accuracy < found.high)).all() and set(found.words) == {24}
    assert len(senses_figure(found.assign(weights="trained")).axes) == 3


def test_goes_on_where_it_was_cut_off_and_comes_to_the_same(tmp_path, monkeypatch):
    encoder = open_encoder(MiniUNet.tiny())

    def config(name):
        (tmp_path / name).mkdir()
        return Config(encoder="", out=tmp_path / name, words=2, shuffles=3)

    whole = measured("tiny", encoder, config("whole"))
    assert set(whole.place) == {"both", "before", "after"} and whole.word.nunique() == 2
    cut, calls = config("cut"), []

    def once(*arguments):
        calls.append(arguments[1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return of_word(*arguments)

    of_word = experiment.of_word
    monkeypatch.setattr(experiment, "of_word", once)
    with pytest.raises(KeyboardInterrupt):
        measured("tiny", encoder, cut)
    monkeypatch.setattr(experiment, "of_word", of_word)
    pd.testing.assert_frame_equal(measured("tiny", encoder, cut), whole)
