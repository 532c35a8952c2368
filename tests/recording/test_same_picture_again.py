"""Two pictures that differ through arguments, scheduler, LoRAs or settings have manifests that name the cause."""

import base64
from collections.abc import Callable
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig

from tests.pipelines.tiny import draw, made
from tests.pipelines.variants import given, variant
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.recording.record import Uncompiled, record
from toushi.probe.trace.comparison import compare
from toushi.probe.trace.open import open_collection, open_trace

PROMPT = "a red cat"
FREE_U = {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6}
Change = Callable[[object], object] | None


def add_lora(pipeline, scale: int = 2, seed: int = 3) -> None:
    torch.manual_seed(seed)
    modules = ["to_q", "to_k", "to_v"]
    config = LoraConfig(r=2, lora_alpha=scale, init_lora_weights=False, target_modules=modules)
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    denoiser.add_adapter(config, "mine")


def set_scheduler(name: str, **config) -> Change:
    def change(pipeline):
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **config)

    return change


def set_padding(pipeline) -> None:
    """The trick that makes textures without seams."""
    for module in pipeline.unet.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.padding_mode = "circular"


def tile_vae(pipeline) -> None:
    pipeline.vae.enable_tiling()
    pipeline.vae.tile_latent_min_size = 8


def edit_weight(pipeline) -> None:
    next(pipeline.unet.parameters()).data *= 1.5


def with_lora(change: Change) -> tuple[Change, Change]:
    return add_lora, lambda pipeline: (add_lora(pipeline), change(pipeline))


# A pipeline; a change of its call, or of it (or a pair: both runs are changed); a field that must name the cause.
CHANGES = [
    ("stable-diffusion", {"eta": 1.0}, "arguments.eta"),
    ("stable-diffusion", {"guidance_rescale": 0.7}, "arguments.guidance_rescale"),
    ("stable-diffusion", {"seed": 1}, "seed"),
    ("stable-diffusion", {"latents": torch.ones(1, 4, 16, 16)}, "arguments.latents.sha256"),
    ("stable-diffusion-xl", {"clip_skip": 1}, "arguments.clip_skip"),
    ("stable-diffusion-xl", {"crops_coords_top_left": (64, 0)}, "arguments.crops_coords_top_left"),
    ("stable-diffusion-xl", {"original_size": (64, 64)}, "arguments.original_size"),
    ("stable-diffusion-xl", {"target_size": (64, 64)}, "arguments.target_size"),
    ("stable-diffusion-xl", {"denoising_end": 0.5}, "arguments.denoising_end"),
    ("stable-diffusion-xl", {"prompt_2": "a blue moon"}, "arguments.prompt_2"),
    ("flux", {"sigmas": [1.0, 0.2]}, "arguments.sigmas"),
    ("stable-diffusion-3", {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 1.0, "skip_layer_guidance_start": 0.0}, "arguments.skip_guidance_layers"),
    ("z-image", {"cfg_normalization": True}, "arguments.cfg_normalization"),
    ("lumina-2", {"cfg_trunc_ratio": 0.25}, "arguments.cfg_trunc_ratio"),
    ("pixart", {"timesteps": [900, 100]}, "arguments.timesteps"),
    ("flux", lambda pipeline: pipeline.to(torch.bfloat16), "dtype"),
    ("stable-diffusion", set_scheduler("EulerDiscreteScheduler"), "components.scheduler.type"),
    ("stable-diffusion", (set_scheduler("DPMSolverMultistepScheduler"), set_scheduler("DPMSolverMultistepScheduler", use_karras_sigmas=True)), "components.scheduler.config.use_karras_sigmas"),
    ("flux", lambda pipeline: pipeline.scheduler.set_shift(7.0), "components.scheduler.config.shift"),
    ("stable-diffusion", lambda pipeline: pipeline.enable_freeu(**FREE_U), "components.unet.settings.b1"),
    ("stable-diffusion", set_padding, "components.unet.settings.padding_mode"),
    ("stable-diffusion", lambda pipeline: pipeline.unet.to(torch.bfloat16).float(), "components.unet.weights_sample_sha256"),
    ("stable-diffusion", edit_weight, "components.unet.weights_sample_sha256"),
    ("stable-diffusion", lambda pipeline: pipeline.vae.register_to_config(scaling_factor=0.3), "components.vae.config.scaling_factor"),
    ("stable-diffusion", tile_vae, "components.vae.settings.use_tiling"),
    ("stable-diffusion", add_lora, "loras"),
    ("stable-diffusion", (add_lora, lambda pipeline: add_lora(pipeline, seed=4)), "loras"),
    ("stable-diffusion", with_lora(lambda pipeline: pipeline.unet.fuse_lora(lora_scale=0.5)), "loras"),
    ("stable-diffusion", with_lora(lambda pipeline: pipeline.unet.disable_adapters()), "loras"),
]  # fmt: skip


def record_picture(name: str, change: Change, folder, **call):
    """The picture of a new pipeline that was changed, whose trace is in the folder."""
    pipeline = made(name)
    if change is not None:
        change(pipeline)
    with record(pipeline, folder, keep="sum", steps=0):
        return draw(pipeline, PROMPT, **call)[0]


def differences(one, other) -> dict[str, tuple]:
    """Each fact of the two manifests that differs."""
    facts = compare(one, other, words=[]).facts
    return {name: (a, b) for name, a, b in facts.itertuples()}


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """unchanged(name) -> the picture without a change, and the folder of its trace."""
    home = tmp_path_factory.mktemp("unchanged")
    return cache(lambda name: (record_picture(name, None, home / name), home / name))


@pytest.mark.parametrize(("name", "change", "cause"), CHANGES, ids=[f"{name}-{cause}" for name, _, cause in CHANGES])
@pytest.mark.filterwarnings("ignore")
def test_manifests_differ_where_pictures_do(name, change, cause, unchanged, tmp_path):
    call = change if isinstance(change, dict) else {}
    before, after = change if isinstance(change, tuple) else (None, None if call else change)
    folder = tmp_path / "one"
    one, folder = (record_picture(name, before, folder), folder) if before is not None else unchanged(name)
    other = record_picture(name, after, tmp_path / "other", **call)
    assert not np.array_equal(one, other)
    assert cause in differences(folder, tmp_path / "other")


@pytest.mark.parametrize("name", ["stable-diffusion-xl", "flux", "z-image"])
def test_manifests_of_the_same_run_are_equal(name, tmp_path):
    manifests = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        record_picture(name, None, folder)
        manifests.append(open_trace(folder).manifest.as_dict())
    assert manifests[0] == manifests[1]


def test_our_own_model_too(tmp_path):
    model = MiniUNet.tiny(layers=2)
    changes = [{}, {"seed": 1}, {"guidance": 2.0}, {"sampler": "heun"}, {"negative": "夜晚"}, {"first_step": 1}]
    draw_small = {"steps": 2, "size": 32}
    with record(model, tmp_path, steps=1):
        pictures = [model.sample("猫", **draw_small, **change) for change in changes]
        model.scheduler.shift = 4.0
        pictures.append(model.sample("猫", **draw_small))
    paths = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    causes = [*(f"arguments.{name}" for change in changes[1:] for name in change), "components.scheduler.config.shift"]
    for picture, path, cause in zip(pictures[1:], paths[1:], causes, strict=True):
        assert not np.array_equal(picture, pictures[0])
        assert cause in differences(paths[0], path)


def test_a_lora_is_described_by_what_it_did(tmp_path):
    """A fused one ignores the scale of the call, others do not."""
    pipeline = made("stable-diffusion")
    add_lora(pipeline)
    pictures = []
    with record(pipeline, tmp_path, keep="sum", steps=0):
        for scale in (1.0, 0.3):
            pictures += draw(pipeline, cross_attention_kwargs={"scale": scale})
        pipeline.unet.fuse_lora()
        for scale in (1.0, 0.3):
            pictures += draw(pipeline, cross_attention_kwargs={"scale": scale})
    loras = [trace.manifest.loras[0] for trace in open_collection(tmp_path)]
    assert [(lora.scale, lora.fused) for lora in loras] == [(1.0, False), (0.3, False), (1.0, True), (1.0, True)]
    assert not np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[2], pictures[3])


def test_weights_that_a_lora_was_fused_into_are_known_when_it_is_gone(tmp_path):
    pipeline = made("stable-diffusion")
    samples = []
    for number, change in enumerate((None, add_lora, lambda _: pipeline.unet.fuse_lora())):
        if change is not None:
            change(pipeline)
        with record(pipeline, tmp_path / str(number), keep="sum", steps=0, hash_weights=True):
            draw(pipeline, PROMPT, steps=1)
        unet = open_trace(tmp_path / str(number)).manifest.components["unet"]
        samples.append((unet.weights_sample_sha256, unet.weights_sha256))
    assert samples[0][0] == samples[1][0] != samples[2][0]
    assert len({whole for _, whole in samples}) == 3


def test_a_generator_that_was_used_before(tmp_path):
    pipeline = made("flux")  # which makes its noise before its timesteps
    generator = torch.Generator().manual_seed(7)
    call = {"height": 32, "width": 32, "num_inference_steps": 1, "max_sequence_length": 48}
    with record(pipeline, tmp_path / "run", keep="sum"):
        for _ in range(2):
            picture = pipeline(PROMPT, generator=generator, **call).images[0]
    fresh, used = (trace.manifest for trace in open_collection(tmp_path / "run"))
    assert (fresh.seed, fresh.generator_state, used.seed) == (7, None, None)
    state = torch.frombuffer(bytearray(base64.b64decode(used.generator_state)), dtype=torch.uint8)
    again = pipeline(PROMPT, generator=torch.Generator().set_state(state), **call).images[0]
    assert np.array_equal(picture, again)


def test_the_place_in_the_batch_and_the_generator_of_each_picture(tmp_path):
    pipeline = made("stable-diffusion")
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    torch.rand(1, generator=generators[1])
    call = {"height": 32, "width": 32, "num_inference_steps": 1, "num_images_per_prompt": 2}
    with record(pipeline, tmp_path / "one", keep="sum"):
        pipeline(PROMPT, generator=torch.Generator().manual_seed(3), **call)
    with record(pipeline, tmp_path / "each", keep="sum"):
        pipeline(PROMPT, generator=generators, **call)
    manifests = [trace.manifest for folder in ("one", "each") for trace in open_collection(tmp_path / folder)]
    assert [manifest.batch_index for manifest in manifests] == [0, 1, 0, 1]
    assert [manifest.seed for manifest in manifests] == [3, 3, 3, None]
    assert [manifest.generator_state is None for manifest in manifests] == [True, True, True, False]


def test_autocast(tmp_path):
    pipeline, pictures = made("stable-diffusion"), []
    for folder, is_cast in ((tmp_path / "off", False), (tmp_path / "on", True)):
        with record(pipeline, folder, keep="sum"), torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
            pictures += draw(pipeline, PROMPT)
    assert not np.array_equal(*pictures)
    facts = differences(tmp_path / "off", tmp_path / "on")
    assert facts["autocast"] == (None, "bfloat16")


def test_a_compiled_module_warns_and_is_named(tmp_path):
    pipeline = made("stable-diffusion")
    pipeline.unet.compile(backend="eager")
    with pytest.warns(Uncompiled, match="unet of the model computes uncompiled"), record(pipeline, tmp_path / "run"):
        draw(pipeline, PROMPT, steps=1)
    components = open_trace(tmp_path / "run").manifest.components
    assert components["unet"].compiled and not components["vae"].compiled


@pytest.mark.parametrize(("start", "strength"), [(None, 0.5), (0.5, None)])
def test_the_strength_is_there_only_if_it_was_used(start, strength, tmp_path):
    name = "StableDiffusionXLImg2ImgPipeline"
    pipeline = variant(name)
    arguments = given(name, pipeline, (32, 32)) | {"strength": 0.5, "denoising_start": start}
    with pytest.warns(UserWarning), record(pipeline, tmp_path / "run"):
        draw(pipeline, steps=4, **arguments)
    manifest = open_trace(tmp_path / "run").manifest
    assert manifest.strength == strength and manifest.arguments.get("denoising_start") == start
