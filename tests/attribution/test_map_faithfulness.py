"""Measures of faithfulness on the toy model: what is true of it, and the scores of true and of false explanations."""

import numpy as np
import pytest
import torch

from tests.attribution.test_explain import BOXES, toy
from toushi.probe.attribution.denoising import CannotExplain, denoise_at
from toushi.probe.attribution.explain import explain_at
from toushi.probe.attribution.map_faithfulness import (
    FAITHFULNESS,
    agreement,
    area,
    comprehensiveness,
    curve,
    infidelity,
    randomised_weights,
    sensitivity,
    sufficiency,
)
from toushi.probe.attribution.word_scores import WordScores
from toushi.probe.models.mini_unet import MiniUNet

STRENGTH, ALL = (1.0, 2.0, 3.0, 4.0), (0, 0, 8, 8)


@pytest.fixture(scope="module")
def case():
    """The scores of the whole picture, a true explanation, and its reverse."""
    denoising = toy(STRENGTH)
    true = explain_at(denoising, ALL, "shapley")
    return WordScores(denoising, ALL), true, true.copy(data=true.values[::-1])


def test_curves_go_from_all_to_nothing_in_the_order_of_the_explanation(case):
    scores, true, false = case
    shares = np.array([0, 16, 25, 29, 30]) / 30  # 狗, 树, 月亮, 猫
    whole = scores(torch.ones(1, 4)).item()
    assert curve(scores, true, "insertion").values / whole == pytest.approx(shares, abs=0.005)
    assert curve(scores, true, "deletion").values / whole == pytest.approx(1 - shares, abs=0.005)
    assert curve(scores, false, "insertion").values / whole == pytest.approx(
        np.array([0, 1, 5, 14, 30]) / 30, abs=0.005
    )


def test_a_true_explanation_scores_better_than_its_reverse(case):
    """In the direction that FAITHFULNESS declares."""
    scores, true, false = case
    measures = {
        "insertion": lambda e: area(scores, e, "insertion"),
        "deletion": lambda e: area(scores, e, "deletion"),
        "sufficiency": lambda e: sufficiency(scores, e),
        "comprehensiveness": lambda e: comprehensiveness(scores, e),
        "infidelity": lambda e: infidelity(scores, e),
    }
    for name, measure in measures.items():
        sign = 1 if FAITHFULNESS[name] == "higher" else -1
        assert sign * measure(true) > sign * measure(false) + 0.01, name
    assert area(scores, true, "insertion") == pytest.approx((8 + 20.5 + 27 + 29.5) / 4 / 30, abs=0.005)
    assert infidelity(scores, true) == pytest.approx(0, abs=1e-4)


def test_the_one_word_of_a_quadrant_is_enough_and_needed():
    denoising = toy()
    scores, explanation = WordScores(denoising, BOXES[1]), explain_at(denoising, BOXES[1], "ablation")
    assert sufficiency(scores, explanation) == pytest.approx(0, abs=0.01)
    assert comprehensiveness(scores, explanation) == pytest.approx(0.5, abs=0.01)
    assert area(scores, explanation, "deletion") == pytest.approx(1 / 8, abs=0.01)


def test_sensitivity_is_nothing_where_the_latents_do_not_matter():
    explain = lambda d: explain_at(d, BOXES[0], "ablation")  # noqa: E731
    assert sensitivity(toy(), explain) == pytest.approx(0, abs=1e-4)
    tiny = denoise_at(MiniUNet.tiny(layers=1), "左边是猫", 0.5, size=64, steps=2)
    assert sensitivity(tiny, explain, radius=0.5) > 1e-3


def test_agreement_over_seeds_and_after_randomisation():
    true = explain_at(toy(STRENGTH), ALL, "shapley")
    assert agreement([true, true, true]) == pytest.approx(1)
    assert agreement([true, -true]) == pytest.approx(-1)
    seeds = [explain_at(toy(STRENGTH), ALL, "ablation", seed=seed) for seed in range(3)]
    assert agreement(seeds) == pytest.approx(1)
    with randomised_weights((denoising := toy()).model):
        shuffled = explain_at(denoising, None, "attention")
    assert agreement([explain_at(toy(), None, "attention"), shuffled]) < 0.5


def test_refusals(case):
    scores, true, _ = case
    with pytest.raises(CannotExplain, match=r"expected an explanation \[word\] of 猫, 月亮, 树, 狗, but one"):
        curve(scores, explain_at(toy(), None, "attention"), "deletion")
    with pytest.raises(CannotExplain, match=r"top must lie in 1\.\.4"):
        sufficiency(scores, true, top=5)
    with pytest.raises(CannotExplain, match="at least two explanations"):
        agreement([true])
    with pytest.raises(CannotExplain, match="of one shape"):
        agreement([true, true[:2]])
