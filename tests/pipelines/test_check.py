"""`toushi check`: the laws of a saved model, its row, and the page that is made of rows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipelines.tiny import MAKERS, made, scaled
from toushi import main
from toushi.probe.base.errors import ToushiError
from toushi.probe.model_check.check_row import read_rows, weights_digest
from toushi.probe.model_check.observation import AttentionCall, explicit_softmax
from toushi.probe.model_check.verified_tables import PAGES, updated_page
from toushi.probe.recording.run_recorder import RunRecorder

DOCS = Path(__file__).parents[2] / "docs"
QUICK = ("stable-diffusion", "flux", "z-image")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MAKERS]
)
def test_a_saved_model_keeps_every_law(name, tmp_path, capsys, monkeypatch):
    pipeline = made(name)
    pipeline.save_pretrained(tmp_path / "tiny model")
    monkeypatch.chdir(tmp_path)
    size = "x".join(map(str, scaled(pipeline, (32, 48))))
    assert main(["check", str(tmp_path / "tiny model"), "--size", size, "--device", "cpu"]) == 0
    assert "BROKEN" not in capsys.readouterr().out
    (row,) = read_rows(tmp_path)
    assert (tmp_path / "toushi-check-tiny-model.json").is_file() and row["holds"] and row["family"].startswith(name)
    assert row["model"]["name"] == "tiny model" and len(row["model"]["weights_digest"]) == 64
    assert row["dtype"] == "float32" and row["kernel"] and row["seconds"]["bare"] > 0 and row["difference"] < 1e-5
    assert str(tmp_path) not in json.dumps(row)


def test_a_shifted_column_is_a_breach(tmp_path, capsys, monkeypatch):
    arrays_of_step = RunRecorder._step_arrays

    def shift(run, step):
        arrays = [{key: np.asarray(array) for key, array in of_one.items()} for of_one in arrays_of_step(run, step)]
        return [{key: np.roll(a, 1, -3) if a.ndim == 4 else a for key, a in of_one.items()} for of_one in arrays]

    monkeypatch.setattr(RunRecorder, "_step_arrays", shift)
    assert main(["check", "mini-unet", "--size", "32", "--out", str(tmp_path / "rows" / "row.json")]) == 1
    table = capsys.readouterr().out
    (broken,) = [line for line in table.splitlines() if "BROKEN" in line]
    (row,) = read_rows(tmp_path / "rows")
    assert broken.startswith("maps equal an explicit softmax") and not row["holds"] and row["difference"] > 1e-3


def test_the_softmax_is_the_softmax():
    """With masks of both kinds, grouped heads, and the causal order: against PyTorch, in fp64."""
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8)
    bias = torch.randn(2, 1, 1, 7)
    for mask, causal in ((None, False), (bias, False), (bias > 0, False), (None, True)):
        call = AttentionCall("site", query, key, mask, 0.5, causal)
        value = torch.eye(7).double().expand(2, 4, 7, 7)
        expected = torch.nn.functional.scaled_dot_product_attention(
            query.double(), key.double().repeat_interleave(2, 1), value, mask if causal or mask is None or mask.dtype == torch.bool else mask.double(), is_causal=causal, scale=0.5
        )  # fmt: skip
        assert (explicit_softmax(call, 1, [3, 1]) - expected[1][:, [3, 1]]).abs().max() < 1e-12


def test_the_pages_are_what_the_rows_give():
    rows = read_rows(DOCS / "verified")
    assert {row["model"]["name"] for row in rows} >= {"mini-unet"} and all(row["holds"] for row in rows)
    for name, language in PAGES.items():
        page = (DOCS / name).read_text(encoding="utf-8")
        assert updated_page(page, rows, language) == page, "run make verified"
    broken = {**rows[0], "laws": [{"name": "sums", "holds": False, "detail": ""}]}
    assert "| 0 / 1 (`sums`) |" in updated_page(page, [broken], "en")
    with pytest.raises(ToushiError, match="no place for the table"):
        updated_page("# a page", rows, "en")


def test_a_file_that_is_no_row(tmp_path):
    (tmp_path / "a.json").write_text('{"format": "toushi-trace"}')
    with pytest.raises(ToushiError, match="no row of toushi check"):
        read_rows(tmp_path)
    assert weights_digest(tmp_path) is None
