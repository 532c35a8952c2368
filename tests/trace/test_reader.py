import itertools
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.trace.runs import PROMPT, SITES, TOKENIZER, Run
from toushi.probe.analysis.maps import resample
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import AmbiguousWord, UnknownWord, Word, segment, token_shares
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.trace_errors import NewerTrace, NoTrace, NotRecorded
from toushi.probe.trace.writer import TraceWriter

ROOT = Path(__file__).parents[2]
FINE, COARSE = "unet.down.0.cross_attention", "unet.middle.cross_attention"
KEEPS = ("heads", "mean", "sum")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Run(rest=True).write(tmp_path_factory.mktemp("trace") / "run")


@pytest.fixture
def trace(folder):
    return open_trace(folder)


# --- identity -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_save_and_load_is_identity(tmp_path, dtype):
    run = Run()
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        for step in range(run.steps):
            writer.write_step(step, run.maps(step, dtype))
    trace = open_trace(tmp_path / "run")
    for branch in run.branches:
        native = trace.attention(branch=branch, grid="native")
        for site, array in native.items():
            expected = np.stack([run.maps(step, dtype)[f"{site}/{branch}"] for step in range(run.steps)])
            np.testing.assert_array_equal(array.values, expected.astype(np.float32))
            assert array.dims == ("step", "head", "token", "y", "x") and array.dtype == np.float32


def test_the_manifest_comes_back(trace):
    run, encoding = Run(), TOKENIZER.encode(PROMPT)
    assert trace.prompt == PROMPT and trace.complete and trace.branches == ["cond", "uncond"]
    assert trace.tokens() == list(encoding.tokens) and trace.words() == segment(PROMPT)
    assert {name: site.as_dict() for name, site in trace.sites.items()} == run.sites and trace.steps == [0, 1, 2]
    assert trace.times == pytest.approx([1, 2 / 3, 1 / 3])
    assert trace.verify() == []


def test_latent_preview_and_image(tmp_path):
    run = Run()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8))
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        writer.write_step(0, run.tensors(0))
        writer.write_step(1, {})
        writer.write_image(picture)
    trace = open_trace(tmp_path / "run")
    np.testing.assert_array_equal(trace.image(), np.asarray(picture))
    np.testing.assert_array_equal(trace.preview(0), run.tensors(0)["preview"])
    np.testing.assert_array_equal(trace.latent(0).values, run.tensors(0)["latent"])
    assert trace.latent(0).dims == ("channel", "y", "x")
    assert trace.preview(1) is None and trace.latent(1) is None
    assert any("1 steps are missing" in problem for problem in trace.verify())


def test_the_encoder(tmp_path):
    run = Run(branches=("cond",))
    length, rng = len(TOKENIZER.encode(PROMPT).tokens), np.random.default_rng(0)
    states = rng.standard_normal((13, length, 6)).astype(np.float32)
    attention = rng.random((12, 2, length, length)).astype(np.float32)
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        tensors = {layout.state_key(i, "cond"): state for i, state in enumerate(states)}
        tensors |= {layout.encoder_attention_key(i, "cond"): one for i, one in enumerate(attention)}
        writer.write_encoder(tensors)
    trace = open_trace(tmp_path / "run")
    np.testing.assert_array_equal(trace.encoder_states().values, states)
    np.testing.assert_array_equal(trace.encoder_attention(11).values, attention[11])
    assert trace.encoder_states().layer.values.tolist() == list(range(13))
    assert trace.encoder_states().text.values[1] == "左边"
    with pytest.raises(NotRecorded, match="layer 12"):
        trace.encoder_attention(12)
    with pytest.raises(NotRecorded):
        trace.encoder_states("uncond")


def test_what_was_not_kept(trace):
    assert trace.image() is None
    with pytest.raises(NotRecorded, match="encoder"):
        trace.encoder_states()


# --- the shape of answers -------------------------------------------------------------------------------


def test_finest_grid(trace):
    everything = trace.attention()
    assert everything.dims == ("step", "layer", "head", "token", "y", "x")
    assert everything.shape == (3, 2, 4, len(trace.tokens()), 8, 4)
    assert everything.layer.values.tolist() == [FINE, COARSE]
    assert everything.text.values.tolist() == [token.text for token in trace.tokens()]
    fine = everything.sel(layer=FINE)
    assert np.isnan(fine[:, 2:]).all() and np.isfinite(fine[:, :2]).all()
    native = trace.attention(grid="native")
    np.testing.assert_array_equal(fine[:, :2].values, native[FINE].values)
    np.testing.assert_allclose(everything.sel(layer=COARSE), resample(native[COARSE].values, (8, 4)))
    assert trace.attention("猫").dims == ("step", "layer", "head", "y", "x")


def test_mean_and_sum_have_no_heads(tmp_path):
    for keep in ("mean", "sum"):
        trace = open_trace(Run(keep=keep).write(tmp_path / keep))
        assert trace.attention("猫").dims == ("step", "layer", "y", "x")
        assert trace.attention(grid="native")[FINE].dims == ("step", "token", "y", "x")
    assert trace.attention("猫").step.values.tolist() == [2]
    assert trace.attention("猫").attrs["steps"] == [0, 1, 2]
    assert trace.attention("猫", steps=[0, 1, 2]).shape == trace.attention("猫", steps=slice(None)).shape
    with pytest.raises(NotRecorded, match="only the sum"):
        trace.attention("猫", steps=1)


def test_all_policies_tell_the_same_story(tmp_path):
    maps = [open_trace(Run(keep=keep).write(tmp_path / keep)).heat_map("月亮") for keep in KEEPS]
    np.testing.assert_allclose(maps[0], maps[1], atol=3e-4)
    np.testing.assert_allclose(maps[1], maps[2], atol=3e-4)


def test_steps_by_index_list_and_slice(trace):
    for steps, expected in [(1, [1]), (-1, [2]), ([2, 0], [2, 0]), (slice(1, None), [1, 2]), (np.arange(2), [0, 1])]:
        array = trace.attention("猫", steps=steps)
        assert array.step.values.tolist() == expected
        whole = trace.attention("猫")
        np.testing.assert_array_equal(array.values, whole.sel(step=expected).values)
    np.testing.assert_array_equal(trace.attention("猫", steps="1:"), trace.attention("猫", steps=slice(1, None)))
    for steps in (3, [0, 9], [], "all", "::0", 0.5, slice(9, 12)):
        with pytest.raises(ToushiError):
            trace.attention("猫", steps=steps)


def test_sites_by_glob(trace):
    assert trace.attention("猫", sites="unet.*.cross_attention").layer.size == 2
    assert trace.attention("猫", sites=[COARSE]).shape[-2:] == (4, 2)
    assert trace.attention("猫", sites=[COARSE, FINE]).layer.values.tolist() == [FINE, COARSE]
    with pytest.raises(NotRecorded, match=r"Nearest: unet\.middle"):
        trace.attention("猫", sites="unet.midle.cross_attention")
    with pytest.raises(ToushiError, match="encoder"):
        trace.attention(sites="encoder.*")
    for sites in ([], [3], "["):
        with pytest.raises(ToushiError):
            trace.attention("猫", sites=sites)
    with pytest.raises(ToushiError, match="native"):
        trace.attention("猫", grid="coarse")
    with pytest.raises(NotRecorded, match="cond, uncond"):
        trace.attention("猫", branch="negative")


def test_a_branch_that_stops_part_way(tmp_path):
    run = Run()
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        for step in range(3):
            writer.write_step(step, {k: v for k, v in run.tensors(step).items() if step < 2 or "uncond" not in k})
    trace = open_trace(tmp_path / "run")
    assert trace.attention(branch="uncond").step.values.tolist() == [0, 1]
    assert trace.attention(branch="cond").step.values.tolist() == [0, 1, 2]
    with pytest.raises(NotRecorded, match="at step 2"):
        trace.attention(branch="uncond", steps=[1, 2])


def test_a_step_that_lacks_a_site_is_nan_and_skipped_by_means(tmp_path):
    run = Run()
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        for step in range(3):
            writer.write_step(step, {k: v for k, v in run.tensors(step).items() if step != 1 or COARSE not in k})
    trace = open_trace(tmp_path / "run")
    array = trace.attention("猫")
    assert np.isnan(array.sel(layer=COARSE, step=1)).all() and np.isfinite(array.sel(layer=COARSE, step=0)).all()
    by_hand = array.mean("head").mean("step").mean("layer")
    np.testing.assert_allclose(trace.heat_map("猫"), by_hand, rtol=1e-5)
    assert trace.verify() == []


def test_image_self_attention(tmp_path):
    sites = {**SITES, "unet.middle.self_attention": {"kind": "self", "grid": [4, 2], "heads": 2}}
    rng = np.random.default_rng(0)
    weights = rng.random((2, 8, 4, 2)).astype(np.float32)
    weights /= weights.sum(1, keepdims=True)
    run = Run(sites=sites)
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        for step in range(3):
            writer.write_step(step, {**run.tensors(step), "unet.middle.self_attention/cond": weights})
    trace = open_trace(tmp_path / "run")
    array = trace.attention(sites="*.self_attention")
    assert array.dims == ("step", "layer", "head", "key", "y", "x") and array.sizes["key"] == 8
    np.testing.assert_array_equal(array.values[0, 0], weights)
    assert trace.attention("猫").layer.size == 2 and trace.verify() == []
    with pytest.raises(ToushiError, match="not to words"):
        trace.attention("猫", sites="*.self_attention")
    with pytest.raises(ToushiError, match="one query"):
        trace.attention(sites="unet.middle.*")


def test_an_answer_that_would_fill_the_memory_is_refused(trace, monkeypatch):
    monkeypatch.setattr("toushi.probe.trace.selection.MAX_BYTES", 1000)
    for grid in ("finest", "native"):
        with pytest.raises(ToushiError, match="fewer"):
            trace.attention(grid=grid)


def test_a_trace_with_no_finished_step(tmp_path):
    trace = open_trace(Run().write(tmp_path / "run", stop_after=0))
    assert trace.steps == [] and trace.times == []
    for ask in (lambda: trace.heat_map("猫"), trace.attention, trace.mass, lambda: trace.preview(0)):
        with pytest.raises(NotRecorded, match=r"no step is finished|0 steps"):
            ask()


# --- words ----------------------------------------------------------------------------------------------


def test_a_word_over_several_tokens_is_their_sum(trace):
    character = trace.attention("𰻝", grid="native")[FINE]
    places = [i for i, token in enumerate(trace.tokens()) if token.text == "𰻝"]
    assert len(places) >= 2
    every = trace.attention(grid="native")[FINE]
    np.testing.assert_allclose(character, every.isel(token=places).sum("token"), rtol=1e-5)


def test_a_token_across_a_border_is_shared_out(tmp_path):
    prompt = "左边是猫"
    tokens = [
        {"id": i, "text": prompt[a:b], "span": [a, b], "kind": "text", "encoders": ["e"], "position": i, "column": i}
        for i, (a, b) in enumerate([(0, 3), (3, 4)])
    ]
    branch = {"tokens": tokens, "words": segment(prompt)}
    run = Run(branches=("cond",), prompt=prompt)
    maps = np.full((2, 2, 8, 4), 0.5, np.float32)
    with TraceWriter(tmp_path / "run", run.manifest(branches={"cond": branch})) as writer:
        writer.write_step(0, {f"{FINE}/cond": maps})
    trace = open_trace(tmp_path / "run")
    np.testing.assert_allclose(trace.heat_map("左边"), 0.5 * 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(trace.heat_map("是"), 0.5 / 3, rtol=1e-6)
    np.testing.assert_allclose(trace.heat_map("左边是"), 0.5, rtol=1e-6)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.sampled_from(["左边是猫头鹰和𰻝", "a red cat on 左边", "龘！👨‍👩‍👧，猫", "猫猫猫", "x" * 90]),
    keep=st.sampled_from(KEEPS),
    rest=st.booleans(),
)
def test_merging_tokens_into_words_conserves_mass(tmp_path_factory, prompt, keep, rest):
    run = Run(prompt=prompt, keep=keep, rest=rest, steps=2)
    trace = open_trace(run.write(tmp_path_factory.mktemp("mass") / "run"))
    everything = trace.attention(grid="native")[FINE]
    edges = sorted({0, len(prompt), *(edge for word in trace.words() for edge in word.span)})
    total = 0
    for part in itertools.pairwise(edges):
        if token_shares(trace.tokens(), part).any():
            total = total + trace.attention(part, grid="native")[FINE]
    text = [i for i, token in enumerate(trace.tokens()) if token.kind == "text"]
    np.testing.assert_allclose(total, everything.isel(token=text).sum("token"), atol=1e-5)
    mass = trace.mass()
    assert float(mass.sum()) + mass.attrs["rest"] == pytest.approx(1, abs=1e-3)
    assert trace.verify() == []


def test_words_are_asked_for_as_everywhere(tmp_path):
    trace = open_trace(Run(prompt="猫在左边，猫头鹰和猫在右边", steps=1).write(tmp_path / "run"))
    first, second = trace.heat_map("猫#1"), trace.heat_map("猫#2")
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, trace.heat_map(Word("猫", 9, 10)))
    np.testing.assert_array_equal(second, trace.heat_map((9, 10)))
    with pytest.raises(AmbiguousWord):
        trace.heat_map("猫")
    with pytest.raises(UnknownWord, match="猫头鹰"):
        trace.heat_map("头")


def test_the_negative_prompt_has_its_own_words(tmp_path):
    trace = open_trace(Run(negative="夜晚").write(tmp_path / "run"))
    assert trace.span("夜晚", "uncond") == (0, 2)
    with pytest.raises(UnknownWord):
        trace.heat_map("夜晚")
    with pytest.raises(UnknownWord, match="The prompt of the branch 'uncond' is '夜晚'"):
        trace.heat_map("猫", branch="uncond")


def test_lost_and_unkept_words_say_why(tmp_path):
    long = "左边" * 100 + "夜晚"
    trace = open_trace(Run(prompt=long, steps=1).write(tmp_path / "long"))
    with pytest.raises(NotRecorded, match="cut from the prompt"):
        trace.heat_map("夜晚")
    cat = next(token.column for token in TOKENIZER.encode(PROMPT).tokens if token.text == "猫")
    trace = open_trace(Run(columns=[cat]).write(tmp_path / "one"))
    assert trace.attention().text.values.tolist() == ["猫"] and trace.verify() == []
    full = open_trace(Run().write(tmp_path / "all"))
    np.testing.assert_array_equal(trace.heat_map("猫"), full.heat_map("猫"))
    with pytest.raises(NotRecorded, match="only other words"):
        trace.heat_map("月亮")


def test_a_run_from_ready_made_embeddings_has_maps_by_index(tmp_path):
    tokens = [
        {"id": None, "text": "", "span": None, "kind": "text", "encoders": [], "position": i, "column": i}
        for i in range(len(TOKENIZER.encode("").tokens))
    ]
    run = Run(prompt=None)
    branches = {"cond": {"tokens": tokens, "words": []}, "uncond": {"tokens": tokens, "words": []}}
    with TraceWriter(tmp_path / "run", run.manifest(branches=branches)) as writer:
        for step in range(3):
            writer.write_step(step, run.tensors(step))
    trace = open_trace(tmp_path / "run")
    assert trace.attention().sizes["token"] == 2 and trace.verify() == []
    with pytest.raises(NotRecorded, match="embeddings instead of text"):
        trace.heat_map("猫")


# --- averages -------------------------------------------------------------------------------------------


def test_the_plain_mean_weighs_sites_equally(trace):
    assert "equally" in trace.heat_map("猫").attrs["rule"]
    by_hand = trace.attention("猫").mean("head").mean("step").mean("layer")
    np.testing.assert_allclose(trace.heat_map("猫"), by_hand, rtol=1e-5)


def test_a_better_rule_of_the_model_is_the_default(tmp_path):
    rule = {"sites": [COARSE], "rule": "the middle site alone"}
    trace = open_trace(Run().write(tmp_path / "run", heat_map=rule))
    assert trace.heat_map("猫").attrs["rule"] == "the middle site alone"
    assert trace.heat_map("猫").attrs["sites"] == [COARSE]
    np.testing.assert_array_equal(trace.heat_map("猫"), trace.heat_map("猫", sites=COARSE))
    assert "equally" in trace.heat_map("猫", sites=[FINE, COARSE]).attrs["rule"]


# --- verify, versions, speed ----------------------------------------------------------------------------


def test_verify_sees_a_flipped_bit_a_wrong_sum_and_a_missing_file(tmp_path):
    folder = Run().write(tmp_path / "run")
    path = folder / "step_0001.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    (folder / "step_0002.safetensors").unlink()
    problems = open_trace(folder).verify()
    assert len(problems) == 2 and "sha256" in problems[0] and "step_0002" in problems[1]

    run = Run()
    with TraceWriter(tmp_path / "sums", run.manifest()) as writer:
        for step in range(3):
            tensors = run.tensors(step)
            tensors[f"{FINE}/cond"] = tensors[f"{FINE}/cond"] * np.float16(0.9)
            tensors[f"{COARSE}/cond"][0, 0, 0, 0] = np.nan
            writer.write_step(step, tensors)
    problems = open_trace(tmp_path / "sums").verify()
    assert sum("off by up to 0.1" in problem for problem in problems) == 3
    assert sum("not finite" in problem for problem in problems) == 3


def test_a_newer_format_is_refused(folder, tmp_path):
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    (tmp_path / layout.MANIFEST).write_text(json.dumps({**manifest, "version": 3, "branches": "all new"}))
    with pytest.raises(NewerTrace, match="newer Toushi"):
        open_trace(tmp_path)


def test_no_trace(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(NoTrace, match="No trace"):
            open_trace(folder)


def test_reading_needs_no_torch(folder):
    code = (
        "import sys; from toushi.probe.trace.open import open_trace; t = open_trace(sys.argv[1]); t.heat_map('猫'); "
        "assert not t.verify(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=ROOT)


def test_reading_gives_no_warnings(trace):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace.heat_map("猫"), trace.attention(), trace.mass()


def test_only_the_asked_tokens_are_read(trace, monkeypatch):
    from toushi.probe.trace.safetensors_reader import SafetensorsFile

    real, sizes = SafetensorsFile.read, []
    monkeypatch.setattr(SafetensorsFile, "read", lambda *a: sizes.append(real(*a).shape) or real(*a))
    trace.attention("猫", sites=FINE)
    assert sizes == [(2, 1, 8, 4)] * 3
