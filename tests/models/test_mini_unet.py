"""Laws of the default model, on random weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from toushi.hooks.watched_modules import is_watched
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import MiniUNet, PromptCut, weights_sha256
from toushi.probe.models.prompt_batch import concat_prompts
from toushi.probe.models.text_encoder import apply_rope
from toushi.probe.pipelines.load import load, model_files
from toushi.probe.pipelines.model_index import UnknownModel

SHORT, LONG = "猫", "左边是一只𰻝𰻝面色的猫头鹰🦉，右边是 a red circle，夜晚"


@pytest.fixture(scope="module")
def model() -> MiniUNet:
    return reusing(MiniUNet.tiny())


def reusing(model: MiniUNet) -> MiniUNet:
    """The model as `load` gives it: a prompt that was encoded is not encoded again."""
    model.is_watched = is_watched
    return model


def pixels(picture) -> np.ndarray:
    return np.asarray(picture, dtype=int)


def test_a_seed_means_one_picture(model):
    first, again, other = (model.sample(LONG, steps=2, seed=s) for s in (1, 1, 2))
    assert (pixels(first) == pixels(again)).all()
    assert (pixels(first) != pixels(other)).any()


def test_the_prompt_and_the_negative_prompt_change_the_picture(model):
    plain = pixels(model.sample(SHORT, steps=2))
    assert (plain != pixels(model.sample("月亮", steps=2))).any()
    assert (plain != pixels(model.sample(SHORT, "月亮", steps=2))).any()


def test_a_batch_draws_what_each_prompt_draws_alone(model):
    together = model.sample([SHORT, LONG], steps=3)
    alone = [model.sample(p, steps=3) for p in (SHORT, LONG)]
    for a, b in zip(together, alone):
        assert abs(pixels(a) - pixels(b)).max() <= 1  # rounding to 8 bits after sums in another order


def test_padding_is_invisible(model):
    alone, _ = model.encode_prompt([SHORT], None)
    padded, _ = model.encode_prompt([SHORT, LONG], None)
    length = alone.states.shape[1]
    torch.testing.assert_close(padded.states[:1, :length], alone.states, rtol=1e-4, atol=1e-5)
    latents, time = torch.randn(2, 8, 16, 16), torch.tensor([0.7, 0.2])
    long, _ = model.encode_prompt([LONG], None)
    torch.testing.assert_close(
        model.unet(latents, time, concat_prompts(alone, long)), model.unet(latents, time, padded), rtol=1e-4, atol=1e-5
    )


def test_keys_and_values_computed_once_change_nothing(model):
    text, _ = model.encode_prompt([LONG], None)
    latents, time = torch.randn(1, 8, 16, 16), torch.tensor([0.5])
    assert torch.equal(model.unet(latents, time, text), model.unet(latents, time, model.unet.read_text(text)))


def test_guidance_of_one_is_the_conditional_branch_alone(model):
    calls = []
    hook = model.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        model.sample(SHORT, steps=2, guidance=1)
        model.sample(SHORT, steps=2, guidance=2)
    finally:
        hook.remove()
    assert calls == [1, 1, 2, 2]


def test_denoise_is_the_evaluation_that_sampling_makes(model):
    seen = []
    hook = model.unet.register_forward_hook(lambda _, args, out: seen.append((args[0], args[1], out)))
    try:
        model.sample(SHORT, steps=1, guidance=1)
    finally:
        hook.remove()
    latents, time, velocity = seen[0]
    torch.testing.assert_close(model.denoise(latents, time, SHORT), velocity)


@pytest.mark.parametrize("size", [(32, 96), 48, (64, 16)])
def test_any_multiple_of_sixteen_is_a_size(model, size):
    picture = model.sample(SHORT, steps=1, size=size)
    height, width = size if isinstance(size, tuple) else (size, size)
    assert picture.size == (width, height)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(dtype):
    assert MiniUNet.tiny().to(dtype).sample(LONG, steps=1).size == (64, 64)


def test_heun_evaluates_twice_but_for_the_last_step(model):
    calls = []
    hook = model.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        model.sample(SHORT, steps=3, sampler="heun")
    finally:
        hook.remove()
    assert len(calls) == 5


def test_the_cache_returns_what_the_encoder_would(model):
    model.embedding_cache.clear()
    first, _ = model.encode_prompt([LONG], None)
    cached, _ = model.encode_prompt([LONG], None)
    assert cached.states is first.states
    for n in range(100):
        model.encode_prompt([f"{n}只猫"], None)
    assert len(model.embedding_cache) <= 64


def test_without_a_way_to_know_who_watches_no_text_is_reused():
    model = MiniUNet.tiny()
    first, again = model.encode_prompt([SHORT], None)[0], model.encode_prompt([SHORT], None)[0]
    assert again.states is not first.states and torch.equal(again.states, first.states)


def test_a_long_prompt_warns_with_the_words_lost(model):
    with pytest.warns(PromptCut, match="河马"):
        model.encode_prompt(["猫和狗，" * 40 + "河马"], None)


def test_save_and_load_is_identity(model, tmp_path):
    model.save(tmp_path, torch.float32)
    again = load(str(tmp_path), "cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    assert (pixels(model.sample(LONG, steps=1)) == pixels(again.sample(LONG, steps=1))).all()
    assert len(again.weights_sha256) == 64


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(steps=0), "at least 1"),
        (dict(size=50), "multiples of 16"),
        (dict(sampler="eular"), "euler"),
        (dict(prompt=[]), "at least one prompt"),
    ],
)
def test_bad_input_says_what_was_expected(model, wrong, message):
    with pytest.raises(ToushiError, match=message):
        model.sample(**({"prompt": SHORT} | wrong))


def test_an_unknown_model_names_the_known(tmp_path):
    with pytest.raises(UnknownModel, match="mini-unet|config.json"):
        load("mini-unt")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ToushiError):
        load(str(tmp_path))


def test_each_prompt_may_have_a_seed_of_its_own(model):
    together = model.sample([SHORT, SHORT], steps=1, seed=[1, 2])
    for picture, seed in zip(together, (1, 2)):
        assert abs(pixels(picture) - pixels(model.sample(SHORT, steps=1, seed=seed))).max() <= 1
    with pytest.raises(ToushiError, match="2 prompts, but 3"):
        model.sample([SHORT, SHORT], steps=1, seed=[1, 2, 3])


def test_the_cache_outlives_neither_new_weights_nor_an_edit():
    model = reusing(MiniUNet.tiny())
    before, _ = model.encode_prompt([SHORT], None)
    model.load_state_dict(MiniUNet.tiny(seed=1).state_dict())
    after, _ = model.encode_prompt([SHORT], None)
    assert not torch.equal(before.states, after.states)
    hook = model.encoder.layers[3].register_forward_hook(lambda module, args, output: output * 0)
    try:
        edited, _ = model.encode_prompt([SHORT], None)
    finally:
        hook.remove()
    assert not torch.equal(after.states, edited.states)


def test_a_causal_encoder_sees_nothing_of_what_comes_after():
    both = MiniUNet.tiny()
    causal = MiniUNet(replace(both.config, text=replace(both.config.text, causal=True)), both.tokenizer)
    causal.load_state_dict(both.state_dict())
    ids = torch.tensor([[1, 20, 30, 40, 50, 0], [1, 20, 30, 90, 80, 70]])
    mask = torch.tensor([[True] * 5 + [False], [True] * 6])
    for model, alike in ((causal, True), (both, False)):
        with torch.no_grad():
            states = model.encoder(ids, mask)
        assert torch.allclose(states[0, :3], states[1, :3], atol=1e-6) == alike
    with torch.no_grad():
        longer = causal.encoder(ids[:1], mask[:1])
        shorter = causal.encoder(ids[:1, :3], mask[:1, :3])
    torch.testing.assert_close(longer[:, :3], shorter)


def test_what_a_model_shares_is_not_stored_again(tmp_path):
    lender = load("mini-unet", "cpu")
    vae = {k: v.half() for k, v in lender.state_dict().items() if k.startswith("vae.")}
    shares = {"model": "mini-unet", "parts": {"vae": weights_sha256(vae)}}
    small = MiniUNet.tiny().config
    text = replace(small.text, vocab_size=lender.tokenizer.vocab_size)
    model = MiniUNet(replace(small, text=text, vae=lender.config.vae, shares=shares), lender.tokenizer)
    model.vae.load_state_dict(lender.vae.state_dict())
    model.save(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    assert (tmp_path / "model.safetensors").stat().st_size < 1_500_000  # without the VAE's weights
    again = load(str(tmp_path), "cpu")
    assert all(map(torch.equal, again.vae.parameters(), lender.vae.parameters()))
    assert torch.equal(again.encoder.embed.token.weight, model.encoder.embed.token.weight.half().float())
    assert model_files(str(tmp_path)) == [tmp_path / "model.safetensors", *model_files("mini-unet")]

    config = json.loads((tmp_path / "config.json").read_text())
    config["shares"]["parts"]["vae"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownModel, match=r"another vae than that of mini-unet: 0{12}, not "):
        load(str(tmp_path), "cpu")


def test_scores_of_the_encoder_know_how_far_tokens_stand_apart_and_stay_bounded():
    vectors = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(2, 1, 12, 8)
    scores = apply_rope(vectors[0]) @ apply_rope(vectors[1]).mT
    for distance in (-3, 0, 5):  # the same q and k everywhere: only the distance counts
        along = scores[0].diagonal(distance)
        assert torch.allclose(along, along[0].expand_as(along), atol=1e-5)
    assert not torch.allclose(scores[0].diagonal(1)[0], scores[0].diagonal(4)[0])
    assert torch.allclose(apply_rope(vectors[0]).norm(dim=-1), vectors[0].norm(dim=-1))
