"""Z-Image in our own implementation and in diffusers': one folder, the same sites, the same maps."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.pipelines.diffusers_since import same_schedule
from tests.pipelines.tiny import PROMPT, made
from toushi import main
from toushi.probe.editing.editing import Edit, edit
from toushi.probe.models.z_image import ZImage
from toushi.probe.pipelines.load import load
from toushi.probe.recording.forecast import CELL_BYTES, forecast
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace

SIZE = (32, 48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("models") / "tiny-z-image"
    made("z-image").save_pretrained(home)
    return home


def drawn(folder, engine, out, guidance, *more):
    arguments = [
        "trace",
        PROMPT,
        "--model",
        str(folder),
        "--engine",
        engine,
        "--guidance",
        guidance,
        "--negative",
        "the",
    ]
    arguments = arguments if float(guidance) else arguments[:-2]
    assert main([*arguments, *more, "--steps", "2", "--size", "32x48", "--out", str(out)]) == 0
    return open_trace(out)


@pytest.mark.parametrize("keep", ["heads", "mean", "sum"])
def test_the_forecast_of_maps_and_rest_is_exact(folder, tmp_path, keep):
    """To the byte, of what the step files hold beside the latents."""
    model = load(str(folder), "cpu")
    said = forecast(model, PROMPT, "the", steps=2, size=SIZE, guidance=3.0)
    with record(model, tmp_path / "run", keep=keep):
        model.sample(PROMPT, "the", steps=2, size=SIZE, guidance=3.0)
    written, rests = 0, 0
    for file in (tmp_path / "run").glob("s*_*.safetensors"):
        tensors = load_file(file)
        rests += sum(name.endswith("/rest") for name in tensors)
        written += sum(tensors[name].nbytes for name in tensors.keys() - {"latent"})
    files = 1 if keep == "sum" else 2
    cells = SIZE[0] // 2 * SIZE[1] // 2  # of the latents: the tiny VAE halves once
    assert said.disk[keep] == written + files * cells * CELL_BYTES
    assert rests == files * 2 * 2  # branches, layers


@same_schedule
@pytest.mark.parametrize("guidance", [pytest.param("0", marks=pytest.mark.slow), "3"])
def test_both_engines_are_recorded_alike(folder, tmp_path, guidance):
    own, theirs = (drawn(folder, engine, tmp_path / engine, guidance) for engine in ("own", "diffusers"))
    assert own.verify() == [] and theirs.verify() == []
    assert own.sites == theirs.sites and own.branches == theirs.branches
    assert own.manifest.model.name == theirs.manifest.model.name == folder.name  # which weights drew
    for branch in own.branches:
        assert own.tokens(branch) == theirs.tokens(branch) and own.words(branch) == theirs.words(branch)
        assert np.allclose(own.encoder_states(branch), theirs.encoder_states(branch), atol=1e-5)
        for step in own.steps:
            ours, other = (t.attention(branch=branch, steps=step).values for t in (own, theirs))
            assert np.abs(ours - other).max() < 5e-4  # both are stored in fp16
    assert np.abs(own.latent(1) - theirs.latent(1)).max() < 1e-4
    assert np.abs(own.image().astype(int) - theirs.image().astype(int)).max() <= 1


def test_recording_our_own_changes_nothing(folder, tmp_path):
    model = load(str(folder), "cpu")
    assert isinstance(model, ZImage)
    prompts = [PROMPT, "the moon"]
    plain = model.sample(prompts, "blue", steps=2, guidance=3.0, size=SIZE, seed=[0, 1])
    with record(model, tmp_path / "run") as recording:
        pictures = model.sample(prompts, "blue", steps=2, guidance=3.0, size=SIZE, seed=[0, 1])
        model.denoise(model.initial_latents(1, SIZE, 0, None, 1.0), 1.0, PROMPT)
    assert all(np.array_equal(one, other) for one, other in zip(pictures, plain))
    first, second, alone = (open_trace(path) for path in recording.traces)
    assert [first.prompt, second.prompt, alone.prompt] == [*prompts, PROMPT]
    assert first.branches == ["cond", "uncond"] and alone.branches == ["cond"]
    assert not first.verify() and not second.verify() and not alone.verify()
    assert first.heat_map("cat").shape == (8, 12)
    assert not any(m._forward_pre_hooks for m in model.transformer.modules())


@same_schedule
def test_both_engines_are_edited_alike(folder, tmp_path):
    """Knocked-out words, a head and a layer of the encoder, in two prompts of different lengths."""
    prompts, noise = [PROMPT, "a red moon and a moon"], []
    edits = [
        Edit("transformer.layers.*", "zero", word=(0, 3), steps="1:"),
        Edit("transformer.layers.0.attention", "scale", head=1, factor=0.5),
        Edit("text_encoder.layers.1", "scale", word=(0, 3), factor=2.0),
    ]
    for engine in ("own", "diffusers"):
        model = load(str(folder), "cpu", engine=engine)
        with edit(model, edits), record(model, tmp_path / engine, dtype="float32"):
            if engine == "own":
                model.sample(prompts, "the", steps=2, guidance=3.0, size=SIZE, seed=[0, 1])
            else:
                model(
                    list(prompts),
                    negative_prompt=["the", "the"],
                    num_inference_steps=2,
                    guidance_scale=3.0,
                    height=SIZE[0],
                    width=SIZE[1],
                    generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
                )
        noise.append([open_trace(tmp_path / engine / number).latent(1).values for number in ("000", "001")])
    for ours, theirs in zip(*noise):
        assert np.abs(ours - theirs).max() < 1e-4
    model = load(str(folder), "cpu")
    with record(model, tmp_path / "plain"):
        model.sample(prompts, "the", steps=2, guidance=3.0, size=SIZE, seed=[0, 1])
    assert np.abs(open_trace(tmp_path / "plain" / "000").latent(1).values - noise[0][0]).max() > 1e-3


@same_schedule
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), pytest.param("bf16", 0.05, marks=pytest.mark.slow)])
def test_how_far_apart_the_engines_are(folder, tmp_path, dtype, tolerance):
    """The latents after two steps. docs/performance says both numbers."""
    own, theirs = (drawn(folder, e, tmp_path / e, "3", "--dtype", dtype) for e in ("own", "diffusers"))
    difference = np.abs(own.latent(1) - theirs.latent(1)).max()
    assert difference < tolerance
