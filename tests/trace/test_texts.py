"""A trace of many texts: what was seen comes back, a killed run can be read as far as it came, damage is told."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.trace.runs import Run
from toushi.probe.base.errors import ToushiError
from toushi.probe.encoders.encode_layers import BATCH, encode_layers
from toushi.probe.encoders.load_encoder import open_encoder
from toushi.probe.encoders.record_texts import record_texts
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.trace.encoder_trace import EncoderTraceWriter
from toushi.probe.trace.export.export_trace import export
from toushi.probe.trace.open import is_encoder_trace, open_encoder_trace, open_trace
from toushi.probe.trace.trace_errors import DamagedTrace, NotAnEncoder, NotAPicture, WriteFailed
from toushi.probe.trace.trace_format import TEXTS

HERE = ["左边是红色的猫，右边是月亮", "a red cat", "𰻝𰻝面", *(f"{n}只猫" for n in range(BATCH))]


@pytest.fixture(scope="module")
def encoder():
    return open_encoder(MiniUNet.tiny())


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "run"
    record_texts(encoder, HERE, folder)
    return folder


def test_what_was_seen_comes_back(encoder, folder):
    trace, direct = open_encoder_trace(folder), encode_layers(encoder, HERE)
    assert trace.texts == HERE and len(trace) == len(HERE) and trace.complete and not trace.verify()
    assert trace.layers == len(encoder.layers)
    for number, reading in enumerate(direct):
        again = trace.encoding(number)
        assert again.tokens == reading.tokens == tuple(trace.tokens(number))
        assert again.words == reading.words == tuple(trace.words(number))
        assert again.states.identical(reading.states) and again.final.identical(reading.final)
        assert again.attention.identical(reading.attention) and trace.attention(number).identical(reading.attention)
    lazy = trace.encodings()
    assert lazy.encoder == direct.encoder and len(lazy) == len(direct)
    assert lazy.states_of([(0, 1)] * len(HERE)).identical(direct.states_of([(0, 1)] * len(HERE)))
    assert [reading.text for reading in lazy] == HERE and lazy[-1].text == HERE[-1]


def test_attention_may_be_left_away(encoder, tmp_path):
    readings = record_texts(encoder, HERE[:2], tmp_path / "run", attention=False)
    with pytest.raises(ToushiError, match="attention=False"):
        _ = readings[0].attention
    assert not open_encoder_trace(tmp_path / "run").verify()


def test_another_trace_is_only_replaced_when_that_is_asked_for(encoder, tmp_path):
    for texts in (HERE[:2], HERE[2:3]):
        record_texts(encoder, texts, tmp_path / "run", overwrite=True)
    assert open_encoder_trace(tmp_path / "run").texts == HERE[2:3]
    with pytest.raises(WriteFailed, match="not empty"):
        record_texts(encoder, HERE[:1], tmp_path / "run")


def test_killed_half_way_everything_that_is_listed_can_be_read(tmp_path):
    script = f"""
import os, signal
from toushi.probe.encoders.record_texts import record_texts
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.trace.encoder_trace import EncoderTraceWriter
write = EncoderTraceWriter.write
def killed(self, readings):
    write(self, readings)
    if self.files == 2:
        os.kill(os.getpid(), signal.SIGKILL)
EncoderTraceWriter.write = killed
record_texts(MiniUNet.tiny(), ["猫在左边"] * {4 * BATCH}, {str(tmp_path / "run")!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": "."}
    )
    assert done.returncode == -signal.SIGKILL
    trace = open_encoder_trace(tmp_path / "run")
    assert len(trace) == 2 * BATCH and not trace.complete
    assert np.isfinite(trace.states(2 * BATCH - 1)).all()
    assert trace.verify() == [f"The run did not end: {2 * BATCH} of {4 * BATCH} texts are finished."]
    with pytest.raises(ToushiError, match="no text 32 "):
        trace.states(2 * BATCH)


def test_a_line_that_was_cut_off_does_not_count(encoder, tmp_path):
    record_texts(encoder, ["猫"] * (BATCH + 1), tmp_path / "run")
    file = tmp_path / "run" / TEXTS
    file.write_bytes(file.read_bytes()[:-20])
    assert len(open_encoder_trace(tmp_path / "run")) == BATCH


def full(*how, **more):
    raise OSError(28, "No space left on device")


class Unflushed:
    """A file whose last bytes the disk does not take."""

    def __init__(self, file):
        self.file = file

    def close(self):
        self.file.close()
        full()


@pytest.mark.parametrize("at", ["the manifest", "the list"])
def test_a_disk_that_is_full_at_the_very_end(encoder, tmp_path, monkeypatch, at):
    readings = encode_layers(encoder, HERE[:2])
    about = {"count": 2, "layers": len(encoder.layers), "heads": 2, "width": readings[0].states.sizes["feature"]}

    def write(trouble=None):
        with EncoderTraceWriter(tmp_path / "run", about, overwrite=True) as writer:
            writer.write(readings)
            if at == "the list":
                writer._lines = Unflushed(writer._lines)
            else:
                monkeypatch.setattr("toushi.probe.trace.encoder_trace.write_json", full)
            if trouble is not None:
                raise trouble

    with pytest.raises(WriteFailed, match="No space left on device. 2 texts are finished"):
        write()
    assert len(open_encoder_trace(tmp_path / "run")) == 2 and not open_encoder_trace(tmp_path / "run").complete
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt):  # what ended it first is what is told
        write(KeyboardInterrupt())


def test_damage_is_told(encoder, tmp_path):
    record_texts(encoder, HERE[:2], tmp_path / "run")
    file = tmp_path / "run/texts_0000.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is not what was written" in open_encoder_trace(tmp_path / "run").verify()[0]
    file.write_bytes(whole[:-1])
    assert "must have" in open_encoder_trace(tmp_path / "run").verify()[0]
    lines = tmp_path / "run" / TEXTS
    for field, value in (("file", "../x"), ("first", 3), ("texts", [{"text": 1}]), ("sha256", "0"), ("bytes", True)):
        line = json.loads(lines.read_text().splitlines()[0]) | {field: value}
        kept = lines.read_text()
        lines.write_text(json.dumps(line) + "\n")
        with pytest.raises(DamagedTrace, match=rf"line 1: {field}.* must be .* is there"):
            open_encoder_trace(tmp_path / "run")
        lines.write_text(kept)
    manifest = tmp_path / "run/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"layers": -1}))
    with pytest.raises(DamagedTrace, match="layers must be"):
        open_encoder_trace(tmp_path / "run")


def test_each_kind_has_its_own_function(folder, tmp_path):
    with pytest.raises(NotAPicture, match=r"trace of a text encoder.*open_encoder_trace"):
        open_trace(folder)
    picture = Run().write(tmp_path / "picture")
    with pytest.raises(NotAnEncoder, match=r"trace of a picture.*open_trace"):
        open_encoder_trace(picture)
    assert is_encoder_trace(folder) and not is_encoder_trace(picture)


@pytest.mark.parametrize("tokens", [False, True])
def test_exported_it_is_the_same(encoder, folder, tmp_path, tokens):
    trace = open_encoder_trace(folder)
    done = export(trace, "npz", tmp_path / "x.npz", tokens=tokens)
    first = trace.encoding(0)
    states, attention = (first.states, first.attention) if tokens else (first.word_states(), first.word_attention())
    with np.load(done.path) as data:
        np.testing.assert_array_equal(data["text/0/states"], states)
        np.testing.assert_array_equal(data["text/0/attention"], attention)
        about = json.loads(str(data["about"]))
    assert about["arrays"]["text/0/states"]["axes"] == list(states.dims) and about["texts"]["0"] == HERE[0]
    pandas = pytest.importorskip("pandas")
    table = pandas.read_parquet(export(trace, "parquet", tmp_path / "x.parquet", tokens=tokens).path)
    some = table[(table.text == 0) & (table.layer == 1)]
    np.testing.assert_array_equal(np.stack(some.state), states[1])


def test_exported_by_word_the_texts_that_lack_it_are_left_out(folder, tmp_path):
    trace = open_encoder_trace(folder)
    done = export(trace, "npz", tmp_path / "x.npz", words=["月亮"])
    assert len(done.left_out) == len(HERE) - 1
    with np.load(done.path) as data:
        assert data["text/0/states"].shape[1] == 1
    with pytest.raises(ToushiError, match="nothing to export"):
        export(trace, "npz", tmp_path / "y.npz", words=["河马"])


def test_commands(folder, tmp_path, capsys):
    from toushi.cli.main import run

    assert run(["info", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "mini-unet" in said and HERE[0] in said and f"{len(HERE)} of {len(HERE)}" in said
    assert run(["verify", str(folder)]) == 0
    assert "no problem found" in capsys.readouterr().out
    assert run(["export", str(folder), "--to", "npz", "--out", str(tmp_path / "e.npz")]) == 0
    assert run(["layers", "猫在左边", "--save", str(tmp_path / "kept")]) == 0
    assert open_encoder_trace(tmp_path / "kept").texts == ["猫在左边"]
    assert run(["layers", "猫在左边", "--save", str(tmp_path / "kept")]) == 2
    assert "not empty" in capsys.readouterr().err
