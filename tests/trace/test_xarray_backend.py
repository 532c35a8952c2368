"""xarray opens a trace as a tree: the values of the reader, read when they are asked for, nothing hostile let in."""

import json
import os
import shutil
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from tests.trace.runs import PROMPT, SITES, TOKENIZER, Run
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import UnknownWord, Word
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.encoder_trace import EncoderTraceWriter
from toushi.probe.trace.export.export_trace import export
from toushi.probe.trace.open import open_encoder_trace, open_trace
from toushi.probe.trace.text_encoding import TextEncoding
from toushi.probe.trace.trace_errors import DamagedTrace, NoTrace, NotRecorded
from toushi.probe.trace.writer import TraceWriter
from toushi.probe.trace.xarray_backend import ToushiBackend

ROOT = Path(__file__).parents[2]
FINE, COARSE = "unet.down.0.cross_attention", "unet.middle.cross_attention"
FOCUS = "unet.middle.self_attention"
KEEPS = ("heads", "mean", "sum")


def open_tree(folder, **options) -> xr.DataTree:
    return xr.open_datatree(folder, engine=ToushiBackend, **options)


def mapped_files(folder: Path) -> set[str]:
    """Files of this trace that this process has open: safetensors maps them into memory."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    paths = [Path(line.split(maxsplit=5)[-1]) for line in lines if line.endswith(".safetensors")]
    return {path.name for path in paths if path.parent == folder.resolve()}


# --- the values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", KEEPS)
def test_the_maps_are_those_of_the_reader(tmp_path, keep):
    folder = Run(keep=keep, rest=True, negative="a red cat").write(tmp_path / "run")
    trace, tree = open_trace(folder), open_tree(folder)
    assert set(tree.children) == {FINE, COARSE}
    for branch in ("cond", "uncond"):
        for site, expected in trace.attention(branch=branch, grid="native").items():
            maps = tree[site].attention.sel(branch=branch, token=expected.token)
            heads = ["head"] if keep == "heads" else []
            assert maps.dims == ("step", *heads, "token", "y", "x") and maps.dtype == np.float32
            np.testing.assert_array_equal(maps, expected)
            for name in ("step", "time", "token", "text", "kind", "y", "x", *heads):
                np.testing.assert_array_equal(maps[name], expected[name])
            assert maps.layer.item() == site and maps.text.values.tolist() == [t.text for t in trace.places(branch)]
            total = maps.sum("token") + tree[site].rest.sel(branch=branch)
            np.testing.assert_allclose(total, 1, atol=1e-3)


def test_a_column_of_one_branch_is_empty_in_the_other(tmp_path):
    folder = Run(negative="a red cat on the left").write(tmp_path / "run")
    trace, tree = open_trace(folder), open_tree(folder)
    maps = tree[FINE].attention
    for branch in ("cond", "uncond"):
        own = [token.column for token in trace.places(branch)]
        others = sorted(set(maps.token.values.tolist()) - set(own))
        assert np.isfinite(maps.sel(branch=branch, token=own)).all()
        assert np.isnan(maps.sel(branch=branch, token=others)).all()
        assert (maps.text.sel(branch=branch, token=others) == "").all()
    assert len(trace.places("cond")) != len(trace.places("uncond"))


@pytest.mark.parametrize("keep", KEEPS)
def test_words_take_the_place_of_tokens(tmp_path, keep):
    folder = Run(prompt="猫和猫，月亮", negative="a red cat", keep=keep).write(tmp_path / "run")
    trace = open_trace(folder)
    tree = open_tree(folder, words=True)
    assert tree[FINE].word.values.tolist() == ["猫#1", "和", "猫#2", "月亮", "a", "red", "cat"]
    for site in (FINE, COARSE):
        for branch, words in (("cond", ["猫#1", "猫#2", "月亮"]), ("uncond", ["red"])):
            for word in words:
                maps = tree[site].attention.sel(branch=branch, word=word)
                expected = trace.attention(word, branch=branch, sites=site, grid="native")[site]
                np.testing.assert_array_equal(maps, expected)
                assert (maps.start.item(), maps.end.item()) == trace.span(word, branch)
        assert np.isnan(tree[site].attention.sel(branch="uncond", word="和")).all()
    chosen = open_tree(folder, words=["猫#2", (4, 6)])
    assert chosen[FINE].word.values.tolist() == ["猫#2", "月亮"] and chosen[FINE].branch.values.tolist() == ["cond"]
    with pytest.raises(UnknownWord):
        open_tree(folder, words=["狗"])
    with pytest.raises(ToushiError, match="At least one word"):
        open_tree(folder, words=[])


def test_any_selection_is_the_selection_of_the_values(tmp_path):
    """Slices, lists, single places and pointwise selection, in each axis and together."""
    folder = Run(negative="a red cat").write(tmp_path / "run")
    tree = open_tree(folder)
    whole = open_tree(folder)[FINE].attention.load()
    for selection in (
        {"step": 1},
        {"step": -1, "token": -1, "head": -1},
        {"step": [2, 0], "token": [5, 3, 3], "y": slice(6, 1, -2)},
        {"branch": 1, "head": slice(1, None), "x": [3, 0]},
        {"token": slice(None, None, -1)},
        {"token": []},
        {"step": xr.DataArray([0, 1, 2], dims="point"), "y": xr.DataArray([7, 0, 3], dims="point")},
    ):
        lazy = open_tree(folder)[FINE].attention.isel(selection)
        xr.testing.assert_identical(lazy.load(), whole.isel(selection))
    np.testing.assert_array_equal(
        tree[FINE].attention.sel(step=2, y=3.2, x=0, method="nearest").values, whole.isel(step=2, y=3, x=0).values
    )


def test_one_place_has_the_same_coordinates_on_every_grid(tmp_path):
    """y and x count cells of the finest grid, so a coarse cell lies between the fine ones that it covers."""
    run = Run(steps=1)
    folder = run.write(tmp_path / "run")
    trace, tree = open_trace(folder), open_tree(folder)
    assert tree[FINE].y.values.tolist() == list(range(8)) and tree[COARSE].y.values.tolist() == [0.5, 2.5, 4.5, 6.5]
    assert tree[COARSE].x.values.tolist() == [0.5, 2.5]
    for maps in (trace.heat_map("猫"), trace.attention("猫"), trace.attention(sites=FINE)):
        assert maps.y.values.tolist() == list(range(8)) and maps.x.values.tolist() == list(range(4))
    coarse = trace.heat_map("猫", sites=COARSE)
    assert coarse.y.values.tolist() == [0.5, 2.5, 4.5, 6.5]
    np.testing.assert_array_equal(coarse.sel(y=6, x=3, method="nearest"), coarse.values[3, 1])
    latent = trace.latent(0)  # 8 x 4 as the finest grid
    assert latent is not None and latent.y.values.tolist() == list(range(8))


def test_self_attention_has_keys(tmp_path):
    sites = {**SITES, FOCUS: {"kind": "self", "grid": [4, 2], "heads": 2}}
    run, random = Run(sites=sites, branches=("cond",), steps=2), np.random.default_rng(0)
    maps = random.random((2, 2, 8, 4, 2)).astype(np.float32)
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        for step in range(2):
            writer.write_step(step, {f"{FOCUS}/cond": maps[step]})
    array = open_tree(tmp_path / "run")[FOCUS].attention
    assert array.dims == ("step", "branch", "head", "key", "y", "x")
    np.testing.assert_array_equal(array.sel(branch="cond"), maps)
    np.testing.assert_array_equal(array.sel(branch="cond").isel(key=3), maps[:, :, 3])
    assert FOCUS not in open_tree(tmp_path / "run", words=True).children


def test_the_encoder_of_a_picture(tmp_path):
    run = Run(negative="a red cat")
    lengths = {"cond": len(TOKENIZER.encode(PROMPT).tokens), "uncond": len(TOKENIZER.encode("a red cat").tokens)}
    random, tensors = np.random.default_rng(0), {}
    for branch, length in lengths.items():
        for layer in range(4):
            tensors[layout.state_key(layer, branch)] = random.random((length, 6)).astype(np.float32)
        for layer in (0, 2):
            tensors[layout.encoder_attention_key(layer, branch)] = random.random((2, length, length)).astype(np.float16)
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        writer.write_encoder(tensors)
    trace, encoder = open_trace(tmp_path / "run"), open_tree(tmp_path / "run")["encoder"]
    assert encoder.states.dims == ("branch", "layer", "token", "feature")
    assert encoder.attention.dims == ("branch", "layer", "head", "query", "token")
    assert encoder.layer.values.tolist() == [0, 1, 2, 3] and encoder.layer_index.values.tolist() == [-1, 0, 1, 2]
    for branch, length in lengths.items():
        own = encoder.sel(branch=branch).isel(token=slice(length), query=slice(length))
        np.testing.assert_array_equal(own.states, trace.encoder_states(branch))
        np.testing.assert_array_equal(own.text, trace.encoder_states(branch).text)
        for index in (0, 2):
            part = own.attention.isel(layer=encoder.layer_index.values.tolist().index(index))
            np.testing.assert_array_equal(part, trace.encoder_attention(index, branch))
        assert np.isnan(own.attention.sel(layer=[0, 2])).all()
    assert np.isnan(encoder.states.sel(branch="uncond").isel(token=slice(lengths["uncond"], None))).all()


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """A trace of two texts, the second with a layer whose attention could not be read."""
    folder, random = tmp_path_factory.mktemp("texts") / "run", np.random.default_rng(0)
    encodings = []
    for text, blind in (("猫和猫", {}), ("左边是猫", {2: "uses a kernel of its own"})):
        tokens = tuple(TOKENIZER.encode(text).tokens)
        words = tuple(Word(text[a:b], a, b) for a, b in ([(0, 1), (1, 2), (2, 3)] if not blind else [(0, 2), (3, 4)]))
        n = len(tokens)
        attention = random.random((2, 4, n, n)).astype(np.float32)
        encodings.append(
            TextEncoding(
                text, tokens, words, (), (),
                xr.DataArray(random.random((3, n, 5)).astype(np.float32), dims=("layer", "token", "feature")),
                xr.DataArray(random.random((n, 5)).astype(np.float32), dims=("token", "feature")),
                blind,
                None if blind else xr.DataArray(attention, dims=("layer", "head", "query", "token")),
            )
        )  # fmt: skip
    about = {"model": {"name": "made-up"}, "count": 2, "layers": 2, "heads": 4, "width": 5}
    with EncoderTraceWriter(folder, about) as writer:
        writer.write(encodings[:1])
        writer.write(encodings[1:])
    return folder


def test_a_trace_of_texts_has_a_node_for_each(texts):
    trace, tree = open_encoder_trace(texts), open_tree(texts)
    assert list(tree.children) == ["0", "1"] and tree["0"].attrs["text"] == "猫和猫"
    for number in (0, 1):
        node, encoding = tree[str(number)], trace.encoding(number)
        np.testing.assert_array_equal(node.states, encoding.states)
        np.testing.assert_array_equal(node.final, encoding.final)
        np.testing.assert_array_equal(node.text, encoding.states.text)
        assert node.layer.values.tolist() == [0, 1, 2] and node.layer_index.values.tolist() == [-1, 0, 1]
    np.testing.assert_array_equal(tree["0"].attention.sel(layer=[1, 2]), trace.attention(0))
    assert np.isnan(tree["0"].attention.sel(layer=0)).all()
    assert "attention" not in tree["1"].data_vars and "layer 2 uses" in tree["1"].attrs["blind"]


def test_a_trace_of_texts_by_word(texts):
    trace = open_encoder_trace(texts)
    tree = open_tree(texts, words=True)
    for number in (0, 1):
        expected = trace.encoding(number).word_states()
        np.testing.assert_array_equal(tree[str(number)].states, expected)
        assert tree[str(number)].word.values.tolist() == expected.word.values.tolist()
    attention = tree["0"].attention.sel(layer=[1, 2])
    np.testing.assert_array_equal(attention, trace.encoding(0).word_attention())
    assert attention.key.values.tolist() == ["猫#1", "和", "猫#2", "(other text)", "(special)"]
    assert list(open_tree(texts, words=["左边"]).children) == ["1"]


@pytest.mark.parametrize("tokens", [True, False])
def test_a_trace_of_texts_is_exported_as_its_tree(tmp_path, texts, tokens):
    pytest.importorskip("zarr")
    done = export(open_encoder_trace(texts), "zarr", tmp_path / "texts.zarr", tokens=tokens)
    xr.testing.assert_equal(xr.open_datatree(done.path).load(), open_tree(texts, words=not tokens).load())


# --- what is read ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the list of mapped files is Linux's")
def test_one_step_reads_one_file(tmp_path):
    folder = Run(steps=5).write(tmp_path / "run")
    tree = open_tree(folder)
    assert repr(tree) and tree[FINE].time.values.size == 5 and mapped_files(folder) == set()
    tree[FINE].attention.isel(step=3, head=0).load()
    assert mapped_files(folder) == {"step_0003.safetensors"}


def test_steps_that_are_not_asked_for_need_not_be_there(tmp_path):
    folder = Run(steps=4).write(tmp_path / "run")
    expected = open_trace(folder).attention(steps=2, sites=FINE, grid="native")[FINE]
    for step in (0, 1, 3):
        (folder / f"step_000{step}.safetensors").unlink()
    tree = open_tree(folder)
    np.testing.assert_array_equal(tree[FINE].attention.sel(step=2, branch="cond"), expected.isel(step=0))
    with pytest.raises(DamagedTrace, match="step_0001"):
        tree[FINE].attention.sel(step=1).load()


def test_one_token_reads_one_token(tmp_path, monkeypatch):
    from toushi.probe.trace.safetensors_reader import SafetensorsFile

    folder = Run().write(tmp_path / "run")
    real, shapes = SafetensorsFile.read, []
    monkeypatch.setattr(SafetensorsFile, "read", lambda *a: shapes.append(real(*a).shape) or real(*a))
    open_tree(folder)[FINE].attention.isel(step=[0, 2], branch=0, token=4).load()
    assert shapes == [(2, 1, 8, 4)] * 2


def test_a_very_large_answer_is_refused(tmp_path, monkeypatch):
    tree = open_tree(Run().write(tmp_path / "run"))
    monkeypatch.setattr("toushi.probe.trace.selection.MAX_BYTES", 1000)
    with pytest.raises(ToushiError, match="fewer steps"):
        tree[FINE].attention.load()
    assert tree[FINE].attention.isel(step=0, branch=0, token=0).load().shape == (2, 8, 4)


def test_a_run_that_was_cut_has_the_steps_that_are_finished(tmp_path):
    folder = Run(steps=6).write(tmp_path / "run", stop_after=2)
    lines = (folder / layout.STEPS).read_bytes()
    (folder / layout.STEPS).write_bytes(lines + b'{"step": 2, "file": "step_00')
    (folder / "step_0002.safetensors.tmp").write_bytes(b"half")
    tree = open_tree(folder)
    assert tree[FINE].step.values.tolist() == [0, 1] and np.isfinite(tree[FINE].attention).any()
    (folder / layout.STEPS).write_bytes(b"")
    assert open_tree(folder)[FINE].attention.load().shape[0] == 0


def test_a_branch_that_ended_is_nan(tmp_path):
    run = Run(negative="狗")
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        for step in range(3):
            writer.write_step(step, {k: v for k, v in run.tensors(step).items() if step < 2 or "uncond" not in k})
    maps = open_tree(tmp_path / "run")[FINE].attention.sel(branch="uncond").isel(token=0)
    assert np.isfinite(maps.sel(step=[0, 1])).all() and np.isnan(maps.sel(step=2)).all()


# --- what is refused ------------------------------------------------------------------------------------


def test_what_is_not_there(tmp_path):
    folder = Run().write(tmp_path / "run")
    tree = open_tree(folder)
    with pytest.raises(KeyError):
        tree["unet.up.9"]
    with pytest.raises(KeyError):
        tree[FINE].attention.sel(step=7)
    with pytest.raises(NotRecorded, match=rf"'unet.down.1'. Nearest: {FINE}"):
        xr.open_dataset(folder, engine=ToushiBackend, group="unet.down.1")
    xr.testing.assert_identical(
        xr.open_dataset(folder, engine=ToushiBackend, group=FINE).load(), tree[FINE].to_dataset().load()
    )
    dropped = xr.open_dataset(folder, engine=ToushiBackend, group=FINE, drop_variables="rest")
    assert list(dropped.data_vars) == ["attention"]
    for nothing in (tmp_path, tmp_path / "none"):
        with pytest.raises(NoTrace):
            open_tree(nothing)


@pytest.mark.parametrize("name", [".", "..", "encoder"])
def test_no_site_takes_the_name_of_another_node(tmp_path, name):
    folder = Run().write(tmp_path / "run")
    manifest = json.loads((folder / layout.MANIFEST).read_text(encoding="utf-8"))
    manifest["sites"][name] = manifest["sites"].pop(FINE)
    (folder / layout.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(DamagedTrace, match="cannot be called"):
        open_tree(folder)


def test_a_grid_that_no_file_has_is_refused_when_it_is_read(tmp_path):
    folder = Run().write(tmp_path / "run")
    manifest = json.loads((folder / layout.MANIFEST).read_text(encoding="utf-8"))
    for grid in ([8191, 4], [65_536, 65_536]):
        manifest["sites"][FINE]["grid"] = grid
        (folder / layout.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        tree = open_tree(folder)
        with pytest.raises(ToushiError):
            tree[FINE].attention.load()
        with pytest.raises(DamagedTrace, match="must be"):
            tree[FINE].attention.isel(step=0, branch=0, head=0, token=0, y=0).load()


def test_heads_that_change_between_steps_are_damage(tmp_path):
    sites = {FINE: {"kind": "cross", "grid": [8, 4], "heads": None}}
    with TraceWriter(tmp_path / "run", Run(sites=sites).manifest()) as writer:
        for step, heads in enumerate((2, 3)):
            maps = Run(sites={FINE: {**sites[FINE], "heads": heads}}).maps(step)
            writer.write_step(step, maps)
    tree = open_tree(tmp_path / "run")
    assert tree[FINE].sizes["head"] == 2
    with pytest.raises(DamagedTrace, match="heads"):
        tree[FINE].attention.sel(step=1).load()


# --- the door -------------------------------------------------------------------------------------------


def test_it_knows_its_traces(tmp_path):
    folder, backend = Run().write(tmp_path / "run"), ToushiBackend()
    assert backend.guess_can_open(folder) and backend.guess_can_open(str(folder))
    for other in (tmp_path, tmp_path / "none", folder / layout.MANIFEST, b"bytes", 7):
        assert not backend.guess_can_open(other)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / layout.MANIFEST)  # waiting for it would last for ever
    assert not backend.guess_can_open(tmp_path / "run")


def test_the_engine_is_registered():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, value),) = project["entry-points"]["xarray.backends"].items()
    assert name == "toushi" and EntryPoint(name, value, "xarray.backends").load() is ToushiBackend


# Matplotlib leaves its fonts open; they may be collected during any test.
@pytest.mark.filterwarnings("error", "ignore:unclosed file .*ttf:ResourceWarning")
def test_a_tree_can_be_written_as_zarr(tmp_path):
    pytest.importorskip("zarr")
    folder = Run(rest=True, negative="a red cat").write(tmp_path / "run")
    open_tree(folder).to_zarr(tmp_path / "run.zarr", zarr_format=2)
    xr.testing.assert_equal(xr.open_datatree(tmp_path / "run.zarr").load(), open_tree(folder).load())


@pytest.mark.parametrize("engine", ["scipy", "h5netcdf", "netCDF4"])
def test_a_node_can_be_written_as_netcdf(tmp_path, engine):
    pytest.importorskip(engine)
    folder = Run(rest=True, negative="a red cat").write(tmp_path / "run")
    node = xr.open_dataset(folder, engine=ToushiBackend, group=FINE)
    node.to_netcdf(tmp_path / "run.nc", engine=engine.lower())
    xr.testing.assert_equal(xr.open_dataset(tmp_path / "run.nc", engine=engine.lower()).load(), node.load())
