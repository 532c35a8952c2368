"""A picture that one already has: one evaluation at its noise, the same for every model; inversion and its round trip."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipelines.tiny import PROMPT, made
from tests.pipelines.variants import picture
from tests.recording.tiny_runs import same
from toushi import main
from toushi.probe.attribution.denoising import clean_latents
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.recording.record import record
from toushi.probe.session.patching import patch_method
from toushi.probe.trace.open import open_trace
from toushi.probe.trace_picture import image_pipeline, invert, psnr, read_picture, trace_inversion, trace_picture

TEXT = "左边是猫，右边是月亮，夜晚"


@pytest.fixture(scope="module")
def model():
    return MiniUNet.tiny(layers=2)


def test_the_trace_is_of_the_picture_noised_to_that_time(model, tmp_path):
    image = picture((64, 64))
    trace = trace_picture(model, tmp_path / "run", TEXT, image, at=0.3, seed=5)
    clean = model.encode(image)
    noisy = 0.7 * clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    with record(model, tmp_path / "by-hand"):
        model.denoise(noisy, 0.3, TEXT)
    by_hand = open_trace(tmp_path / "by-hand")
    assert same(trace.attention("猫").values, by_hand.attention("猫").values)
    assert trace.times == [0.3] and trace.complete and trace.verify() == []
    manifest = trace.manifest
    assert (manifest.seed, manifest.strength, manifest.size) == (5, 0.3, (64, 64))
    assert np.array_equal(trace.image(), np.asarray(image))
    assert Image.open(tmp_path / "run/expected.png").size == (64, 64)


@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-3", "z-image"])
def test_a_pipeline_is_traced_by_the_same_call(name, tmp_path):
    pipeline, image = made(name), picture((64, 64))
    trace = trace_picture(pipeline, tmp_path / "run", PROMPT, image, at=0.6, seed=1)
    assert len(trace.steps) == 1 and trace.complete and trace.verify() == []
    assert abs(trace.times[0] / 1000 - 0.6) < 0.15
    assert trace.manifest.seed == 1 and trace.heat_map("cat").max() > 0 and list(trace.branches) == ["cond"]
    assert np.array_equal(trace.image(), np.asarray(image))
    assert not {"step", "set_timesteps"} & set(vars(pipeline.scheduler))


def test_what_a_pipeline_expects_is_its_clean_prediction(tmp_path):
    """The same by hand, from the latents and the output at the step that image-to-image begins with."""
    pipeline, image = image_pipeline(made("stable-diffusion")), picture((64, 64))
    trace_picture(pipeline, tmp_path / "run", PROMPT, image, at=0.5)
    scheduler, generator = pipeline.scheduler, torch.Generator().manual_seed(0)

    def stop(*values, **named):
        raise StopAsyncIteration(*values)

    with pytest.raises(StopAsyncIteration) as step, patch_method(scheduler, "step", lambda method: stop):
        pipeline(PROMPT, image=image, strength=0.52, num_inference_steps=50, guidance_scale=1.0, generator=generator)
    output, time, sample = step.value.args
    clean = clean_latents(scheduler, output, sample, time, 24) / pipeline.vae.config.scaling_factor
    expected = pipeline.image_processor.postprocess(pipeline.vae.decode(clean).sample)[0]
    found = np.asarray(Image.open(tmp_path / "run/expected.png")).astype(int)
    assert int(time) == open_trace(tmp_path / "run").times[0]
    assert np.abs(found - np.asarray(expected)).max() <= 1


def test_inversion_draws_the_picture_again(tmp_path):
    """The untrained model has a wild velocity, so it is made smooth; then the VAE alone limits the round trip."""
    model = MiniUNet.tiny(layers=1)
    model.unet.conv_out.weight.mul_(0.05)
    image = model.sample(TEXT, steps=2, seed=1)
    trace, inversion = trace_inversion(model, tmp_path / "run", TEXT, image, solver_steps=8)
    assert np.array_equal(trace.image(), np.asarray(inversion.picture))
    assert trace.manifest.inversion["psnr"] == round(inversion.psnr, 2)
    through_vae = model.sample(TEXT, latents=model.encode(image), first_step=2, steps=2)
    assert psnr(through_vae, inversion.picture) > 40
    assert inversion.psnr == psnr(image, inversion.picture)
    other = model.sample("", latents=model.noise(1, 64, 64, 0), steps=8, guidance=1, sampler="heun")
    assert psnr(through_vae, other) < 30


def test_mistakes_get_one_line(model, tmp_path):
    image = picture((64, 64))

    def refused(expected, image=image, at=0.5, model=model):
        with pytest.raises(ToushiError, match=expected) as error:
            trace_picture(model, tmp_path / "run", TEXT, image, at)
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()

    for at in (0, 1.5, -1, float("nan")):
        refused("at must be above 0", at=at)
    refused("there is no picture .*cat.png", image=tmp_path / "cat.png")
    (tmp_path / "text.png").write_text("no picture")
    refused("text.png is not a picture", image=tmp_path / "text.png")
    refused("multiples of 16.*50x64", image=picture((50, 64)))
    refused("multiples of 2.*33x64", image=picture((33, 64)), model=made("stable-diffusion"))
    clear = image.convert("RGBA")
    clear.putalpha(128)
    clear.save(tmp_path / "clear.png")
    refused("clear.png is partly transparent", image=tmp_path / "clear.png")
    refused("no image-to-image pipeline for a PixArt", model=made("pixart"))
    with pytest.raises(ToushiError, match="inverted by mini-unet"):
        invert(made("stable-diffusion"), PROMPT, image)


def test_an_opaque_alpha_channel_is_no_transparency():
    image = picture((16, 16))
    assert np.array_equal(np.asarray(read_picture(image.convert("RGBA"))), np.asarray(image))


def test_the_command_checks_the_picture_before_it_loads_the_model(tmp_path, capsys):
    picture((64, 64)).save(tmp_path / "cat.png")
    file, out = str(tmp_path / "cat.png"), str(tmp_path / "run")
    for arguments, expected in [
        (["--at", "0.5"], "--image cat.png"),
        (["--image", file, "--at", "1.5"], "--at must be above 0"),
        (["--image", str(tmp_path / "dog.png")], "there is no picture"),
        (["--image", file, "--steps", "4", "--size", "64"], "--image takes no --size, --steps"),
        (["--image", file, "--invert", "--at", "0.5"], "--invert takes no --at"),
    ]:
        assert main(["trace", "猫", *arguments, "--model", "no-such-model", "--out", out]) == 2
        assert expected in capsys.readouterr().err
