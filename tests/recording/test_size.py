"""The forecast of bytes, and the budget."""

import pytest

from tests.recording.made import PROMPT, draw, recorded
from toushi.probe.recording.forecast import OverBudget, forecast
from toushi.probe.recording.policy import Policy
from toushi.probe.recording.record import record


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
        record(model, tmp_path / "run", budget=100_000),
    ):
        draw(model, steps=20)
    assert not (tmp_path / "run/manifest.json").exists()
    said = forecast(model, PROMPT, steps=20)
    with record(model, tmp_path / "run", keep="sum", budget=said.disk["sum"] + 1000):
        draw(model, steps=20)
