"""Texts that are kept on disk: the picture, its maps and its labels are those of a run without the cache."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from peft import LoraConfig

from tests.pipelines.tiny import NEGATIVE, PROMPT, QUICK, draw, families, made
from toushi.probe.models.mini_unet import PromptCut
from toushi.probe.pipelines.embedding_cache import NotCached, cache_encode_prompt
from toushi.probe.pipelines.load import load
from toushi.probe.pipelines.load_options import BadOption
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace


def kept(name, folder):
    pipeline = made(name)
    cache_encode_prompt(pipeline, family_of(pipeline), folder)
    return pipeline


@contextmanager
def runs(pipeline):
    """The list of text encoders that ran inside."""
    ran = []
    encoders = [name for name in pipeline.components if name.startswith("text_encoder") and getattr(pipeline, name)]
    before = {name: getattr(pipeline, name).forward for name in encoders}

    def noting(name):
        def forward(*arguments, **named):
            ran.append(name)
            return before[name](*arguments, **named)

        forward.__signature__ = __import__("inspect").signature(before[name])
        return forward

    for name in encoders:
        getattr(pipeline, name).forward = noting(name)
    yield ran
    for name in encoders:
        del getattr(pipeline, name).forward


def cross(pipeline):
    return [name for name, site in family_of(pipeline).sites(pipeline).items() if site.kind == "cross"]


@pytest.mark.parametrize("name", families(QUICK))
def test_a_text_that_is_kept_changes_nothing(name, tmp_path):
    plain = made(name)
    with record(plain, tmp_path / "plain", sites=cross(plain), keep="mean"):
        truth = draw(plain, negative=NEGATIVE)[0]
    for number in range(2):
        pipeline = kept(name, tmp_path / "texts")
        with runs(pipeline) as ran, record(pipeline, tmp_path / str(number), sites=cross(pipeline), keep="mean"):
            assert np.array_equal(draw(pipeline, negative=NEGATIVE)[0], truth)
        assert bool(ran) == (number == 0)
        trace, other = open_trace(tmp_path / str(number)), open_trace(tmp_path / "plain")
        assert trace.prompt == PROMPT and trace.verify() == []
        for branch in other.branches:
            assert trace.tokens(branch) == other.tokens(branch) and trace.words(branch) == other.words(branch)
            for site in cross(plain):
                one, two = (t.files.step(1).read(f"{site}/{branch}") for t in (trace, other))
                assert np.array_equal(one, two)
    names = [path.name for path in (tmp_path / "texts").iterdir()]
    assert names and {file.rpartition(".")[2] for file in names} == {"json", "safetensors"}
    assert all(len(file.partition(".")[0]) == 64 for file in names)  # digests: no prompt becomes a path


def test_encoder_sites_want_the_encoder_to_run(tmp_path):
    pipeline = kept("stable-diffusion", tmp_path / "texts")
    draw(pipeline)
    with runs(pipeline) as ran, record(pipeline, tmp_path / "run"):
        draw(pipeline)
    assert ran and open_trace(tmp_path / "run").encoder_states().shape[0] == 4


def test_somebody_elses_hook_wants_it_too(tmp_path):
    pipeline = kept("stable-diffusion", tmp_path / "texts")
    draw(pipeline)
    layer = family_of(pipeline).encoder_layers(pipeline)[0]
    handle = layer.register_forward_hook(lambda *everything: None)
    with runs(pipeline) as ran:
        draw(pipeline)
    handle.remove()
    assert ran


def test_another_prompt_encoder_length_or_tokenizer_is_another_text(tmp_path):
    def ran(change=None, prompt=PROMPT, **named):
        torch.manual_seed(0)
        pipeline = made("flux")
        if change:
            change(pipeline)
        cache_encode_prompt(pipeline, family_of(pipeline), tmp_path)
        with runs(pipeline) as found:
            draw(pipeline, prompt, steps=1, **named)
        return bool(found)

    def other_weights(pipeline):
        next(pipeline.text_encoder_2.parameters()).data[0, 0] += 1e-3

    assert ran() and not ran()
    assert ran(prompt="../../../etc/passwd") and not ran(prompt="../../../etc/passwd")
    assert ran(other_weights) and not ran(other_weights)
    assert ran(max_sequence_length=32)
    assert ran(lambda pipeline: setattr(pipeline.tokenizer_2, "model_max_length", 500))
    assert not ran()
    assert ran(lambda pipeline: pipeline.text_encoder_2.to(torch.bfloat16).to(torch.float32))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert not list(tmp_path.parent.glob("passwd*"))


def test_whether_an_empty_prompt_becomes_zeros_is_part_of_what_is_asked(tmp_path):
    pictures = []
    for zeros, folder in ((True, "texts"), (False, "texts"), (False, "others")):
        pipeline = made("stable-diffusion-xl")
        pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
        cache_encode_prompt(pipeline, family_of(pipeline), tmp_path / folder)
        pictures.append(draw(pipeline, negative=None, steps=1)[0])
    assert np.array_equal(pictures[1], pictures[2]) and not np.array_equal(pictures[0], pictures[1])


def test_weights_that_are_changed_after_loading(tmp_path):
    pipeline = kept("flux", tmp_path)
    draw(pipeline, steps=1)
    next(pipeline.text_encoder.parameters()).data += 1e-3
    with runs(pipeline) as ran, pytest.warns(NotCached, match="changed since it was loaded"):
        draw(pipeline, steps=1)
    assert ran


def test_each_scale_of_a_lora_is_another_text(tmp_path):
    """The scale of the call is an argument of `encode_prompt`, so it is part of the key."""
    plain, pipeline = made("stable-diffusion"), kept("stable-diffusion", tmp_path)
    for each in (plain, pipeline):
        torch.manual_seed(1)
        config = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
        each.text_encoder.add_adapter(config, "mine")
        each.lora_files = {"mine": {"file": "mine.safetensors", "sha256": "0" * 64}}  # as `load` notes it
    pictures = []
    for scale in (1.0, 0.3, 1.0, 0.3):
        with runs(pipeline) as ran:
            pictures += draw(pipeline, steps=1, cross_attention_kwargs={"scale": scale})
        assert np.array_equal(pictures[-1], draw(plain, steps=1, cross_attention_kwargs={"scale": scale})[0])
        assert bool(ran) == (len(pictures) <= 2)
    assert not np.array_equal(pictures[0], pictures[1])


@pytest.mark.parametrize("harm", ["cut", "link", "json"])
def test_what_is_damaged_is_encoded_anew(harm, tmp_path):
    pipeline = kept("flux", tmp_path / "texts")
    plain = draw(pipeline, steps=1, guidance=False)[0]
    (file,) = (tmp_path / "texts").glob("*.safetensors")
    (about,) = (tmp_path / "texts").glob("*.json")
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif harm == "link":
        file.rename(tmp_path / "outside")
        file.symlink_to(tmp_path / "outside")
    else:
        about.write_text(json.dumps({**json.loads(about.read_text()), "result": {"open": ["/etc/passwd"]}}))
    with runs(pipeline) as ran, pytest.warns(NotCached, match="damaged"):
        assert np.array_equal(draw(pipeline, steps=1, guidance=False)[0], plain)
    assert ran and not file.is_symlink()
    with runs(pipeline) as ran:
        assert np.array_equal(draw(pipeline, steps=1, guidance=False)[0], plain)
    assert not ran


def test_from_the_shell_with_our_own_engine(tmp_path, monkeypatch):
    from toushi import main

    monkeypatch.setattr("toushi.probe.models.z_image.MAX_TOKENS", 24)
    made("z-image").save_pretrained(tmp_path / "model")
    prompt = "the moon and the red cat " * 6  # longer than it reads
    with pytest.warns(PromptCut):
        plain = load(str(tmp_path / "model"), "cpu").sample(prompt, steps=1, size=32)
    model = load(str(tmp_path / "model"), "cpu", embedding_cache=tmp_path / "texts")
    for _ in range(2):
        with pytest.warns(PromptCut, match="cut: "):
            assert np.array_equal(model.sample(prompt, steps=1, size=32), plain)
    assert model.encode_prompt_cache.encoder_calls is not None
    options = ["--model", str(tmp_path / "model"), "--steps", "1", "--size", "32", "--no-record"]
    options += ["--embedding-cache", str(tmp_path / "texts"), "--out", str(tmp_path / "run")]
    assert main(["trace", prompt, *options]) == 0
    assert len(list((tmp_path / "texts").iterdir())) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(BadOption, match="choose another folder"):
        load(str(tmp_path / "model"), "cpu", embedding_cache=tmp_path / "file")
