"""Without a family only what is certain is recorded: whose keys, which branch, which words."""

import inspect
import warnings

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from tests.pipelines.test_generic import panorama, perturbed, quiet
from tests.pipelines.tiny import NEGATIVE, draw, made
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.attention_processors import UnreadableAttention
from toushi.probe.pipelines.family import UnknownFamily
from toushi.probe.pipelines.load import load
from toushi.probe.recording.record import record
from toushi.probe.recording.unrecordable import SiteLeftOut, Unrecordable
from toushi.probe.session.row_matching import BranchMismatch
from toushi.probe.trace.open import open_trace

pytestmark = pytest.mark.filterwarnings("ignore::toushi.probe.pipelines.generic.ByTokenIndex")
SITE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def consistency():
    """Guidance is a number that the model was taught: one text."""
    base = made("stable-diffusion")
    unet = type(base.unet)(**{**base.unet.config, "time_cond_proj_dim": 8}).eval().requires_grad_(False)
    parts = {**base.components, "unet": unet, "scheduler": diffusers.LCMScheduler()}
    return quiet(diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False))


def given_to(pipeline, change):
    """The attention at SITE gets `change(states, text)` as its keys' states."""
    attention = pipeline.unet.get_submodule(SITE)

    def before(module, arguments, named):
        return arguments, {**named, "encoder_hidden_states": change(arguments[0], named["encoder_hidden_states"])}

    attention.register_forward_pre_hook(before, with_kwargs=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda states, text: None,  # it attends to the image
        lambda states, text: torch.randn(text.shape, generator=torch.Generator().manual_seed(0)),  # as many columns
    ],
)
def test_an_attention_that_does_not_get_the_text_is_left_out_and_named(change, tmp_path):
    # Self-attention needs features as wide as the text's.
    pipeline = perturbed()
    if change(None, torch.zeros(1, 1, 1)) is None:
        attention = pipeline.unet.get_submodule(SITE)
        attention.to_k, attention.to_v = (torch.nn.Linear(8, 8, bias=False) for _ in range(2))
    given_to(pipeline, change)
    plain = draw(pipeline, pag_scale=0.0)[0]
    says = f"{SITE} is not recorded.*not known to be the text's"
    with pytest.warns(SiteLeftOut, match=says), record(pipeline, tmp_path / "run"):
        assert np.array_equal(draw(pipeline, pag_scale=0.0)[0], plain)
    trace = open_trace(tmp_path / "run")
    assert f"unet.{SITE}" not in trace.sites and len(trace.sites) == 3 and trace.verify() == []
    assert "keys are not known" in trace.manifest.not_recorded[f"unet.{SITE}"]
    with (
        pytest.raises(Unrecordable, match="no attention is certain"),
        record(pipeline, tmp_path / "a", sites=f"*{SITE}"),
    ):
        draw(pipeline, pag_scale=0.0)


def test_one_query_is_no_image(tmp_path):
    pipeline = perturbed()
    attention = pipeline.unet.get_submodule(SITE)
    forward = attention.forward

    def pooled(states, encoder_hidden_states=None, **named):
        result = forward(states.mean(1, keepdim=True), encoder_hidden_states=encoder_hidden_states, **named)
        return result.expand_as(states)

    attention.forward = pooled
    with pytest.warns(SiteLeftOut, match="one query"), record(pipeline, tmp_path / "run"):
        draw(pipeline, pag_scale=0.0)
    assert len(open_trace(tmp_path / "run").sites) == 3


def test_a_text_is_followed_through_its_projection(tmp_path):
    base = made("stable-diffusion")
    torch.manual_seed(0)
    config = {**base.unet.config, "encoder_hid_dim": 16, "encoder_hid_dim_type": "text_proj", "cross_attention_dim": 24}
    unet = type(base.unet)(**config).eval().requires_grad_(False)
    parts = {**base.components, "unet": unet}
    pipeline = quiet(diffusers.StableDiffusionPAGPipeline(**parts, requires_safety_checker=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error", SiteLeftOut)
        with record(pipeline, tmp_path / "run"):
            draw(pipeline, pag_scale=0.0)
    assert len(open_trace(tmp_path / "run").sites) == 4
    assert not [m for m in unet.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("guidance", [True, False])
def test_perturbed_guidance_is_a_branch_of_its_own(guidance, tmp_path):
    pipeline = perturbed()
    plain = draw(pipeline, negative=NEGATIVE, guidance=guidance)[0]
    with record(pipeline, tmp_path / "run", dtype="float32"):
        assert np.array_equal(draw(pipeline, negative=NEGATIVE, guidance=guidance)[0], plain)
    trace = open_trace(tmp_path / "run")
    assert trace.branches == (["cond", "uncond", "perturbed"] if guidance else ["cond", "perturbed"])
    assert trace.verify() == [] and trace.complete
    own, other = (trace.mass(branch) for branch in ("cond", "perturbed"))
    assert not np.array_equal(own, other) and abs(float(other.sum()) - 1) < 1e-4


PAG = [
    ("StableDiffusionXLPAGPipeline", "stable-diffusion-xl"),
    ("PixArtSigmaPAGPipeline", "pixart"),
    ("SanaPAGPipeline", "sana"),
    ("KolorsPAGPipeline", "kolors"),
    ("HunyuanDiTPAGPipeline", "hunyuan-dit"),
    ("StableDiffusion3PAGPipeline", "stable-diffusion-3"),
]


@pytest.mark.parametrize(("kind", "base"), PAG)
def test_a_perturbed_pipeline_is_recorded_or_refused_and_stays_usable(kind, base, tmp_path):
    taken = inspect.signature(getattr(diffusers, kind).__init__).parameters
    parts = {name: part for name, part in made(base).components.items() if name in taken}
    more = {"requires_safety_checker": False} if "requires_safety_checker" in taken else {}
    more["pag_applied_layers"] = "mid" if "unet" in parts else ["1"]
    pipeline = quiet(getattr(diffusers, kind)(**parts, **more))
    plain = draw(pipeline, negative=NEGATIVE)[0]
    try:
        with record(pipeline, tmp_path / "run", keep="mean"):
            picture = draw(pipeline, negative=NEGATIVE)[0]
        assert np.array_equal(picture, plain) and "perturbed" in open_trace(tmp_path / "run").branches
    except UnknownFamily as refused:
        assert kind in str(refused)
    assert np.array_equal(draw(pipeline, negative=NEGATIVE)[0], plain)


def test_words_that_cannot_be_known_are_refused_before_a_step(tmp_path):
    pipeline, steps = panorama(), []
    says = "words: which tokens the text columns are is not known"
    with pytest.raises(ToushiError, match=says), record(pipeline, tmp_path / "run", words="cat"):
        draw(pipeline, callback_on_step_end=lambda pipe, step, time, given: steps.append(step) or given)
    assert not steps


def test_the_advice_for_a_processor_works(tmp_path):
    pipeline = consistency()
    pipeline.enable_attention_slicing()
    for _ in range(2):
        with pytest.raises(UnreadableAttention, match=r"pipeline\.unet\.set_attn_processor\(AttnProcessor2_0\(\)\)"):
            record(pipeline, tmp_path / "run").__enter__()
        pipeline.unet.set_default_attn_processor()  # gives AttnProcessor, which cannot be read either
    pipeline.unet.set_attn_processor(AttnProcessor2_0())
    with record(pipeline, tmp_path / "run"):
        draw(pipeline)


def test_a_parameter_of_another_name_is_no_negative_prompt(tmp_path):
    class Plural(diffusers.LatentConsistencyModelPipeline):
        def encode_prompt(self, prompts, *arguments, **named):
            return super().encode_prompt(prompts, *arguments, **named)[0], None

    base = consistency()
    pipeline = quiet(Plural(**base.components, requires_safety_checker=False))
    with record(pipeline, tmp_path / "run", steps=0):
        draw(pipeline)
    assert open_trace(tmp_path / "run").branches == ["cond"]


# --- reasons, and when they come ---


def test_a_prompt_that_is_exchanged_between_steps(tmp_path):
    pipeline = made("stable-diffusion")

    def exchange(pipe, step, time, given):
        return {"prompt_embeds": given["prompt_embeds"].flip(1)}

    with pytest.raises(BranchMismatch, match="was exchanged at step 1"), record(pipeline, tmp_path / "run"):
        draw(pipeline, callback_on_step_end=exchange, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_a_scheduler_that_is_exchanged_inside_the_recording(tmp_path):
    pipeline = made("stable-diffusion")
    usual, other = pipeline.scheduler, diffusers.EulerDiscreteScheduler()
    with record(pipeline, tmp_path / "run"):
        pipeline.scheduler = other
        draw(pipeline)
    trace = open_trace(tmp_path / "run")
    assert trace.complete and trace.manifest.sampler == "EulerDiscreteScheduler" and trace.steps == [0, 1]
    assert not {"step", "set_timesteps"} & {*vars(other), *vars(usual)}


VIDEO = "it makes videos"
REFUSED = dict.fromkeys(["CogVideoXPipeline", "WanPipeline", "AnimateDiffPipeline", "LTXPipeline"], VIDEO) | {
    "GlmImagePipeline": "a language model makes image tokens of the prompt",
    "QwenImage21Pipeline": "its denoiser attends in several calls",
    "QwenImageLayeredPipeline": "it makes several layers of a picture",
}


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if hasattr(diffusers, kind)])
def test_a_class_that_cannot_be_recorded_is_refused_before_a_weight_is_read(kind, tmp_path):
    (tmp_path / "model").mkdir()
    index = f'{{"_class_name": "{kind}", "transformer": ["diffusers", "Missing"]}}'
    (tmp_path / "model" / "model_index.json").write_text(index, encoding="utf-8")
    with pytest.raises(UnknownFamily, match=f"{kind}.*{REFUSED[kind]}"):
        load(str(tmp_path / "model"))


def test_a_video_pipeline_is_refused_before_a_step(tmp_path):
    class Frames(diffusers.StableDiffusionPAGPipeline):
        def __call__(self, prompt, num_frames=8):
            raise AssertionError("a step was run")

    pipeline = Frames(**made("stable-diffusion").components, requires_safety_checker=False)
    with pytest.raises(UnknownFamily, match="it makes videos, whose latents have frames"):
        record(pipeline, tmp_path / "run")
    assert not (tmp_path / "run").exists()
