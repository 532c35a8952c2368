"""What is exported is what the reader gives, in files that others read; an export never destroys anything."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from tests.trace.runs import SITES, Run
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import AmbiguousWord, UnknownWord, word_labels
from toushi.probe.trace.export.export_trace import default_path, export
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.trace_errors import NotRecorded, WriteFailed
from toushi.probe.trace.writer import TraceWriter
from toushi.probe.trace.xarray_backend import ToushiBackend

pyarrow = pytest.importorskip("pyarrow")


def traced(folder, **run):
    return open_trace(Run(**run).write(folder / "run"))


def table(path):
    from pyarrow import parquet

    return parquet.read_table(path).to_pandas()


def native(trace, word, site, branch="cond"):
    return trace.attention(word, branch=branch, sites=site, grid="native")[site].values


@pytest.mark.parametrize("keep", ["heads", "mean", "sum"])
def test_npz_is_what_the_reader_gives(tmp_path, keep):
    trace = traced(tmp_path, keep=keep, negative="a red cat", rest=True)
    done = export(trace, "npz")
    assert done.path == tmp_path / "run.npz" and not done.left_out
    with np.load(done.path, allow_pickle=False) as data:
        about = json.loads(str(data["about"]))
        arrays = about["arrays"]
        assert set(data.files) == {"about", *arrays}
        assert about["prompt"] == trace.prompt and about["keep"] == keep
        words = {(branch, *word.span) for branch in ("cond", "uncond") for word in trace.words(branch)}
        assert {(one["branch"], one["start"], one["end"]) for one in arrays.values()} == words
        assert len(arrays) == 2 * len(words)  # two grids
        for name, one in arrays.items():
            (site,) = one["layers"]
            expected = native(trace, (one["start"], one["end"]), site, one["branch"])
            assert one["axes"] == ["step", "layer", *["head"] * (keep == "heads"), "y", "x"]
            assert one["steps"] == ([2] if keep == "sum" else [0, 1, 2])
            assert name == f"{one['branch']}/{one['word']}/{'x'.join(map(str, expected.shape[-2:]))}"
            assert data[name].dtype == np.float32 and np.array_equal(data[name][:, 0], expected)
    sites = [name for name, about_site in trace.sites.items() if about_site.kind == "cross"]
    counts = dict.fromkeys(sites, 3)
    assert about["summed"] == ({"cond": counts, "uncond": counts} if keep == "sum" else None)


def test_the_steps_that_were_summed_are_counted_for_each_branch(tmp_path):
    run = Run(keep="sum", steps=4)
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        for step in range(4):
            tensors = run.tensors(step)
            writer.write_step(step, {k: v for k, v in tensors.items() if step < 2 or "uncond" not in k})
    done = export(open_trace(tmp_path / "run"), "npz", tokens=True)
    counts = {branch: set(by_site.values()) for branch, by_site in done.about["summed"].items()}
    assert counts == {"cond": {4}, "uncond": {2}}


def test_tokens_leave_nothing_out(tmp_path):
    trace = traced(tmp_path)
    with np.load(export(trace, "npz", tokens=True).path) as data:
        about = json.loads(str(data["about"]))
        for branch in ("cond", "uncond"):
            whole = data[f"{branch}/tokens/8x4"]
            assert np.array_equal(whole[:, 0], native(trace, None, next(iter(SITES)), branch))
            assert np.allclose(whole.sum(-3), 1, atol=1e-3)
            one = about["arrays"][f"{branch}/tokens/8x4"]
            assert one["axes"] == ["step", "layer", "head", "token", "y", "x"]
            assert [token["text"] for token in one["tokens"]] == [token.text for token in trace.tokens(branch)]


@pytest.mark.parametrize("keep", ["heads", "mean", "sum"])
@pytest.mark.parametrize("rows", [7, 2**18])
def test_a_row_of_the_table_is_a_value_of_the_map(tmp_path, monkeypatch, keep, rows):
    from pyarrow import parquet

    monkeypatch.setattr("toushi.probe.trace.export.parquet_export.ROWS", rows)
    sites = {name: {**site, "heads": 2} for name, site in SITES.items()} if rows == 7 else SITES
    trace = traced(tmp_path, keep=keep, steps=2, sites=sites)
    done = export(trace, "parquet", words=["猫", "月亮"])
    found = table(done.path)
    assert list(found) == ["step", "branch", "layer", "grid", "head", "word", "unknown", "y", "x", "value"]
    for (layer, grid), one in found.groupby(["layer", "grid"], observed=True):
        assert grid == f"{one.y.max() + 1}x{one.x.max() + 1}", layer
    assert f"{len(found):,}" in done.what
    groups = parquet.ParquetFile(done.path).metadata
    assert max(groups.row_group(i).num_rows for i in range(groups.num_row_groups)) <= rows
    about = json.loads(parquet.read_schema(done.path).metadata[b"toushi"])
    assert [word["text"] for word in about["words"]["cond"]] == ["猫", "月亮"]
    assert found["head"].isna().all() if keep != "heads" else found["head"].notna().all()
    expected = 0
    for word in ("猫", "月亮"):
        for site in [name for name, about in sites.items() if about["kind"] == "cross"]:
            values = native(trace, word, site)
            expected += values.size
            some = found[(found["word"] == word) & (found["layer"] == site)]
            assert np.array_equal(some["value"].to_numpy(), values.ravel())
            place = list(np.ndindex(values.shape[-2:]))
            assert list(zip(some["y"], some["x"])) == place * (values.size // len(place))
    assert len(found) == expected and set(found["branch"]) == {"cond"}
    keys = ["step", "layer", "head", "word", "y", "x"]
    assert not found.duplicated(keys).any() and found["step"].is_monotonic_increasing


def test_the_table_of_tokens(tmp_path):
    trace = traced(tmp_path, steps=1)
    found = table(export(trace, "parquet", tokens=True).path)
    assert list(found) == ["step", "branch", "layer", "grid", "head", "token", "text", "unknown", "y", "x", "value"]
    sums = found.groupby(["step", "branch", "layer", "head", "y", "x"], observed=True)["value"].sum()
    assert np.allclose(sums, 1, atol=1e-3) and len(sums) == 2 * (2 * 32 + 4 * 8)
    texts = found[found["branch"] == "cond"].drop_duplicates("token").set_index("token")["text"]
    assert texts.to_dict() == {token.column: token.text for token in trace.tokens()}


def test_words_that_stand_twice_are_numbered(tmp_path):
    trace = traced(tmp_path, prompt="猫和猫，狗", steps=1)
    words = set(table(export(trace, "parquet").path)["word"])
    assert words == {"猫#1", "猫#2", "和", "狗"}
    with pytest.raises(AmbiguousWord):
        export(trace, "npz", words=["猫"])
    assert set(table(export(trace, "parquet", tmp_path / "two.parquet", ["猫#2"]).path)["word"]) == {"猫#2"}


def test_heads_and_steps_that_are_not_there_are_nan(tmp_path):
    """Two sites of one grid with different heads; guidance that stops: uncond has fewer steps."""
    from toushi.probe.trace.writer import TraceWriter

    sites = {"a": {"kind": "cross", "grid": [4, 2], "heads": 1}, "b": {"kind": "cross", "grid": [4, 2], "heads": 3}}
    run = Run(sites=sites, negative="狗")
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        for step in range(3):
            tensors = run.tensors(step)
            gone = [key for key in tensors if (step == 2 and "uncond" in key) or (step == 1 and key == "a/cond")]
            writer.write_step(step, {key: value for key, value in tensors.items() if key not in gone})
    trace = open_trace(tmp_path / "run")
    with np.load(export(trace, "npz").path) as data:
        assert data["uncond/狗/4x2"].shape == (2, 2, 3, 4, 2)
        cat = data["cond/猫/4x2"]
        assert cat.shape == (3, 2, 3, 4, 2)
        assert np.isnan(cat[1, 0]).all() and np.isnan(cat[:, 0, 1:]).all() and np.isfinite(cat[:, 1]).all()
    found = table(export(trace, "parquet").path)
    assert found["value"].notna().all()
    assert len(found[(found["word"] == "猫")]) == 3 * 3 * 8 + 2 * 8 and len(found[found["word"] == "狗"]) == 2 * 4 * 8


def test_what_the_trace_does_not_hold_is_said(tmp_path):
    kept = [token.column for token in traced(tmp_path).tokens() if token.text == "猫"]
    trace = open_trace(Run(columns=kept).write(tmp_path / "some"))
    done = export(trace, "npz")
    assert "cond: 月亮" in done.left_out and json.loads(str(np.load(done.path)["about"]))["left_out"] == done.left_out
    assert {name.split("/")[1] for name in np.load(done.path).files if "/" in name} == {"猫"}
    with pytest.raises(NotRecorded, match="only other words"):
        export(trace, "npz", words=["月亮"], overwrite=True)


def test_a_prompt_that_is_not_known_goes_by_token(tmp_path):
    trace = traced(tmp_path, prompt=None, negative=None)
    with pytest.raises(NotRecorded, match="tokens"):
        export(trace, "npz")
    assert list(tmp_path.glob("*.npz")) == []
    assert "cond/tokens/8x4" in np.load(export(trace, "npz", tokens=True).path).files


@pytest.mark.parametrize("prompt", ["../../x", "/etc/passwd", "..\\x", "a\0b", "__c", "." * 9, "𰻝🐱", "q" * 300])
def test_names_inside_are_safe_to_unpack(tmp_path, prompt):
    trace = traced(tmp_path, prompt=prompt, steps=1)
    done = export(trace, "npz", words=[(0, len(prompt))])
    arrays = json.loads(str(np.load(done.path)["about"]))["arrays"]
    assert set(np.load(done.path).files) == {"about", *arrays}
    for name, about in arrays.items():
        assert about["text"] == prompt
        assert len(parts := name.split("/")) == 3 and len(name) < 120
        assert parts[1][0] not in "._" and not set(name) & set("\\\0:")


# --- files ---


def test_a_file_that_is_there_stays(tmp_path):
    trace = traced(tmp_path)
    (tmp_path / "run.npz").write_text("years of work")
    with pytest.raises(WriteFailed, match="--overwrite"):
        export(trace, "npz")
    assert (tmp_path / "run.npz").read_text() == "years of work"
    export(trace, "npz", overwrite=True)
    assert "about" in np.load(tmp_path / "run.npz").files
    (tmp_path / "folder").mkdir()
    for to in ("npz", "zarr"):
        with pytest.raises(WriteFailed, match="folder"):
            export(trace, to, tmp_path / "folder", overwrite=True)
    (tmp_path / "run.npz").write_text("not a folder")
    with pytest.raises(WriteFailed):
        export(trace, "npz", tmp_path / "run.npz" / "x.npz")


@pytest.mark.parametrize("to", ["npz", "parquet", "zarr"])
@pytest.mark.parametrize("trouble", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_export_that_is_broken_off_leaves_nothing(tmp_path, to, trouble):
    trace = traced(tmp_path)
    (tmp_path / "old").write_text("old")

    def tick(done, of):
        if done == 2:
            raise trouble

    with pytest.raises((WriteFailed, KeyboardInterrupt), match=r"No space left|^$"):
        export(trace, to, tmp_path / "old", overwrite=True, tick=tick)
    assert (tmp_path / "old").read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_a_damaged_trace_exports_nothing(tmp_path):
    trace = traced(tmp_path)
    (trace.folder / "step_0002.safetensors").write_bytes(b"x" * 100)
    for to in ("npz", "parquet", "zarr"):
        with pytest.raises(ToushiError, match="step_0002"):
            export(open_trace(trace.folder), to)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_wrong_arguments(tmp_path):
    trace = traced(tmp_path)
    for wrong in ({"to": "csv"}, {"to": "npz", "words": []}, {"to": "npz", "words": ["猫"], "tokens": True}):
        with pytest.raises(ToushiError):
            export(trace, **wrong)
    with pytest.raises(UnknownWord):
        export(trace, "npz", words=["狗"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("toushi.probe.base.extras.find_spec", lambda name: None)
    for to, package in (("zarr", "zarr"), ("parquet", "pyarrow")):
        with pytest.raises(ToushiError, match=rf'{package}, which is not installed: pip install "toushi\[export\]"'):
            export(traced(tmp_path / to), to)


def test_the_file_lies_beside_the_folder(tmp_path, monkeypatch):
    (tmp_path / "v1.0").mkdir()
    monkeypatch.chdir(tmp_path / "v1.0")
    assert default_path(Path("."), "npz") == tmp_path / "v1.0.npz"
    assert default_path(Path("runs/v1.0"), "zarr") == Path("runs/v1.0.zarr")


def test_progress_counts_to_the_end(tmp_path):
    trace = traced(tmp_path)
    for to, count in (("npz", 7 * 2 * 3), ("parquet", 3), ("zarr", 2 * 3)):  # seven words, two grids, three steps
        ticks: list[tuple[int, int]] = []
        export(trace, to, tick=lambda *both, into=ticks: into.append(both))
        assert ticks == [(number + 1, count) for number in range(count)]


@pytest.mark.parametrize("to", ["npz", "parquet", "zarr"])
def test_memory_does_not_grow_with_the_steps(tmp_path, monkeypatch, to):
    monkeypatch.setattr("toushi.probe.trace.export.parquet_export.ROWS", 2**14)
    monkeypatch.setattr("toushi.probe.trace.export.zarr_export.BATCH", 2**18)
    sites = {"a": {"kind": "cross", "grid": [64, 64], "heads": 4}}
    peaks = {}
    for steps in (2, 12):
        trace = open_trace(Run(prompt="猫", branches=("cond",), sites=sites, steps=steps).write(tmp_path / f"{steps}"))
        export(trace, to, tokens=True, out=tmp_path / f"first{steps}")  # what is imported and cached
        tracemalloc.start()
        export(trace, to, tokens=True, out=tmp_path / f"second{steps}")
        peaks[steps] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[12] < 1.2 * peaks[2]


# Matplotlib leaves its fonts open; they may be collected during any test.
@pytest.mark.filterwarnings("error", "ignore:unclosed file .*ttf:ResourceWarning")
@pytest.mark.parametrize("keep", ["heads", "mean", "sum"])
@pytest.mark.parametrize("batch", [1, 2**26])  # bytes: step by step, or all at once
def test_plain_xarray_opens_the_zarr_folder(tmp_path, monkeypatch, keep, batch):
    monkeypatch.setattr("toushi.probe.trace.export.zarr_export.BATCH", batch)
    trace = traced(tmp_path, keep=keep, negative="a red cat")
    done = export(trace, "zarr")
    tree = xr.open_datatree(done.path)
    assert done.bytes > 1000 and done.what == "2 groups" and tree.attrs["prompt"] == trace.prompt
    for site in (name for name, about in SITES.items() if about["kind"] == "cross"):
        maps = tree[site].attention
        assert maps.dims == ("step", "branch", *["head"] * (keep == "heads"), "word", "y", "x")
        assert maps.layer.item() == site and maps.step.values.tolist() == ([2] if keep == "sum" else [0, 1, 2])
        for branch in ("cond", "uncond"):
            for word, label in zip(trace.words(branch), word_labels(trace.words(branch), trace.words(branch))):
                expected = trace.attention(word, branch=branch, sites=site, grid="native")[site]
                found = maps.sel(branch=branch, word=label)
                np.testing.assert_array_equal(found, expected)
                for name in ("time", "y", "x"):
                    np.testing.assert_array_equal(found[name], expected[name])
                assert (found.start.item(), found.end.item()) == word.span
    tree.close()
    export(trace, "zarr", tokens=True, overwrite=True)
    lazy = xr.open_datatree(trace.folder, engine=ToushiBackend)
    xr.testing.assert_equal(xr.open_datatree(done.path).load(), lazy.load())


def test_only_an_earlier_export_is_replaced_by_zarr(tmp_path):
    trace = traced(tmp_path)
    path = export(trace, "zarr").path
    with pytest.raises(WriteFailed, match="there already"):
        export(trace, "zarr")
    export(trace, "zarr", words=["猫"], overwrite=True)
    assert xr.open_datatree(path)[next(iter(SITES))].word.values.tolist() == ["猫"]
    (path / ".zattrs").write_text('{"format": "of somebody else"}')
    with pytest.raises(WriteFailed, match="did not write"):
        export(trace, "zarr", overwrite=True)
    assert (path / ".zattrs").read_text() == '{"format": "of somebody else"}'
    (tmp_path / "file.zarr").write_text("years of work")
    with pytest.raises(WriteFailed, match="there already"):
        export(trace, "zarr", tmp_path / "file.zarr")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file.zarr", "run", "run.zarr"]


def test_it_needs_no_torch(tmp_path):
    trace = traced(tmp_path)
    code = (
        "import sys; from toushi.probe.trace.export.export_trace import export; from toushi.probe.trace.open import open_trace\n"
        f"for to in ('npz', 'parquet'): export(open_trace({str(trace.folder)!r}), to)\n"
        "print('torch' in sys.modules)"
    )
    told = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=told, encoding="utf-8")
    assert done.stdout.strip() == "False", done.stderr
