"""Why a word is ignored: `diagnose_word`."""

from dataclasses import replace

import numpy as np
import pytest

from tests.trace.runs import Run
from toushi.probe.text.alignment import AmbiguousWord, UnknownWord
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.trace_errors import DamagedTrace, NotRecorded
from toushi.probe.trace.trace_format import map_key
from toushi.probe.trace.word_diagnosis import diagnose_word
from toushi.probe.trace.writer import TraceWriter

CAT = "左边是猫，右边是月亮，夜晚"
FINE, MIDDLE = "unet.down.0.cross_attention", "unet.middle.cross_attention"


def written(folder, change=lambda step, key, columns, maps: maps, prompt=CAT, edit_manifest=lambda manifest: manifest):
    """A trace whose maps [head, token, y, x] of `cond` are `change(step, key, columns of each character, maps)`."""
    run = Run(prompt=prompt)
    manifest = edit_manifest(run.manifest())
    tokens = manifest["branches"]["cond"]["tokens"]
    columns = {prompt[start]: [t.column for t in tokens if t.span and t.span[0] <= start < t.span[1]] for start in range(len(prompt))}  # fmt: skip
    columns["all"] = sorted(t.column for t in tokens)
    columns[""] = [t.column for t in tokens if t.kind != "text"]
    with TraceWriter(folder, manifest) as writer:
        for step in range(run.steps):
            tensors = run.tensors(step)
            for site in (FINE, MIDDLE):
                key = map_key(site, "cond")
                maps = change(step, site, columns, tensors[key].astype(np.float32))
                tensors[key] = (maps / maps.sum(1, keepdims=True)).astype(np.float16)
            writer.write_step(step, tensors)
    return open_trace(folder)


def test_a_word_like_any_other(tmp_path):
    def change(step, site, columns, maps):
        maps[:] = 0.1
        maps[:, columns["猫"], :, : maps.shape[-1] // 2] = 1
        return maps

    trace = written(tmp_path / "run", change)
    diagnosis = diagnose_word(trace, "猫")
    assert diagnosis.findings == () and diagnosis.word == "猫" and list(diagnosis.peers) == ["月亮"]
    assert diagnosis.share == pytest.approx(float(trace.heat_map("猫").mean()))
    assert diagnosis.peers["月亮"] == pytest.approx(float(trace.heat_map("月亮").mean()))
    total = sum(float(trace.heat_map(token.span).mean()) for token in trace.tokens() if token.kind == "text")
    assert diagnosis.sink == pytest.approx(1 - total, abs=1e-3)


def test_the_peak_is_found(tmp_path):
    def change(step, site, columns, maps):
        maps[:, columns["猫"]] *= 100 if (step, site) == (1, MIDDLE) else 1
        return maps

    trace = written(tmp_path / "run", change)
    diagnosis = diagnose_word(trace, "猫")
    assert (diagnosis.peak_step, diagnosis.peak_site) == (1, MIDDLE)
    expected = trace.attention("猫", sites=MIDDLE, steps=1).mean()
    assert diagnosis.peak_share == pytest.approx(float(expected), rel=1e-4)


def test_a_sink_a_faint_word_and_no_contrast(tmp_path):
    def change(step, site, columns, maps):
        maps[:] = 0.01
        maps[:, columns["月"] + columns["亮"]] = 0.1
        maps[:, columns[""]] = 5
        return maps

    assert diagnose_word(written(tmp_path / "run", change), "猫").findings == ("sink", "faint", "no_contrast")


def test_a_word_that_was_cut_and_one_that_is_dropped(tmp_path):
    def without_tokens(manifest):
        cond = manifest["branches"]["cond"]
        cond["tokens"] = [token for token in cond["tokens"] if not token.span or token.span[1] <= CAT.index("夜")]
        return manifest

    def same_tokens(step, site, columns, maps):
        return maps[:, columns["all"]]

    diagnosis = diagnose_word(written(tmp_path / "run", same_tokens, edit_manifest=without_tokens), "夜晚")
    assert diagnosis.findings == ("cut",) and diagnosis.share is None and not diagnosis.tokens

    def replaced(manifest):
        without_tokens(manifest)["branches"]["cond"]["cut"] = None
        return manifest

    trace = written(tmp_path / "replaced", same_tokens, edit_manifest=replaced)
    assert diagnose_word(trace, "夜晚").findings == ("changed",)


def test_maps_of_nan_are_refused(tmp_path):
    trace = written(tmp_path / "run", lambda step, key, columns, maps: maps * np.nan)
    with pytest.raises(DamagedTrace, match="holds NaN"):
        diagnose_word(trace, "猫")


@pytest.mark.parametrize("others", [(), ("夜晚", "夜", "晚")])
def test_words_that_the_vocabulary_lacks(tmp_path, others):
    def unknown(manifest):
        cond, lacking = manifest["branches"]["cond"], ("猫", *others)
        cond["tokens"] = [replace(t, kind="unknown") if t.text in lacking else t for t in cond["tokens"]]
        return manifest

    trace = written(tmp_path / "run", lambda step, key, columns, maps: maps * 0 + 1, edit_manifest=unknown)
    diagnosis = diagnose_word(trace, "猫")
    assert "unknown" in diagnosis.findings and diagnosis.unknown_with == ("夜晚",) * bool(others)
    assert "unknown" not in diagnose_word(trace, "月亮").findings
    count = len(trace.places())  # every column gets as much
    assert diagnosis.sink == pytest.approx(sum(token.kind == "special" for token in trace.places()) / count, abs=1e-3)


def test_bytes_of_a_character_are_no_unknown_words(tmp_path):
    trace = written(tmp_path / "run", prompt="𰻝和𱁬")  # rare characters, whose first bytes are the same tokens
    assert "unknown" not in diagnose_word(trace, "𰻝").findings


def test_words_are_looked_up_as_everywhere(tmp_path):
    trace = written(tmp_path / "run")
    with pytest.raises(AmbiguousWord):
        diagnose_word(trace, "是")
    with pytest.raises(UnknownWord):
        diagnose_word(trace, "狗")
    assert diagnose_word(trace, "是#2").word == "是#2"
    run = Run(prompt=CAT, sites={"encoder.layers.0.attention": {"kind": "encoder", "grid": None, "heads": 2}})
    with pytest.raises(NotRecorded):
        diagnose_word(open_trace(run.write(tmp_path / "none")), "猫")
