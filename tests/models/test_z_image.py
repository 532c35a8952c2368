"""Z-Image's pipeline against diffusers', on tiny random weights in the released folder layout."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImageImg2ImgPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from tests.pipelines.diffusers_since import same_schedule
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import PromptCut
from toushi.probe.models.samplers import shifted_times
from toushi.probe.models.z_image import MAX_TOKENS, ZImage, first_step, guided_velocity

SHORT, LONG = "猫", "左边是一只𰻝𰻝面色的猫头鹰🦉，右边是 a red circle，夜晚，月亮在河边的银行上面" * 2
NEGATIVE = "模糊"
SHIFT = 3.0
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([SHORT, LONG, NEGATIVE, "user assistant"], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[2])
    wrapped.chat_template = TEMPLATE
    return wrapped


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random and of some weight, so that nothing can be left out unnoticed."""
    for name, parameter in module.named_parameters():
        inner = parameter.ndim > 1 and "pad_token" not in name
        fan_in = parameter[0].numel() if inner else 10
        parameter.data.normal_(1.0 if parameter.ndim == 1 and "bias" not in name else 0.0, fan_in**-0.5)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pipeline that diffusers built and saved, its transformer in several files."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = ZImageTransformer2DModel(
            in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
            axes_dims=[8, 4, 4], axes_lens=[1024, 32, 32],
        )  # fmt: skip
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=16,
            block_out_channels=[32, 64], scaling_factor=0.3611, shift_factor=0.1159,
        )  # fmt: skip
        language = Qwen3Config(
            hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
            head_dim=8, vocab_size=len(tokenizer), max_position_embeddings=1024,
        )  # fmt: skip
        pipeline = ZImagePipeline(
            FlowMatchEulerDiscreteScheduler(shift=SHIFT),
            randomised(vae),
            randomised(Qwen3Model(language)),
            tokenizer,
            randomised(transformer),
        )
    path = tmp_path_factory.mktemp("z-image")
    pipeline.save_pretrained(path, max_shard_size="100KB")
    return path


@pytest.fixture(scope="module")
def model(folder) -> ZImage:
    return ZImage.from_folder(folder, torch.float32)


@pytest.fixture(scope="module")
def released(folder) -> ZImagePipeline:
    pipeline = ZImagePipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents_of(model: ZImage, *arguments, **settings) -> torch.Tensor:
    """What the last step leaves."""
    seen = []
    model.sample(*arguments, callback=lambda index, latents: seen.append(latents), **settings)
    return seen[-1]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@same_schedule
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (dict(guidance=3.0), dict(guidance_scale=3.0)),
        (dict(guidance=0.0), dict(guidance_scale=0.0)),
        (dict(guidance=5.0, normalisation=0.7), dict(guidance_scale=5.0, cfg_normalization=0.7)),
        (dict(guidance=5.0, truncation=0.3), dict(guidance_scale=5.0, cfg_truncation=0.3)),
    ],
)
def test_latents_are_those_of_diffusers(model, released, ours, theirs):
    """Four steps, two prompts of different lengths, not square."""
    latents = latents_of(model, [SHORT, LONG], NEGATIVE, steps=4, size=(24, 40), seed=[1, 2], **ours)
    expected = released(
        [SHORT, LONG], 24, 40, 4, negative_prompt=[NEGATIVE] * 2, generator=generators(1, 2), output_type="latent",
        **theirs,
    ).images  # fmt: skip
    assert latents.shape == expected.shape == (2, 16, 12, 20)
    assert (latents - expected).abs().max() <= 1e-5


def test_each_setting_of_guidance_changes_the_latents(model):
    """Or the comparison above would compare nothing."""
    settings = [{}, dict(guidance=5.0), dict(guidance=5.0, normalisation=0.7), dict(guidance=5.0, truncation=0.3)]
    results = [latents_of(model, SHORT, NEGATIVE, steps=4, size=24, **one) for one in settings]
    for i, a in enumerate(results):
        assert all((a - b).abs().max() > 1e-2 for b in results[:i])


@same_schedule
def test_the_picture_is_that_of_diffusers(model, released):
    ours = model.sample(SHORT, steps=2, size=(24, 40), seed=3)
    theirs = released(SHORT, 24, 40, 2, guidance_scale=0.0, generator=generators(3)).images[0]
    assert ours.size == theirs.size == (40, 24)
    assert abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1
    assert np.asarray(ours).std() > 5


@same_schedule
@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_a_run_from_an_image_is_that_of_diffusers(model, released, strength):
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    pipeline = ZImageImg2ImgPipeline(**released.components)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        SHORT, image, strength, num_inference_steps=5, guidance_scale=3.0, negative_prompt=NEGATIVE,
        generator=generators(4), output_type="latent",
    ).images  # fmt: skip
    settings = dict(steps=5, guidance=3.0, seed=4, image=image, strength=strength)
    assert (latents_of(model, SHORT, NEGATIVE, **settings) - expected).abs().max() <= 1e-5


def test_text_is_that_of_diffusers_also_where_it_is_cut(model, released):
    prompts = ["", SHORT, LONG, LONG * 12]
    with pytest.warns(PromptCut, match="assistant"):
        text = model.encode_text(prompts)
    expected, _ = released.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    assert text.prompts == tuple(prompts)
    assert [len(ids) for ids in text.ids] == [len(states) for states in expected]
    assert len(text.ids[-1]) == MAX_TOKENS
    for ours, theirs in zip(text.states, expected):
        assert (ours - theirs).abs().max() <= 1e-5
    assert model.tokenizer.decode(text.ids[1]) == f"<|im_start|>user\n{SHORT}<|im_end|>\n<|im_start|>assistant\n"


def test_one_step_without_guidance_is_one_evaluation(model):
    begin = model.initial_latents(2, (24, 40), 5, None, 1.0)
    latents = latents_of(model, [SHORT, LONG], steps=1, size=(24, 40), seed=5)
    assert (begin - model.denoise(begin, 1.0, [SHORT, LONG]) - latents).abs().max() <= 1e-5
    times = torch.tensor([1.0, 0.5])
    both = model.denoise(begin, times, SHORT)
    assert (both[1:] - model.denoise(begin[1:], 0.5, SHORT)).abs().max() <= 1e-5


def test_the_schedule_is_the_released_one_to_the_last_bit(model):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    for steps in (1, 4, 5, 8, 50):
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
        model.scheduler.set_timesteps(steps)
        assert torch.equal(model.scheduler.times, scheduler.sigmas)
        torch.testing.assert_close(model.scheduler.times, shifted_times(steps, SHIFT).float())


def test_guidance_is_a_line_and_normalisation_a_bound():
    cond, uncond = torch.randn(2, 3, 16, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    assert torch.equal(guided_velocity(cond, uncond, 0.0), cond)
    torch.testing.assert_close(guided_velocity(cond, cond, 7.0), cond)
    bound = guided_velocity(cond, uncond, 7.0, 0.5)
    torch.testing.assert_close(bound.flatten(1).norm(dim=1), 0.5 * cond.flatten(1).norm(dim=1))
    torch.testing.assert_close(guided_velocity(cond, uncond, 7.0, 99.0), guided_velocity(cond, uncond, 7.0))


def test_a_picture_survives_the_vae_scaling(model):
    """decode(encode(x)) goes through the VAE alone: the two scalings cancel."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    expected = model.vae.decode(model.vae.encode(pixels).latent_dist.mode()).sample
    torch.testing.assert_close(model.decode(model.encode(image)), expected, atol=1e-4, rtol=1e-4)


def test_files_are_read_one_by_one_in_the_dtype_that_was_asked_for(folder, model):
    index = json.loads((folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    half = ZImage.from_folder(folder)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    picture = half.sample(SHORT, NEGATIVE, steps=2, guidance=2.0, size=24)
    assert picture.size == (24, 24)
    for name, weight in half.transformer.state_dict().items():
        assert torch.equal(weight, model.transformer.state_dict()[name].bfloat16())


def test_a_folder_with_a_file_missing_or_another_schedule_is_refused(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    path = broken / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(path.read_text())
    last = max(index["weight_map"].values())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != last}
    path.write_text(json.dumps(index))
    with pytest.raises(ToushiError, match="lacks"):
        ZImage.from_folder(broken)
    schedule = broken / "scheduler" / "scheduler_config.json"
    schedule.write_text(json.dumps(json.loads(schedule.read_text()) | {"use_dynamic_shifting": True}))
    with pytest.raises(ToushiError, match="fixed shift"):
        ZImage.from_folder(broken)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(size=(24, 30)), "multiples of 4 pixels, but 24x30"),
        (dict(seed=[1, 2]), "one for each of 1 prompts"),
        (dict(image=Image.new("RGB", (24, 30))), "but 30x24"),
        (dict(image=Image.new("RGB", (24, 24)), size=24), "resize the image"),
        (dict(image=Image.new("RGB", (24, 24)), strength=1.5), "strength must be"),
    ],
)
def test_errors_say_what_came(model, settings, message):
    with pytest.raises(ToushiError, match=message):
        model.sample(SHORT, **dict(steps=4, size=None if "image" in settings else 24) | settings)


def test_strength_enters_the_schedule_where_diffusers_does(released):
    pipeline = ZImageImg2ImgPipeline(**released.components)
    for steps in (1, 4, 9, 50):
        pipeline.scheduler.set_timesteps(steps)
        for strength in (0.05, 0.3, 0.6, 0.7, 0.9, 1.0):
            _, left = pipeline.get_timesteps(steps, strength, "cpu")
            if left:
                assert first_step(steps, strength) == steps - left
