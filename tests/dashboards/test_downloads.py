"""What can be taken away of a trace."""

import csv
import io
import shlex
import zipfile

import made_trace
import numpy as np
import pytest
from PIL import Image

from toushi import main
from toushi.dashboards import downloads
from toushi.dashboards.heat_map.word_maps import read_word_maps
from toushi.probe.trace.open import open_trace

STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture
def made(tmp_path):
    return open_trace(made_trace.write(tmp_path / "cat", steps=3))


@pytest.mark.parametrize("kind", STARTS)
def test_the_figure_at_the_width_of_a_column(made, kind):
    assert downloads.words_figure(made, "cond", "zh", kind).startswith(STARTS[kind])


def test_the_table_holds_the_shares_of_the_words(made):
    table = downloads.shares_csv(made, read_word_maps(made, "cond")).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(table)))
    shares = {(row["step"], row["layer"], row["word"]): float(row["share"]) for row in rows}
    assert shares["", "heat_map", "猫"] == pytest.approx(float(made.heat_map("猫").mean()), rel=1e-3)
    site = "unet.up.1.cross_attention"
    assert shares["2", site, "是#2"] == pytest.approx(
        float(made.heat_map("是#2", sites=site, steps=2).mean()), rel=1e-3
    )
    whole = sum(float(row["share"]) for row in rows if row["step"] == "1" and row["layer"] == site)
    assert whole == pytest.approx(1, abs=1e-3), "all text columns"


def test_the_moving_picture_has_each_step_and_the_end(made):
    with Image.open(io.BytesIO(downloads.steps_gif(made))) as gif:
        assert gif.n_frames == 4 and gif.size == (2 * 256, 256)  # seen and expected, side by side
        gif.seek(3)
        last = np.asarray(gif.convert("RGB"))[::4, :256:4].astype(int)
    assert np.abs(last - made.image()).mean() < 8  # colours of a GIF are rounded


def test_the_zip_is_the_trace(made, tmp_path):
    with zipfile.ZipFile(io.BytesIO(downloads.trace_zip(made))) as archive:
        archive.extractall(tmp_path / "out")
    again = open_trace(tmp_path / "out" / "cat")
    assert again.prompt == made.prompt and not again.verify()


def test_the_page(made):
    assert downloads.trace_page(made, "cond", "zh").startswith(b"<!doctype html>")


@pytest.mark.slow
def test_the_command_makes_the_picture_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["trace", "左边是猫 'a' $b", "--steps", "2", "--seed", "3", "--guidance", "2", "--out", "runs/cat"]) == 0
    )
    words = shlex.split(downloads.command(open_trace("runs/cat")))
    assert words[0] == "toushi" and main(words[1:]) == 0
    np.testing.assert_array_equal(open_trace("cat-again").image(), open_trace("runs/cat").image())


def test_a_trace_that_no_command_makes_is_read_in_python(tmp_path):
    folder = made_trace.write(tmp_path / "it's", steps=1, source_image_sha256="0" * 64)
    lines = downloads.command(open_trace(folder))
    scope = {}
    exec(lines, scope)
    assert scope["trace"].prompt == made_trace.PROMPT
