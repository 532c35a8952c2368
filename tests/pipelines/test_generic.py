"""Pipelines that no family serves: maps by token index where that is exact, a clear refusal elsewhere."""

import diffusers
import numpy as np
import pytest
import torch

from tests.pipelines.tiny import NEGATIVE, PROMPT, draw, made
from tests.pipelines.tiny_parts import vae
from toushi import main
from toushi.hooks.attention import AttentionHook
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.attention_processors import UnreadableAttention
from toushi.probe.pipelines.family import UnknownFamily
from toushi.probe.pipelines.generic import ByTokenIndex
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.record import record
from toushi.probe.recording.unrecordable import Unrecordable
from toushi.probe.trace.open import open_trace


def panorama():
    """A picture that fits its window is drawn in one piece."""
    parts = made("stable-diffusion").components
    return quiet(diffusers.StableDiffusionPanoramaPipeline(**parts, requires_safety_checker=False))


def perturbed():
    """Guidance by two texts."""
    parts = made("stable-diffusion").components
    return quiet(diffusers.StableDiffusionPAGPipeline(**parts, requires_safety_checker=False))


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("make", "guidance"), [(panorama, False), (perturbed, True)])
def test_maps_are_by_token_index_with_a_warning_that_says_what_is_not_known(make, guidance, tmp_path):
    torch.manual_seed(0)
    pipeline, how = make(), {"negative": NEGATIVE, "size": (32, 48), "guidance": guidance}
    how |= {"pag_scale": 0.0} if make is perturbed else {}
    plain = draw(pipeline, **how)[0]
    sites, calls = family_of(pipeline).sites(pipeline), []
    says = r"no family serves.*by the index of the key.*not known which token.*families\.md"
    with (
        AttentionHook({name: site.module for name, site in sites.items()}, calls.append),
        pytest.warns(ByTokenIndex, match=says),
        record(pipeline, tmp_path / "run", dtype="float32"),
    ):
        assert np.array_equal(draw(pipeline, **how)[0], plain)
    trace = open_trace(tmp_path / "run")
    assert trace.verify() == [] and trace.branches == (["cond", "uncond"] if guidance else ["cond"])
    assert trace.prompt is None and trace.manifest.asked == PROMPT and "by token index" in trace.manifest.family
    assert [t.text for t in trace.tokens()] == [f"#{index}" for index in range(77)] and trace.words() == []
    assert len(trace.sites) == 4
    # The maps are those of the known row, whose prompt comes second in the batch.
    call = next(call for call in calls if call.site == next(iter(trace.sites)))
    truth = (call.inputs.query.double() @ call.inputs.key.double().mT * call.inputs.scale).softmax(-1)[-1]
    found = trace.files.step(0).read(f"{call.site}/cond")
    assert np.abs(found.reshape(*found.shape[:2], -1) - truth.mT.numpy()).max() < 1e-5
    with pytest.raises(ToushiError, match="does not know the pipeline's family"):
        trace.heat_map("cat")


def test_from_the_shell(tmp_path, capsys):
    torch.manual_seed(0)
    panorama().save_pretrained(tmp_path / "model")
    out = str(tmp_path / "run")
    assert (
        main(["trace", PROMPT, "--model", str(tmp_path / "model"), "--steps", "1", "--size", "32", "--out", out]) == 0
    )
    said = capsys.readouterr()
    assert "text of unknown place" in said.out and "by the index of the key" in said.err


def test_text_and_image_in_one_sequence_are_refused_with_the_reason(tmp_path):
    transformer = diffusers.BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline = diffusers.BriaPipeline(transformer, scheduler, vae(), None, None)
    with pytest.raises(UnknownFamily, match=r"BriaPipeline.*text and image at once.*not known.*families\.md"):
        record(pipeline, tmp_path / "run")


def test_keys_that_are_not_the_text_alone_are_refused(tmp_path):
    pipeline = perturbed()
    site = family_of(pipeline).cross_attention[0]
    attention = pipeline.unet.get_submodule(site.removeprefix("unet."))
    forward = attention.forward
    attention.forward = lambda states, encoder_hidden_states=None, **named: forward(
        states, encoder_hidden_states=torch.cat([encoder_hidden_states] * 2, 1), **named
    )
    with (
        pytest.warns(ByTokenIndex),
        pytest.raises(Unrecordable, match="154 keys, and the text has 77 columns"),
        record(pipeline, tmp_path / "run"),
    ):
        draw(pipeline, pag_scale=0.0)


def test_a_processor_that_runs_elsewhere_is_refused(tmp_path):
    pipeline = perturbed()
    pipeline.enable_attention_slicing()
    with pytest.raises(UnreadableAttention, match=r"SlicedAttnProcessor.*set_attn_processor\(AttnProcessor2_0"):
        record(pipeline, tmp_path / "run").__enter__()


def test_which_text_is_the_prompts_must_be_certain(tmp_path):
    class Turned(diffusers.StableDiffusionPAGPipeline):
        def encode_prompt(self, *arguments, **named):
            return super().encode_prompt(*arguments, **named)[::-1]

    pipeline = quiet(Turned(**made("stable-diffusion").components, requires_safety_checker=False))
    with (
        pytest.warns(ByTokenIndex),
        pytest.raises(ToushiError, match="not certain which of them is the prompt's"),
        record(pipeline, tmp_path / "run"),
    ):
        draw(pipeline, negative=NEGATIVE, pag_scale=0.0)
