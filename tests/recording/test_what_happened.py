"""What is recorded is what happened: every map, branch, step and layer."""

import json
import warnings

import numpy as np
import pytest
import torch

from tests.recording.tiny_runs import LONG, PROMPT, draw, explicit, recorded, same
from toushi.probe.models.mini_unet import PromptCut
from toushi.probe.models.text_encoder import apply_rope
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace


def test_maps_are_the_models_attention(model, tmp_path):
    time = 0.7
    latents = model.noise(1, 64, 64, seed=3)
    with record(model, tmp_path / "run", dtype="float32"):
        model.denoise(latents, time, PROMPT)
    trace = open_trace(tmp_path / "run")
    assert trace.times == [time] and trace.complete
    for site, found in trace.attention(grid="native").items():
        truth = explicit(model, PROMPT, latents, time, site)
        assert np.abs(found.values[0].reshape(truth.shape) - truth.numpy()).max() < 2e-6


def test_text_columns_sum_to_one(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run")
    for branch in trace.branches:
        for found in trace.attention(branch=branch, grid="native").values():
            assert np.abs(found.sum("token") - 1).max() < 1e-3
        assert abs(float(trace.mass(branch).sum()) + trace.mass(branch).attrs["rest"] - 1) < 1e-3


def test_every_site_and_step_is_there(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", steps=4)
    cross = {name: site for name, site in trace.sites.items() if site.kind == "cross"}
    assert [site.grid for site in cross.values()] == [(16, 16), (8, 8), (4, 4), (8, 8), (16, 16)]
    assert list(cross) == [
        "unet.down.0.cross_attention",
        "unet.down.1.cross_attention",
        "unet.middle.cross_attention",
        "unet.up.0.cross_attention",
        "unet.up.1.cross_attention",
    ]
    assert trace.steps == [0, 1, 2, 3]
    assert trace.times == model.scheduler.times[:-1].tolist()
    assert trace.preview(0).shape == (64, 64, 3)


def test_conditional_and_unconditional_are_told_apart(model, tmp_path):
    """The maps of each branch are those of its own text, evaluated alone at the same latents."""
    negative = "一只猫头鹰"
    _, trace = recorded(model, tmp_path / "run", negative=negative, keeping={"dtype": "float32"})
    assert [token.text for token in trace.tokens("uncond")][1:-1] == [
        token.text for token in model.tokenizer.encode(negative).tokens
    ][1:-1]
    assert trace.manifest.prompt == PROMPT and trace.manifest.negative_prompt == negative
    latents = model.noise(1, 64, 64, seed=0)
    for branch, text in (("cond", PROMPT), ("uncond", negative)):
        for site, found in trace.attention(branch=branch, steps=0, grid="native").items():
            truth = explicit(model, text, latents, 1.0, site)
            assert np.abs(found.values[0].reshape(truth.shape) - truth.numpy()).max() < 1e-5


def test_without_guidance_there_is_no_second_branch(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", guidance=1.0)
    assert trace.branches == ["cond"] and trace.manifest.negative_prompt is None


@pytest.mark.parametrize("prompt", ["", "𰻝龘", "🦉 owl，猫", "猫" * 20, "  ", "a red circle"])
def test_hard_prompts(model, tmp_path, prompt):
    plain = draw(model, prompt)
    picture, trace = recorded(model, tmp_path / "run", prompt)
    assert np.array_equal(picture, plain) and not trace.verify()
    assert trace.prompt == prompt and len(trace.tokens()) == len(model.tokenizer.encode(prompt).ids)


def test_a_prompt_that_equals_the_negative_one(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", PROMPT, negative=PROMPT)
    assert trace.branches == ["cond", "uncond"]
    a, b = (trace.attention(branch=branch) for branch in trace.branches)
    assert np.allclose(a, b, atol=1e-6, equal_nan=True)


def test_a_prompt_that_is_cut(model, tmp_path):
    with pytest.warns(PromptCut, match="cut: .*猫头鹰"), record(model, tmp_path / "run"):
        draw(model, LONG)
    trace = open_trace(tmp_path / "run")
    assert 74 <= len(trace.tokens()) <= 77 and trace.prompt == LONG and not trace.verify()


def test_of_two_evaluations_in_a_step_the_first_is_kept(model, tmp_path):
    _, euler = recorded(model, tmp_path / "euler", steps=2)
    _, heun = recorded(model, tmp_path / "heun", steps=2, sampler="heun")
    assert heun.manifest.evaluations == 2 and heun.manifest.kept_evaluation == "first"
    assert euler.manifest.evaluations == 1
    assert [line.evaluations for line in heun.files.lines.values()] == [2, 1]
    # Both begin at the same noise, so only what came first is the same.
    assert same(euler.attention(steps=0), heun.attention(steps=0))
    assert not same(euler.attention(steps=1), heun.attention(steps=1))
    assert np.array_equal(euler.preview(0), heun.preview(0))


@pytest.mark.parametrize("size", [(32, 96), (96, 32), (48, 80), (16, 16), (16, 112)])
def test_pictures_that_are_not_square(model, tmp_path, size):
    picture, trace = recorded(model, tmp_path / "run", size=size)
    assert (picture.height, picture.width) == size == trace.manifest.size
    grids = [site.grid for site in trace.sites.values() if site.kind == "cross"]
    assert grids[0] == (size[0] // 4, size[1] // 4) and grids[2] == (size[0] // 16, size[1] // 16)
    assert trace.preview(0).shape == (*size, 3) and not trace.verify()


def test_the_encoders_layers_are_recorded(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", negative="夜晚")
    text = model.encode_text([PROMPT])
    states = trace.encoder_states()
    assert states.shape == (13, len(text.encodings[0].ids), 32)
    ids = torch.tensor([text.encodings[0].ids])
    assert np.array_equal(states[0], model.encoder.embed(ids)[0])
    torch.testing.assert_close(model.encoder.norm(torch.from_numpy(states.values[-1])), text.states[0])
    for layer in (0, 11):
        attention = trace.encoder_attention(layer, "uncond")
        length = len(model.tokenizer.encode("夜晚").ids)
        assert attention.shape == (2, length, length)
        assert np.abs(attention.sum("token") - 1).max() < 1e-5
    layer = model.encoder.layers[4].attention
    x = model.encoder.layers[4].attention_norm(torch.from_numpy(states.values[4]))
    q, k, _ = layer.to_qkv(x).unflatten(-1, (3, 2, -1)).permute(1, 2, 0, 3).double()
    q, k = (apply_rope(torch.nn.functional.rms_norm(part, (16,))) for part in (q, k))
    truth = (q @ k.mT * layer.QK_SCALE * 16**-0.5).softmax(-1)
    assert np.abs(trace.encoder_attention(4).values - truth.numpy()).max() < 2e-6


def test_the_manifest_says_how_to_do_it_again(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", seed=5, guidance=2.5, sampler="heun")
    manifest = trace.manifest
    assert (manifest.seed, manifest.guidance, manifest.sampler) == (5, 2.5, "heun")
    assert manifest.size == (64, 64) and manifest.device == "cpu" and manifest.dtype == "float32"
    assert manifest.kernel == "flash-cpu" and manifest.threads == model.threads == 1
    assert manifest.model.name == "mini-unet"
    # torch.__version__ may add how it was built ("2.13.0+cu130") where the package's metadata does not.
    assert manifest.versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert manifest.edits == [] and manifest.argv is None and "git" in manifest.as_dict()
    assert trace.span("猫") == (3, 4)


def test_the_manifest_is_plain_json(model, tmp_path):
    recorded(model, tmp_path / "run")
    json.loads((tmp_path / "run/manifest.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_trace(tmp_path / "run")
