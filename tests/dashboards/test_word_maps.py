"""The numbers that travel to the browser are the numbers of the trace."""

import json

import made_trace
import numpy as np
import pytest

from toushi.dashboards.heat_map import payload, word_maps
from toushi.dashboards.heat_map.matrices import read_matrices
from toushi.probe.base.errors import ToushiError
from toushi.probe.trace.open import open_trace

HALF = {"rtol": 2**-10, "atol": 1e-7}  # what storing as float16 may change


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    return open_trace(made_trace.write(tmp_path_factory.mktemp("runs") / "cat"))


def unit_of(shown, label):
    return [unit.label for unit in shown.units].index(label)


def unpack(block: bytes):
    """What `unpack` in base.js does."""
    length = int.from_bytes(block[:4], "little")
    header = json.loads(block[4 : 4 + length])
    arrays = {
        name: np.frombuffer(block, about["dtype"], about["count"], about["offset"])
        for name, about in header["arrays"].items()
    }
    return header, arrays


def test_the_first_map_is_the_heat_map(trace):
    shown = word_maps.read_word_maps(trace, "cond")
    for word in ("猫", "月亮", "是#2"):
        label, _, number = word.partition("#")
        unit = next(i for i, u in enumerate(shown.units) if u.label == label and str(u.occurrence or "") == number)
        np.testing.assert_allclose(shown.layers[0].maps[0, 0, unit], trace.heat_map(word), **HALF)
        for slot, step in enumerate(shown.steps, 1):
            np.testing.assert_allclose(shown.layers[0].maps[slot, 0, unit], trace.heat_map(word, steps=step), **HALF)


def test_single_layers_and_heads_are_the_trace_s(trace):
    shown = word_maps.read_word_maps(trace, "cond")
    unit = unit_of(shown, "猫")
    for layer in shown.layers[1:]:
        kept = trace.attention("猫", sites=layer.name, grid="native")[layer.name]
        np.testing.assert_allclose(layer.maps[1:, 1:, unit], kept, **HALF)
        np.testing.assert_allclose(layer.maps[1:, 0, unit], kept.mean("head"), **HALF)
        np.testing.assert_allclose(layer.maps[0, 1:, unit], kept.mean("step"), **HALF)


@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_the_units_share_out_everything(trace, branch):
    for layer in word_maps.read_word_maps(trace, branch).layers:
        np.testing.assert_allclose(layer.maps.astype(np.float32).sum(2), 1, atol=5e-3)
        np.testing.assert_allclose(layer.shares.sum(-1), 1, atol=2e-3)


@pytest.mark.parametrize("keep", ["mean", "sum"])
def test_less_can_have_been_kept(tmp_path, keep):
    trace = open_trace(made_trace.write(tmp_path / "run", keep=keep))
    shown = word_maps.read_word_maps(trace, "cond")
    assert all(layer.heads == 0 for layer in shown.layers)
    assert len(shown.steps) == (0 if keep == "sum" else 6)
    np.testing.assert_allclose(shown.layers[0].maps[0, 0, unit_of(shown, "猫")], trace.heat_map("猫"), **HALF)


def test_a_rule_of_the_model_s_card_comes_first(tmp_path):
    rule = {"sites": ["unet.up.*"], "rule": "mean of the sites on the way up"}
    trace = open_trace(made_trace.write(tmp_path / "run", heat_map=rule))
    shown = word_maps.read_word_maps(trace, "cond")
    assert [layer.name for layer in shown.layers[:2]] == ["", "*"]
    unit = unit_of(shown, "猫")
    np.testing.assert_allclose(shown.layers[0].maps[0, 0, unit], trace.heat_map("猫"), **HALF)
    plain = trace.heat_map("猫", sites="unet.*")
    np.testing.assert_allclose(shown.layers[1].maps[0, 0, unit], plain, **HALF)
    header, _ = unpack(payload.picture_block(trace, shown, "cond", "en"))
    assert [layer["label"] for layer in header["layers"][:2]] == ["default", "all"]


def test_a_rule_that_names_sites_which_were_not_kept_is_not_the_trace_s(tmp_path):
    rule = {"sites": ["unet.up.*", "unet.deep.*"], "rule": "mean of the sites on the way up"}
    trace = open_trace(made_trace.write(tmp_path / "run", heat_map=rule))
    shown = word_maps.read_word_maps(trace, "cond")
    np.testing.assert_allclose(shown.layers[0].maps[0, 0, unit_of(shown, "猫")], trace.heat_map("猫"), **HALF)
    header, _ = unpack(payload.picture_block(trace, shown, "cond", "en"))
    assert [layer["label"] for layer in header["layers"][:2]] == ["all", "down.0"]


@pytest.mark.parametrize("heat_map", [None, {"sites": ["unet.up.*"], "rule": "the way up"}])
@pytest.mark.parametrize("sites", [["unet.up.1.cross_attention"], list(made_trace.CROSS)])
def test_the_means_of_layers_count_in_the_budget(tmp_path, monkeypatch, heat_map, sites):
    kept = {name: made_trace.SITES[name] for name in sites}
    trace = open_trace(made_trace.write(tmp_path / "run", keep="mean", sites=kept, heat_map=heat_map))
    whole = sum(layer.maps.nbytes for layer in word_maps.read_word_maps(trace, "cond").layers)
    monkeypatch.setattr(word_maps, "BUDGET", whole)
    assert not word_maps.read_word_maps(trace, "cond").steps_left_out
    monkeypatch.setattr(word_maps, "BUDGET", whole - 1)
    shown = word_maps.read_word_maps(trace, "cond")
    assert shown.steps_left_out and not shown.heads_left_out, "no single head was kept"
    assert sum(layer.maps.nbytes for layer in shown.layers) < whole


def test_a_large_trace_keeps_to_the_budget(trace, monkeypatch):
    whole = word_maps.read_word_maps(trace, "cond")
    monkeypatch.setattr(word_maps, "BUDGET", 80_000)
    shown = word_maps.read_word_maps(trace, "cond")
    assert shown.heads_left_out and shown.steps_left_out
    assert set(shown.steps) < set(whole.steps) and shown.steps[0] == 0 and shown.steps[-1] == whole.steps[-1]
    assert sum(layer.maps.nbytes for layer in shown.layers) <= 80_000
    monkeypatch.setattr(word_maps, "BUDGET", 10)
    with pytest.raises(ToushiError, match="Record fewer words or sites"):
        word_maps.read_word_maps(trace, "cond")


def test_the_mean_is_over_all_steps_even_if_some_are_not_shown(trace, monkeypatch):
    monkeypatch.setattr(word_maps, "BUDGET", 80_000)
    shown = word_maps.read_word_maps(trace, "cond")
    np.testing.assert_allclose(shown.layers[0].maps[0, 0, unit_of(shown, "猫")], trace.heat_map("猫"), **HALF)


def test_words_that_were_not_kept_are_named(tmp_path):
    tokens = made_trace.TOKENIZER.encode(made_trace.PROMPT).tokens
    cat = [token.column for token in tokens if token.text == "猫"]
    trace = open_trace(made_trace.write(tmp_path / "run", only=cat))
    shown = word_maps.read_word_maps(trace, "cond")
    assert [unit.label for unit in shown.units] == ["猫"]
    assert "月亮" in [word.text for word in shown.lost]


def test_an_incomplete_trace_shows_its_finished_steps(tmp_path):
    trace = open_trace(made_trace.write(tmp_path / "run", stop_after=4))
    assert word_maps.read_word_maps(trace, "cond").steps == (0, 1, 2, 3)
    made_trace.write(tmp_path / "none", stop_after=0)
    with pytest.raises(ToushiError, match="finished steps: 0"):
        word_maps.read_word_maps(open_trace(tmp_path / "none"), "cond")


def test_the_block_holds_what_it_says(trace):
    shown = word_maps.read_word_maps(trace, "cond")
    header, arrays = unpack(payload.picture_block(trace, shown, "cond", "zh"))
    assert header["prompt"] == made_trace.PROMPT and header["size"] == [64, 64]
    for i, layer in enumerate(shown.layers):
        np.testing.assert_array_equal(arrays[f"maps{i}"], layer.maps.ravel())
        np.testing.assert_array_equal(arrays[f"shares{i}"], layer.shares.ravel())
    assert all(about["offset"] % 4 == 0 for about in header["arrays"].values())
    assert arrays["image"][:4].tobytes() == b"\x89PNG"
    assert header["units"][header["first"][0]]["kind"] == "word"


def test_the_text_block_has_the_encoder_s_attention(trace):
    header, arrays = unpack(payload.encoder_block(trace, read_matrices(trace, "cond"), "cond", "en"))
    n = len(header["tokens"])
    assert len(header["layers"]) == 12 and "".join(word["text"] for word in header["words"]) == "左边是猫右边是月亮夜晚"
    kept = trace.encoder_attention(3)
    heads = arrays["attention3"].reshape(-1, n, n)
    np.testing.assert_allclose(heads[1:], kept, **HALF)
    np.testing.assert_allclose(heads[0], kept.mean("head"), **HALF)
    first, last = header["tokens"][0], header["tokens"][-1]
    assert first["before"] and not last["before"]


def test_of_a_large_encoder_only_the_means_travel(trace, monkeypatch):
    whole = read_matrices(trace, "cond")
    n = len(whole.tokens)
    assert not whole.heads_left_out
    monkeypatch.setattr(word_maps, "BUDGET", sum(one.nbytes for one in whole.layers.values()) - 1)
    few = read_matrices(trace, "cond")
    assert few.heads_left_out and {one.shape for one in few.layers.values()} == {(1, n, n)}
    for number, mean in few.layers.items():
        np.testing.assert_array_equal(mean[0], whole.layers[number][0])
    assert all(layer["heads"] == 0 for layer in unpack(payload.encoder_block(trace, few, "cond", "en"))[0]["layers"])


def test_single_layers_of_the_encoder_keep_their_numbers(tmp_path):
    sites = {f"encoder.layers.{i}.attention": {"kind": "encoder", "grid": None, "heads": 4} for i in (5, 11)}
    trace = open_trace(made_trace.write(tmp_path / "run", steps=1, sites=made_trace.CROSS | sites))
    shown = read_matrices(trace, "cond")
    header, arrays = unpack(payload.encoder_block(trace, shown, "cond", "en"))
    assert [(layer["label"], layer["title"]) for layer in header["layers"]] == [("6", "layer 6"), ("12", "layer 12")]
    kept = trace.encoder_attention(11)
    np.testing.assert_allclose(arrays["attention1"].reshape(-1, *kept.shape[1:])[1:], kept, **HALF)


def test_short_names():
    assert word_maps.short_names(["unet.down.0.cross", "unet.middle.cross"]) == {
        "unet.down.0.cross": "down.0", "unet.middle.cross": "middle",
    }  # fmt: skip
    assert word_maps.short_names(["a.b"]) == {"a.b": "b"} and word_maps.short_names([]) == {}
