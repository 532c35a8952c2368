"""The table of docs/explaining.md: every method on every family, run or refused with its reason."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipelines.tiny import COMMON, LENGTHS, MAKERS, draw, families, made, scaled
from toushi import explain, load
from toushi.probe.attribution.denoising import CannotExplain, denoise_at
from toushi.probe.attribution.explain import METHODS, TAKES_TARGET, explain_at
from toushi.probe.attribution.map_faithfulness import randomised_weights, sensitivity
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.models.z_image import ZImage

PROMPT, BOX = "red cat，月亮", (0, 0, 8, 8)
WITH_SELF_ATTENTION = {"mini-unet", "stable-diffusion", "stable-diffusion-xl", "kolors", "pixart", "hunyuan-dit"}
QUICK_GRADIENTS = {"stable-diffusion", "stable-diffusion-3", "pixart", "z-image"}  # those of all families: test-slow


def reason(method: str, name: str) -> str | None:
    """Why this cell of the table is refused; None if it runs."""
    if method == "rollout" and name not in WITH_SELF_ATTENTION:
        return "rollout needs image self-attention"
    if method == "integrated-gradients" and name == "kolors":
        return r"its embeddings are \[position, row, feature\]"
    return None


def options(pipeline) -> dict:
    """As `draw` calls it, with few steps."""
    height, width = scaled(pipeline, (32, 32))
    parameters = inspect.signature(type(pipeline).__call__).parameters
    values = dict(height=height, width=width, num_inference_steps=4, use_resolution_binning=False)
    values |= dict(clean_caption=False, max_sequence_length=48)
    for name, length in LENGTHS.items():
        if type(pipeline).__name__.startswith(name):
            values["max_sequence_length"] = length
    return {name: value for name, value in values.items() if name in parameters}


def check(denoising, name: str, methods) -> None:
    for method in methods:
        target = BOX if method in TAKES_TARGET else None
        if (why := reason(method, name)) is not None:
            with pytest.raises(CannotExplain, match=why):
                explain_at(denoising, target, method)
            continue
        values = explain_at(denoising, target, method)
        assert values.sizes["word"] == 3 and np.isfinite(values).all() and float(values.std()) > 0, method
        if method == "integrated-gradients":
            assert abs(values.attrs["delta"]) < 0.1 * np.abs(values.values).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hunyuan-image"])
def test_a_pipeline_whose_guidance_cannot_be_turned_off_is_refused(pipeline, name):
    with pytest.raises(CannotExplain, match="no argument that turns guidance off"):
        denoise_at(pipeline, PROMPT, 0.5, **options(pipeline))


@pytest.mark.parametrize("name", [case for case in families(COMMON) if "hunyuan-image" not in str(case)])
def test_every_method_runs_or_says_why_not(pipeline, name):
    methods = [m for m in METHODS if m != "integrated-gradients" or name in QUICK_GRADIENTS]
    check(denoise_at(pipeline, PROMPT, 0.5, **options(pipeline)), name, methods)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MAKERS) - QUICK_GRADIENTS - {"hunyuan-image"}))
def test_integrated_gradients_of_the_other_families(pipeline, name):
    check(denoise_at(pipeline, PROMPT, 0.5, **options(pipeline)), name, ["integrated-gradients"])


def test_every_method_on_our_own_models(tmp_path):
    check(denoise_at(MiniUNet.tiny(layers=1), PROMPT, 0.5, size=64, steps=2), "mini-unet", METHODS)
    made("z-image").save_pretrained(tmp_path)
    model = ZImage.from_folder(tmp_path, torch.float32)
    check(denoise_at(model, PROMPT, 0.5, size=32, steps=2), "z-image, our own", METHODS)
    assert explain(model, PROMPT, image=Image.new("RGB", (32, 32)), time=0.3).shape == (3, 8, 8)


@pytest.mark.slow
def test_the_first_table_of_the_page_is_what_the_shipped_model_says():
    page = (Path(__file__).parents[2] / "docs/explaining.md").read_text(encoding="utf-8").partition("\n## ")[0]
    _, _, *rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    table = [[cell.strip().replace("−", "-") for cell in row] for row in rows]
    for column, method in enumerate(["shapley", "ablation", "integrated-gradients"], 1):
        values = explain(load("mini-unet", "cpu"), "左边是猫，右边是月亮，夜晚", (0, 0, 16, 8), method)
        assert list(values.word.values) == [row[0] for row in table]
        assert values.values == pytest.approx([float(row[column]) for row in table], abs=0.001), method


@pytest.mark.parametrize("name", ["stable-diffusion", "flux"])
def test_pictures_are_the_same_after_an_explanation(pipeline, name):
    before = np.asarray(draw(pipeline)[0])
    explain(pipeline, PROMPT, BOX, "integrated-gradients", **options(pipeline))
    assert np.array_equal(before, np.asarray(draw(pipeline)[0]))


@pytest.mark.parametrize("name", ["stable-diffusion", "z-image"])
def test_the_denoised_latents_are_those_of_the_pipelines_own_step(pipeline, name):
    """With the prompt that the run had, the evaluation is that of the run: without guidance, bit for bit the same."""
    how = options(pipeline) | {"guidance_scale": 0.0 if name == "z-image" else 1.0}
    d = denoise_at(pipeline, PROMPT, 0.5, seed=1, **how)
    seen = []
    scheduler, step = pipeline.scheduler, pipeline.scheduler.step
    scheduler.step = lambda output, t, sample, *a, **k: (
        seen.append((output, t, sample)) or step(output, t, sample, *a, **k)
    )
    try:
        pipeline(PROMPT, generator=torch.Generator().manual_seed(1), output_type="latent", **how)
    finally:
        del scheduler.step
    output, t, sample = next(call for call in seen if torch.equal(call[2], d.latents))
    assert float(t) / scheduler.config.num_train_timesteps == pytest.approx(d.time)
    level = scheduler.alphas_cumprod[int(t)] if name == "stable-diffusion" else None
    expected = sample - d.time * output if level is None else (sample - (1 - level).sqrt() * output) / level.sqrt()
    torch.testing.assert_close(d.denoised([PROMPT]), expected.squeeze(2) if expected.dim() == 5 else expected)


@pytest.mark.parametrize("name", ["stable-diffusion"])
def test_what_a_pipeline_refuses(pipeline, name):
    with pytest.raises(CannotExplain, match="is explained at latents of its own run"):
        explain(pipeline, PROMPT, latents=torch.zeros(1, 4, 16, 16))
    with pytest.raises(CannotExplain, match="compare seeds instead"):
        d = denoise_at(pipeline, PROMPT, **options(pipeline))
        sensitivity(d, lambda d: explain_at(d, BOX, "ablation"))


def test_quantised_weights_are_refused_where_they_must_be():
    """Words are left out of a quantised model as of any other; its weights cannot be shuffled."""
    quantization = pytest.importorskip("torchao.quantization")
    pipeline = made("flux")
    quantization.quantize_(pipeline.transformer, quantization.Int8WeightOnlyConfig())
    assert explain(pipeline, PROMPT, BOX, "ablation", **options(pipeline)).shape == (3,)
    with pytest.raises(CannotExplain, match="the weights are quantised"), randomised_weights(pipeline):
        pass


def test_an_option_that_the_call_does_not_name_is_refused():
    """A Stable Diffusion pipeline takes any name, and ignores those that it does not know."""
    pipeline = made("stable-diffusion")
    for name in ("steps", "num_images_per_prompt", "generator"):
        with pytest.raises(CannotExplain, match=f"{name} is no option here; expected .*num_inference_steps"):
            explain(pipeline, PROMPT, **{**options(pipeline), name: 2})
