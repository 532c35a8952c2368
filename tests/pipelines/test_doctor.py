"""`toushi doctor`: said before anything is loaded, and true: sites, grids, columns and bytes are those of a recording."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.pipelines.tiny import MAKERS, QUICK, draw, families, made
from toushi import main
from toushi.cli.doctor import ModelInfo
from toushi.cli.language import language_of
from toushi.probe.pipelines.checkpoint_info import needed_bytes, read_pipeline_info
from toushi.probe.pipelines.registry import family_of
from toushi.probe.pipelines.size_estimate import estimate_maps, site_shapes, text_columns
from toushi.probe.recording.forecast import forecast_from_maps
from toushi.probe.recording.policy import Policy
from toushi.probe.recording.record import record
from toushi.probe.recording.run_recorder import RunRecorder
from toushi.probe.trace.open import open_trace

RELEASED = Path(__file__).resolve().parents[3] / "shared" / "models" / "z-image-turbo-meta"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    home, known = tmp_path_factory.mktemp("saved"), {}

    def folder(name: str) -> Path:
        if name not in known:
            made(name).save_pretrained(home / name)
            known[name] = home / name
        return known[name]

    return folder


@pytest.mark.parametrize("name", families(QUICK, [name for name in MAKERS if name != "flux-2-klein"]))
def test_what_is_foreseen_is_what_comes(name, saved, tmp_path, monkeypatch):
    found, pipeline = read_pipeline_info(saved(name)), made(name)
    assert found.failures == {} and found.pipeline is not None
    family = family_of(found.pipeline)
    for part in found.components:
        weights = getattr(pipeline, part.name).state_dict().values()  # tied ones are there twice, and stored once
        real = sum({weight.data_ptr(): weight.numel() for weight in weights}.values())
        assert part.sources == ("headers", "config") and part.parameters == real and part.missing_files == 0, part.name
        weights = list(getattr(found.pipeline, part.name).parameters())
        assert {weight.device.type for weight in weights} == {"meta"}  # nothing was loaded
    measured = []
    close = RunRecorder._close_writers
    monkeypatch.setattr(
        RunRecorder, "_close_writers", lambda run, complete: (measured.append(dict(run.sizes)), close(run, complete))
    )
    with record(pipeline, tmp_path / "run"):
        draw(pipeline, "a red cat", size=(32, 48), steps=1)
    trace = open_trace(tmp_path / "run")
    sites = {site: about for site, about in trace.sites.items() if about.kind == "cross"}
    shapes = site_shapes(family, found.pipeline)
    finest = max(tuple(about.grid) for about in sites.values())
    assert set(shapes) == set(sites)
    for site, about in sites.items():
        assert shapes[site].heads == about.heads
        assert [-(-n // shapes[site].downsampling) for n in finest] == list(about.grid)
    # The tiny pipelines are drawn with shorter texts than the pipeline's own; the columns are put in for it.
    (sizes,) = [size for size in measured if size]
    cond = [size for key, size in sizes.items() if key.endswith("/cond")]
    assert family.joint == (not next(iter(sites)).endswith("attn2"))
    if name == "hunyuan-dit":  # its own lengths are fixed
        assert text_columns(family, found.pipeline, 4) == sum(token.column is not None for token in trace.tokens())
    known = replace(family, text_columns=lambda pipeline, tokens: cond[0].columns - family.joint)
    maps, grid = estimate_maps(known, found.pipeline, trace.manifest.size, 400, branches=1)
    assert grid == finest
    assert (
        forecast_from_maps(maps, Policy(), 1, grid).disk["heads"]
        == sum(2 * s.heads * s.columns * s.cells for s in cond) + 80 * finest[0] * finest[1]
    )


@pytest.mark.parametrize("name", ["stable-diffusion", "flux", "z-image"])
def test_the_command_on_a_saved_pipeline(name, saved, capsys):
    assert main(["doctor", str(saved(name)), "--size", "32", "--language", "en"]) == 0
    said = capsys.readouterr().out
    assert f"family {name}" in said and "SDPA picks" in said and "Run it with: --device" in said
    assert "file headers + config" in said and "--keep mean" in said and "not installed:" in said


@pytest.mark.parametrize(("engine", "says"), [("own", "8 steps, 64 text columns, 1 "), ("diffusers", "50 steps")])
def test_each_engine_of_z_image_records_as_many_steps_as_it_draws(engine, says, saved, capsys):
    arguments = ["doctor", str(saved("z-image")), "--size", "32", "--language", "en", "--engine", engine]
    assert main(arguments) == 0 and says in capsys.readouterr().out


def test_a_released_folder_without_weights(capsys):
    if not RELEASED.is_dir():
        pytest.skip(f"{RELEASED} is not here")
    assert main(["doctor", str(RELEASED), "--dtype", "bf16", "--language", "en"]) == 0
    said = capsys.readouterr().out
    assert "6.15 B" in said and "4.02 B" in said and "24.6 GB" in said and "20.5 GB" in said  # as the notes have it
    assert "7 files" in said and "download them" in said and "recording 30 sites" in said and "64 text columns" in said


def test_mini_unet_in_chinese(capsys, monkeypatch):
    assert main(["doctor", "mini-unet", "--language", "zh"]) == 0
    said = capsys.readouterr().out
    assert "可以这样运行" in said and "64x64" in said and "77 列" in said
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    assert language_of(None) == "en"
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert language_of(None) == "zh" and language_of("en") == "en"
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert language_of(None) == "en"


def test_a_hub_id_whose_configs_were_downloaded(saved, tmp_path, capsys, monkeypatch):
    """The hub's cache as `hf download` leaves it. Without network, which a test must not need."""
    repository = tmp_path / "models--somebody--flux"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(saved("flux"), repository / "snapshots" / commit, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert main(["doctor", "somebody/flux", "--size", "32", "--language", "en"]) == 0
    said = capsys.readouterr().out
    assert "family flux" in said and "download them" in said and "recording 5 sites" in said
    assert main(["doctor", "somebody/other"]) == 2
    assert "hf download somebody/other --include" in capsys.readouterr().err


def test_what_offload_needs(saved):
    parts = ModelInfo.of_pipeline(saved("flux")).parts
    need = {way: needed_bytes(parts, "transformer", way, "bf16") for way in ("none", "model", "group", "sequential")}
    assert need["none"] == sum(2 * part.parameters for part in parts.values())
    assert need["model"] == max(2 * part.parameters for part in parts.values())
    assert need["sequential"] <= need["group"] <= need["model"] < need["none"]
    assert needed_bytes(parts, "transformer", "none", "fp32") == 2 * need["none"]
    assert needed_bytes(parts, "transformer", "none", "4bit") < need["none"]


@pytest.mark.parametrize(("free", "says"), [(10**6, "It will not run here"), (10**13, "Run it with")])
def test_what_fits(free, says, saved, capsys, monkeypatch):
    monkeypatch.setattr("toushi.cli.doctor.free_on", lambda device: free)
    assert main(["doctor", str(saved("flux")), "--language", "en", "--size", "64"]) == 0
    assert says in capsys.readouterr().out


def test_folders_that_are_not_whole(saved, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(saved("stable-diffusion"), folder)
    next((folder / "unet").glob("*.safetensors")).unlink()
    (folder / "vae" / "config.json").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "extra": ["somebodys_code", "Model"]}))
    assert main(["doctor", str(folder), "--language", "en"]) == 0
    said = capsys.readouterr().out
    assert "1 files missing" in said and "vae: unknown" in said and "whose code is not run here" in said
    (tmp_path / "model_index.json").write_text("[]")
    assert main(["doctor", str(tmp_path)]) == 2 and "download it again" in capsys.readouterr().err
    assert main(["doctor", "nobody/nothing"]) == 2 and "--include" in capsys.readouterr().err
    assert torch.get_default_device().type == "cpu"
