"""From the shell: a saved pipeline of every family draws, is recorded, and its trace says what it is."""

import numpy as np
import pytest

from probe.models.load import UnknownModel, load
from probe.trace.reader import open_trace
from tests.pipelines.tiny import MAKERS, made
from toushi import main

PROMPT = "a red cat and 月亮"
# Drops 34 template tokens by a number in its code, which fits the real tokenizer alone.
RELOADED = [name for name in MAKERS if name != "qwen-image"]


@pytest.mark.parametrize("name", RELOADED)
def test_toushi_trace(name, tmp_path, capsys):
    folder = tmp_path / "model"
    made(name).save_pretrained(folder)
    options = ["--model", str(folder), "--steps", "2", "--size", "32x48", "--guidance", "3"]
    assert main(["trace", PROMPT, *options, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "cat" in said and "月亮" in said and (tmp_path / "run" / "words.png").exists()
    trace = open_trace(tmp_path / "run")
    assert trace.complete and trace.verify() == [] and trace.manifest["size"] == [32, 48]
    assert trace.branches[0] == "cond" and trace.prompt == PROMPT
    assert main(["trace", PROMPT, *options, "--no-record", "--out", str(tmp_path / "bare")]) == 0
    assert (tmp_path / "bare" / "image.png").read_bytes() == (tmp_path / "run" / "image.png").read_bytes()


def test_a_folder_that_is_no_pipeline(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UnknownModel, match="diffusers pipeline"):
        load(str(tmp_path), "cpu")


def test_weights_that_are_missing(tmp_path):
    made("stable-diffusion").save_pretrained(tmp_path)
    next((tmp_path / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(UnknownModel, match="diffusers pipeline"):
        load(str(tmp_path), "cpu")


def test_a_pipeline_brings_its_own_sampler(tmp_path, capsys):
    made("stable-diffusion").save_pretrained(tmp_path / "model")
    arguments = ["trace", "cat", "--model", str(tmp_path / "model"), "--steps", "1", "--out", str(tmp_path / "run")]
    assert main([*arguments, "--sampler", "heun"]) == 2
    assert "DDIMScheduler" in capsys.readouterr().err


def test_the_size_of_the_pipeline_itself(tmp_path):
    made("stable-diffusion").save_pretrained(tmp_path / "model")
    arguments = ["trace", "cat", "--model", str(tmp_path / "model"), "--steps", "1", "--keep", "mean"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    trace = open_trace(tmp_path / "run")
    assert np.array_equal(trace.manifest["size"], trace.image().shape[:2])


@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-3"])
def test_edits_of_a_pipeline(name, tmp_path):
    """From a file, and again from the trace that they made."""
    made(name).save_pretrained(tmp_path / "model")
    site = "unet.*.attn2" if name == "stable-diffusion" else "transformer.*.attn"
    (tmp_path / "edits.json").write_text(f'[{{"site": "{site}", "kind": "zero", "word": "cat"}}]')
    options = ["--model", str(tmp_path / "model"), "--steps", "2", "--size", "32", "--guidance", "3"]
    for out, more in (
        ("plain", []),
        ("edited", ["--edits", str(tmp_path / "edits.json")]),
        ("again", ["--edits", str(tmp_path / "edited")]),
    ):
        assert main(["trace", PROMPT, *options, "--out", str(tmp_path / out), *more]) == 0
    plain, edited, again = (open_trace(tmp_path / out) for out in ("plain", "edited", "again"))
    assert edited.manifest["edits"] == again.manifest["edits"] and edited.manifest["edits"][0]["word"] == "cat"
    assert np.array_equal(edited.latent(1), again.latent(1)) and not np.array_equal(edited.latent(1), plain.latent(1))
