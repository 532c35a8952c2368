"""Pads of which only the sum was kept: one place of the token axis, and every answer as if all had been kept."""

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest

from tests.figures.test_figures import texts
from tests.trace.runs import PROMPT, TOKENIZER, Run
from toushi.cli.info import Info
from toushi.cli.trace_summary import summarize_others
from toushi.dashboards.heat_map import word_maps
from toushi.probe.figures.tokens_figure import tokens_figure
from toushi.probe.figures.words_figure import words_figure
from toushi.probe.text.alignment import Token
from toushi.probe.trace.export.export_trace import export
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.trace_errors import DamagedTrace
from toushi.probe.trace.trace_format import PADS, SUMS, map_key, stored_columns
from toushi.probe.trace.writer import TraceWriter

FIRST, BETWEEN = 5, 2  # pads at the end, and among the text


class PaddedRun(Run):
    """A run whose prompt has pads, the attention to which is large; `summed`: only their sum is written."""

    def __init__(self, summed: bool, **how):
        super().__init__(**how)
        self.summed = summed

    def tokens(self) -> list[Token]:
        text = list(TOKENIZER.encode(PROMPT).tokens)
        kinds = [*["text"] * 4, *["pad"] * BETWEEN, *["text"] * (len(text) - 4), *["pad"] * FIRST]
        rest, tokens = iter(text), []
        for column, kind in enumerate(kinds):
            given = next(rest) if kind == "text" else Token(0, "<pad>", None, "pad", ("encoder",), 0, None)
            tokens.append(Token(given.id, given.text, given.span, given.kind, given.encoders, column, column))
        return tokens

    def manifest(self, **fields):
        manifest = super().manifest()
        manifest["branches"]["cond"]["tokens"] = self.tokens()
        if self.summed:
            manifest["branches"]["cond"]["pad_columns"] = stored_columns(self.tokens())[1]
        return manifest | fields

    def tensors(self, step):
        tensors = super().tensors(step)
        columns, pads = stored_columns(self.tokens())
        for key, maps in tensors.items() if self.summed else ():
            if key.endswith("/cond"):
                maps = maps.astype(np.float32)
                kept, summed = np.take(maps, columns, -3), np.take(maps, pads, -3).sum(-3, keepdims=True)
                tensors[key] = np.concatenate([kept, summed], -3)
        return tensors


@pytest.fixture(params=["heads", "mean", "sum"])
def traces(request, tmp_path):
    runs = {name: PaddedRun(name == "summed", keep=request.param, rest=True) for name in ("whole", "summed")}
    return tuple(open_trace(run.write(tmp_path / name)) for name, run in runs.items())


def test_the_last_place_of_the_token_axis_is_the_sum_of_the_pads(traces):
    whole, summed = traces
    columns, pads = stored_columns(whole.tokens())
    assert summed.tokens() == whole.tokens() and len(pads) == FIRST + BETWEEN
    one, two = whole.attention(), summed.attention()
    assert two["token"].values.tolist() == [*columns, PADS] and two["text"].values[-1] == SUMS["pad"]
    assert two["kind"].values.tolist()[-1] == "pad" and "pad" not in two["kind"].values[:-1]
    np.testing.assert_allclose(two.isel(token=slice(-1)), one.sel(token=columns), atol=1e-3)
    np.testing.assert_allclose(two.sel(token=PADS), one.sel(token=pads).sum("token", skipna=False), atol=5e-3)
    assert summed.places()[-1].column == PADS and len(summed.places()) == len(columns) + 1


def test_every_answer_is_that_of_all_columns(traces):
    whole, summed = traces
    for word in whole.words():
        np.testing.assert_allclose(summed.heat_map(word), whole.heat_map(word), atol=1e-3)
    one, two = whole.mass(), summed.mass()
    assert float(two.sum()) + two.attrs["rest"] == pytest.approx(1, abs=1e-3)
    pads = stored_columns(whole.tokens())[1]
    assert float(two.sel(token=PADS)) == pytest.approx(float(one.sel(token=pads).sum()), abs=1e-3)
    assert sorted(summarize_others(summed).split(", ")) == sorted(summarize_others(whole).split(", "))
    one, two = word_maps.read_word_maps(whole, "cond"), word_maps.read_word_maps(summed, "cond")
    order = [two.units.index(unit) for unit in one.units]
    assert sorted(order) == list(range(len(two.units)))
    for first, second in zip(one.layers, two.layers):
        maps = second.maps[:, :, order].astype(np.float32)
        np.testing.assert_allclose(maps, first.maps.astype(np.float32), atol=2e-3)


def test_verify_sees_that_all_sums_to_1(tmp_path):
    run = PaddedRun(True, rest=True)
    assert open_trace(run.write(tmp_path / "run")).verify() == []
    tensors = run.tensors(0)
    key = map_key("unet.middle.cross_attention", "cond")
    tensors[key][:, -1] *= 0.5  # attention to the pads is missing
    with TraceWriter(tmp_path / "less", run.manifest(steps={"count": 1})) as writer:
        writer.write_step(0, tensors)
    (problem,) = open_trace(tmp_path / "less").verify()
    assert "sum to 1" in problem and key in problem


def test_figures_show_the_pads_as_one(traces):
    _, summed = traces
    said = texts(tokens_figure(summed))
    assert f"<pad> ×{FIRST + BETWEEN}" in said and "<pad>" not in said and "not kept" not in said
    words_figure(summed).draw_without_rendering()
    with redirect_stdout(io.StringIO()) as info:
        Info(summed.folder).run()
    assert "猫" in info.getvalue()


def test_exported_tokens_end_with_the_pads(traces, tmp_path):
    whole, summed = traces
    pads = stored_columns(whole.tokens())[1]
    with np.load(export(summed, "npz", tmp_path / "x.npz", tokens=True).path) as data:
        about = json.loads(str(data["about"]))
        assert about["tokens"]["cond"][-1] == {"token": PADS, "text": SUMS["pad"], "kind": "pad"}
        values = data["cond/tokens/8x4"]
    expected = whole.attention(sites="unet.down.0.*").sel(token=pads).sum("token", skipna=False)
    np.testing.assert_allclose(values[..., -1, :, :], expected, atol=5e-3)
    pandas = pytest.importorskip("pandas")
    table = pandas.read_parquet(export(summed, "parquet", tmp_path / "x.parquet", tokens=True).path)
    assert set(table[table.token == PADS].text) == {SUMS["pad"]} and set(table[table.branch == "uncond"].token) >= {0}


def test_some_words_can_be_kept_beside_the_pads(tmp_path):
    run = PaddedRun(True)
    cat = next(token.column for token in run.tokens() if token.text == "猫")
    branches = run.manifest()["branches"]
    branches["cond"]["columns"] = [cat]
    with TraceWriter(tmp_path / "run", run.manifest(branches=branches, steps={"count": 1})) as writer:
        maps = {key: value for key, value in run.tensors(0).items() if key.endswith("/cond")}
        place = stored_columns(run.tokens())[0].index(cat)
        writer.write_step(0, {key: value[:, [place, -1]] for key, value in maps.items()})
    trace = open_trace(tmp_path / "run")
    assert trace.attention()["token"].values.tolist() == [cat, PADS] and trace.verify() == []
    assert trace.heat_map("猫").max() > 0


# --- the format -----------------------------------------------------------------------------------------


def test_version_2_is_written_only_where_version_1_would_misread(tmp_path):
    for summed, version in ((False, 1), (True, 2)):
        folder = PaddedRun(summed).write(tmp_path / str(summed))
        assert json.loads((folder / "manifest.json").read_text())["version"] == version
        assert open_trace(folder).manifest.version == version
    folder = tmp_path / "True"
    manifest = json.loads((folder / "manifest.json").read_text()) | {"version": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedTrace, match=r"branches\.cond\.pad_columns must be null in version 1"):
        open_trace(folder)


@pytest.mark.parametrize("pads", [[], [0], [4, 4], [4, 99], 4, [-1], ["4"]])
def test_only_columns_of_pads_can_be_summed(tmp_path, pads):
    run = PaddedRun(True)
    branches = run.manifest()["branches"]
    branches["cond"]["pad_columns"] = pads
    with pytest.raises(DamagedTrace, match=r"branches\.cond\.pad_columns.* must be .* is there"):
        TraceWriter(tmp_path / "run", run.manifest(branches=branches))


def test_a_column_is_stored_once(tmp_path):
    run = PaddedRun(True)
    branches = run.manifest()["branches"]
    branches["cond"]["columns"] = [0, 4]
    with pytest.raises(DamagedTrace, match="not among columns"):
        TraceWriter(tmp_path / "run", run.manifest(branches=branches))


def test_stored_columns():
    tokens = [Token(1, "a", (0, 1), "text", ("e",), i, column) for i, column in enumerate([3, None, 0])]
    tokens += [Token(0, "", None, "pad", ("e",), 9, column) for column in (7, 1, None)]
    assert stored_columns(tokens) == ([0, 3], [1, 7]) and stored_columns([]) == ([], [])
