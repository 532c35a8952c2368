"""The forecast of bytes, and the budget."""

import pytest

from tests.recording.tiny_runs import PROMPT, draw, recorded, same
from toushi.probe.recording.forecast import OverBudget, forecast
from toushi.probe.recording.policy import Policy
from toushi.probe.recording.record import record
from toushi.probe.recording.unrecordable import KeptMean


@pytest.mark.parametrize("keep", ["heads", "mean", "sum"])
def test_the_forecast_is_near_the_truth(model, tmp_path, keep):
    said = forecast(model, PROMPT, steps=6)
    _, _ = recorded(model, tmp_path / "run", steps=6, keeping={"keep": keep})
    written = sum(p.stat().st_size for p in (tmp_path / "run").iterdir() if p.name.startswith(("step_", "sum_")))
    assert 0.8 < said.disk[keep] / written < 1.2


def test_the_forecast_knows_words_branches_and_sites(model):
    whole = forecast(model, PROMPT)
    assert forecast(model, PROMPT, policy=Policy(words=("猫",))).disk["heads"] < whole.disk["heads"]
    assert forecast(model, PROMPT, policy=Policy(branches=("cond",))).disk["heads"] < whole.disk["heads"]
    assert forecast(model, PROMPT, sites="*").disk["heads"] > whole.disk["heads"]
    assert forecast(model, PROMPT, policy=Policy(steps=0)).disk["heads"] * 20 == whole.disk["heads"]
    assert "heads: " in str(whole)


def test_over_the_budget_the_run_is_refused_with_the_cheaper_sizes(model, tmp_path):
    with (
        pytest.raises(OverBudget, match=r'keep="mean" .*B, keep="sum" .*B'),
        record(model, tmp_path / "run", keep="heads", budget=100_000),
    ):
        draw(model, steps=20)
    assert not (tmp_path / "run/manifest.json").exists()
    said = forecast(model, PROMPT, steps=20)
    with record(model, tmp_path / "run", keep="sum", budget=said.disk["sum"] + 1000):
        draw(model, steps=20)


def test_by_default_every_head_is_kept_where_it_fits_the_budget(model, tmp_path):
    _, heads = recorded(model, tmp_path / "heads", keeping={"keep": "heads"})
    _, trace = recorded(model, tmp_path / "run")
    assert trace.keep == "heads" and trace.manifest.kept.keep_reason == "every head fits the budget"
    for site, maps in heads.attention(grid="native").items():
        assert same(maps, trace.attention(grid="native")[site])


@pytest.mark.parametrize("share", [0.3, 0.9])  # over the budget at the first site, and at a later one
def test_else_their_mean_with_a_warning_that_gives_the_sizes(model, tmp_path, share):
    said = forecast(model, PROMPT, steps=3)
    budget = int(said.disk["mean"] + share * (said.disk["heads"] - said.disk["mean"]))
    with pytest.warns(KeptMean, match=r"mean over heads: every head would take .*B on disk; the budget is .*B"):
        _, trace = recorded(model, tmp_path / "run", keeping={"budget": budget})
    _, mean = recorded(model, tmp_path / "mean", keeping={"keep": "mean"})
    assert trace.keep == "mean" and "every head would take" in trace.manifest.kept.keep_reason
    assert not trace.verify()
    for site, maps in mean.attention(grid="native").items():
        assert same(maps, trace.attention(grid="native")[site])


def test_a_run_whose_mean_is_over_the_budget_is_refused(model, tmp_path):
    with (
        pytest.raises(OverBudget, match=r'keep="mean" would take .*Cheaper: keep="sum"'),
        record(model, tmp_path / "run", budget=20_000),
    ):
        draw(model, steps=20)
