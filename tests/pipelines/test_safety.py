"""A safety checker's verdict is in the manifest, and the picture in the trace is the one that it let through."""

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

from tests.pipelines.tiny import draw, made
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_collection, open_trace


def checked(block: bool):
    """Stable Diffusion with a tiny random checker, whose threshold blocks everything or nothing."""
    pipeline = made("stable-diffusion")
    tower = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": 8},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds_weights.data.fill_(-2.0 if block else 2.0)  # a cosine above it is blocked
    checker.special_care_embeds_weights.data.fill_(2.0)
    # Since release 5 the processor without torchvision has a name of its own.
    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    extractor = processor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    parts = {**pipeline.components, "safety_checker": checker, "feature_extractor": extractor}
    found = diffusers.StableDiffusionPipeline(**parts)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.mark.parametrize("block", [True, False])
def test_a_verdict_for_every_picture(block, tmp_path):
    pipeline = checked(block)
    plain = draw(pipeline, ["a red cat", "the moon"], steps=1)
    with record(pipeline, tmp_path / "run", keep="mean"):
        pictures = draw(pipeline, ["a red cat", "the moon"], steps=1)
    for trace, picture, before in zip(open_collection(tmp_path / "run"), pictures, plain):
        assert trace.manifest.safety == ("blocked" if block else "passed")
        assert np.array_equal(picture, before) and np.array_equal(trace.image(), before)
        assert (np.asarray(picture).max() == 0) == block and trace.verify() == []


def test_a_tuple_latents_and_no_checker(tmp_path):
    pipeline = checked(True)
    with record(pipeline, tmp_path / "tuple", keep="mean"):
        pipeline("cat", num_inference_steps=1, height=32, width=32, return_dict=False)
    assert open_trace(tmp_path / "tuple").manifest.safety == "blocked"
    with record(pipeline, tmp_path / "latent", keep="mean"):
        pipeline("cat", num_inference_steps=1, height=32, width=32, output_type="latent")
    assert open_trace(tmp_path / "latent").manifest.safety == "not run"
    pipeline = made("stable-diffusion")
    with record(pipeline, tmp_path / "none", keep="mean"):
        draw(pipeline, steps=1)
    assert open_trace(tmp_path / "none").manifest.safety is None


def test_what_the_command_says_of_a_blocked_picture(tmp_path, capsys):
    from toushi import main
    from toushi.cli.trace_summary import summarize_trace

    pipeline = checked(True)
    with record(pipeline, tmp_path / "run", keep="mean"):
        draw(pipeline, steps=1)
    assert "blocked by the safety checker" in summarize_trace(tmp_path / "run")
    assert main(["info", str(tmp_path / "run")]) == 0
    assert "blocked" in capsys.readouterr().out
