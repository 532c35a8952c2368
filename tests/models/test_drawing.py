"""One way to ask any model for a picture: what one of them does not know, or would not look at, is refused."""

import inspect
from typing import get_args

import pytest

from tests.pipelines.tiny import made
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.models.z_image import ZImage
from toushi.probe.pipelines.generate import _call_pipeline, default_steps, generate
from toushi.probe.pipelines.load import ShippedModel, load, shipped_models
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace


class OurZImage:
    """What `generate` checks first."""

    name, unguided, sample = ZImage.name, ZImage.unguided, ZImage.sample


def test_the_type_of_load_names_every_shipped_model():
    assert sorted(get_args(ShippedModel)) == shipped_models()


@pytest.mark.parametrize("name", shipped_models())
def test_every_shipped_model_is_one_of_the_family(name, tmp_path):
    model = load(name, "cpu")
    assert family_of(model).name == "mini-unet" and default_steps(model) == (8 if name == "mini-unet-turbo" else 20)
    with record(model, tmp_path / "run"):
        generate(model, "河边的银行", steps=1)
    assert open_trace(tmp_path / "run").manifest.model.name == name


@pytest.mark.parametrize("size", [(144, 144), (160, 48), (16, 160)])
def test_a_size_that_halves_badly_is_recorded_too(size, tmp_path):
    model = MiniUNet.tiny()
    with record(model, tmp_path / "run"):
        picture = generate(model, "猫", steps=1, size=size)
    assert picture.size == size[::-1] and open_trace(tmp_path / "run").preview(0) is not None


def test_what_the_model_does_not_know_is_left_out():
    with pytest.raises(ToushiError, match="z-image brings its own sampler: leave the sampler out"):
        generate(OurZImage(), "a cat", sampler="euler")
    assert default_steps(OurZImage()) == 8


def test_a_negative_prompt_that_no_guidance_looks_at_is_refused():
    with pytest.raises(ToushiError, match="guidance 1 turns it off for mini-unet"):
        generate(MiniUNet.tiny(), "猫", "蓝色", guidance=1.0)
    with pytest.raises(ToushiError, match="guidance 0 turns it off for z-image"):
        generate(OurZImage(), "a cat", "blue")
    with pytest.raises(ToushiError, match="guidance 1 turns it off for a StableDiffusionPipeline"):
        generate(made("stable-diffusion"), "a cat", "blue", guidance=1.0, size=(32, 32))
    for kind, guidance in (("stable-diffusion", 0.0), ("flux", 0.5), ("qwen-image", 1.0), ("z-image", 0.0)):
        with pytest.raises(ToushiError, match=f"guidance {guidance:g} turns it off for a "):
            generate(made(kind), "a cat", "blue", guidance=guidance, size=(32, 32))
    with pytest.raises(ToushiError, match="a FluxPipeline ignores the negative prompt unless guidance is given"):
        generate(made("flux"), "a cat", "blue", size=(32, 32))


@pytest.mark.parametrize(
    "name, negative, guidance, given",
    [
        ("flux", "", 2.5, {"guidance_scale": 2.5}),
        ("flux", "blue", 2.5, {"true_cfg_scale": 2.5, "negative_prompt": "blue"}),
        ("flux", "", None, {}),
        ("qwen-image", "", 2.5, {"true_cfg_scale": 2.5, "negative_prompt": ""}),
        ("qwen-image", "blue", None, {"negative_prompt": "blue"}),
        ("stable-diffusion", "blue", 2.5, {"guidance_scale": 2.5, "negative_prompt": "blue"}),
    ],
)
def test_guidance_is_the_number_that_the_pipeline_means_by_it(name, negative, guidance, given, monkeypatch):
    pipeline, came = made(name), {}
    call = type(pipeline).__call__

    def called(self, *args, **named):
        came.update(inspect.signature(call).bind(self, *args, **named).arguments)
        return call(self, *args, **named)

    called.__signature__ = inspect.signature(call)
    monkeypatch.setattr(type(pipeline), "__call__", called)
    generate(pipeline, "a cat", negative, guidance=guidance, steps=1, size=(32, 32))
    names = ("guidance_scale", "true_cfg_scale", "negative_prompt")
    assert {one: came[one] for one in names if one in came} == given


@pytest.mark.parametrize("negative", ["", "blue"])
def test_guidance_reaches_a_pipeline_that_has_none_but_the_real_one(negative):
    came = {}

    class Pipeline:
        def __call__(self, prompt, num_inference_steps=4, true_cfg_scale=1.0, negative_prompt=None):
            came.update(true_cfg_scale=true_cfg_scale, negative_prompt=negative_prompt)
            return type("Drawn", (), {"images": ["picture"]})

    assert _call_pipeline(Pipeline(), "a cat", negative, 4, 0, 2.5, None, None) == "picture"
    assert came == {"true_cfg_scale": 2.5, "negative_prompt": negative}
