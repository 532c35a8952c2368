"""From the shell: a saved pipeline of every family draws, is recorded, and its trace says what it is."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

from tests.pipelines.tiny import COMMON, HIDDEN, QUICK, families, made, scaled
from tests.pipelines.variants import variant
from toushi import main
from toushi.cli.sites import sites_from_configs
from toushi.dashboards import trace_library as library
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.generate import generate
from toushi.probe.pipelines.load import load
from toushi.probe.pipelines.model_index import UnknownModel
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace

PROMPT = "a red cat and 月亮"
pytestmark = pytest.mark.usefixtures("figures_in_this_process")


def options(name, folder):
    size = "x".join(map(str, scaled(made(name), (32, 48))))
    return ["--model", str(folder), "--steps", "2", "--size", size, "--guidance", "3"]


@pytest.mark.parametrize("name", families(COMMON))
def test_toushi_trace(name, tmp_path, capsys):
    folder = tmp_path / "model"
    made(name).save_pretrained(folder)
    assert main(["trace", PROMPT, *options(name, folder), "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    rows = said.out.split("peak y, x\n", 1)[1].split("\n\n", 1)[0].splitlines()  # the prompt stands above them
    names = {row.split()[0].rstrip("*") for row in rows}  # *: words that the vocabulary lacks
    assert {"cat", "月亮"} <= names and (tmp_path / "run" / "words.png").exists()
    assert ("hidden states are kept" in said.err) == (name in HIDDEN)
    trace = open_trace(tmp_path / "run")
    assert trace.complete and trace.verify() == [] and trace.manifest.family.startswith(name)
    assert trace.branches[0] == "cond" and trace.prompt == PROMPT
    # The explorer opens it.
    (entry,) = library.entries(tmp_path)
    assert entry.prompt == PROMPT and not entry.damaged and library.thumbnail(entry)
    run, version = str(entry.folder), library.trace_version(str(entry.folder))
    assert len(library.picture_block(run, version, "cond", "zh")) > 1000
    assert library.has_encoder(trace, "cond") == (name not in HIDDEN)
    assert not library.has_encoder(trace, "cond") or len(library.encoder_block(run, version, "cond", "zh")) > 1000


@pytest.mark.slow
def test_toushi_trace_in_a_process_of_its_own(tmp_path):
    made("lumina-2").save_pretrained(tmp_path / "model")
    command = ["trace", PROMPT, *options("lumina-2", tmp_path / "model"), "--out"]
    whole = [sys.executable, "-m", "toushi", *command, str(tmp_path / "run")]
    run = subprocess.run(whole, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert main([*command, str(tmp_path / "bare"), "--no-record"]) == 0
    assert (tmp_path / "bare" / "image.png").read_bytes() == (tmp_path / "run" / "image.png").read_bytes()


@pytest.mark.parametrize("kind", ["StableDiffusionImg2ImgPipeline", "Flux2KleinInpaintPipeline"])
def test_a_pipeline_that_begins_with_an_image_says_so(kind):
    with pytest.raises(ToushiError, match=f"{kind} begins with an image"):
        generate(variant(kind), "cat", steps=1)


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
    """Which is said before its weights are loaded: here there are none."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "ZImagePipeline"}')
    arguments = ["trace", "cat", "--model", str(tmp_path / "model"), "--steps", "1", "--out", str(tmp_path / "run")]
    assert main([*arguments, "--sampler", "heun"]) == 2
    assert "has its own scheduler: remove --sampler" in capsys.readouterr().err
    with pytest.raises(ToushiError, match="DDIMScheduler"):
        generate(made("stable-diffusion"), "cat", sampler="heun")


def test_the_size_of_the_pipeline_itself(tmp_path):
    made("stable-diffusion").save_pretrained(tmp_path / "model")
    arguments = ["trace", "cat", "--model", str(tmp_path / "model"), "--steps", "1", "--keep", "mean"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    trace = open_trace(tmp_path / "run")
    assert np.array_equal(trace.manifest.size, trace.image().shape[:2])


@pytest.mark.parametrize("name", families(QUICK))
def test_sites_are_told_by_the_configs_alone_as_a_run_finds_them(name, tmp_path):
    pipeline, size = made(name), scaled(made(name), (32, 48))
    pipeline.save_pretrained(tmp_path / "model")
    with record(pipeline, tmp_path / "run", sites=["*"], keep="mean"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generate(pipeline, PROMPT, steps=1, size=size)
    for weights in (tmp_path / "model").rglob("*.safetensors"):
        weights.unlink()
    told, found = sites_from_configs(tmp_path / "model", size), open_trace(tmp_path / "run").sites
    assert set(told) == set(found)
    for site, about in found.items():
        assert told[site].kind == about.kind and told[site].heads == about.heads, site
        assert told[site].grid == about.grid, site


def test_a_run_of_a_pipeline_cannot_be_gone_on_with_and_says_so_before_it_loads(tmp_path, capsys):
    pipeline = made("flux")
    with pytest.raises(KeyboardInterrupt), record(pipeline, tmp_path / "run"):
        generate(pipeline, PROMPT, steps=3, size=(32, 32), callback=interrupted)
    assert main(["trace", "--resume", str(tmp_path / "run"), "--model", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert "was sampled by flux, whose scheduler keeps state" in said and "sample it again" in said


def interrupted(step, latents):
    if step == 1:
        raise KeyboardInterrupt
