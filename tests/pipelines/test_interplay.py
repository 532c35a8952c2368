"""Recording beside what people do with large models: compiled blocks, LoRA, guidance that ends part-way."""

import numpy as np
import pytest
import torch

from tests.pipelines.test_recording import cross, masses
from tests.pipelines.tiny import NEGATIVE, PROMPT, draw, made
from toushi.probe.models.z_image import ZImage
from toushi.probe.pipelines.load import compile_blocks
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_collection, open_trace

SITES = {"stable-diffusion": 4, "flux": 5, "z-image": 2}  # of image-to-text attention


class Compiled:
    """A backend that compiles nothing and counts the graphs that it was given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def backend():
    torch._dynamo.reset()
    yield Compiled()
    torch._dynamo.reset()


def in_order(trace, name):
    assert trace.verify() == [] and len(cross(trace)) == SITES[name]
    for branch in trace.branches:
        assert all(np.abs(mass - 1).max() < 1e-3 for _, mass in masses(trace, branch))


@pytest.mark.parametrize("name", ["stable-diffusion", pytest.param("z-image", marks=pytest.mark.slow)])
def test_blocks_compiled_before_attaching(name, backend, tmp_path):
    plain = draw(made(name))[0]
    pipeline = made(name)
    compile_blocks(getattr(pipeline, "unet" if name == "stable-diffusion" else "transformer"), backend=backend)
    draw(pipeline)
    graphs = backend.graphs
    assert graphs > 0
    with record(pipeline, tmp_path / "run"):
        picture = draw(pipeline)[0]
    assert np.array_equal(picture, plain) and backend.graphs == graphs
    in_order(open_trace(tmp_path / "run"), name)
    assert np.array_equal(draw(pipeline)[0], plain) and backend.graphs == graphs  # the compiled blocks serve again


@pytest.mark.parametrize("name", ["stable-diffusion", pytest.param("z-image", marks=pytest.mark.slow)])
def test_blocks_compiled_after_attaching(name, backend, tmp_path):
    pipeline = made(name)
    plain = draw(pipeline)[0]
    with record(pipeline, tmp_path / "run"):
        compile_blocks(getattr(pipeline, "unet" if name == "stable-diffusion" else "transformer"), backend=backend)
        picture = draw(pipeline)[0]
        assert backend.graphs == 0
    assert np.array_equal(picture, plain)
    in_order(open_trace(tmp_path / "run"), name)
    assert np.array_equal(draw(pipeline)[0], plain) and backend.graphs > 0


@pytest.mark.slow
def test_blocks_that_are_really_compiled(tmp_path):
    """The compiler rounds differently, so that the recorded picture, which is drawn without it, is close only."""
    torch._dynamo.reset()
    pipeline = made("z-image")
    compile_blocks(pipeline.transformer)
    compiled = np.asarray(draw(pipeline)[0], dtype=float)
    with record(pipeline, tmp_path / "run"):
        picture = np.asarray(draw(pipeline)[0], dtype=float)
    in_order(open_trace(tmp_path / "run"), "z-image")
    assert np.abs(picture - compiled).max() <= 2


@pytest.mark.parametrize("name", ["stable-diffusion", "flux"])
def test_a_lora_on_and_off(name, tmp_path):
    from peft import LoraConfig

    pipeline = made(name)
    torch.manual_seed(3)
    denoiser = pipeline.unet if name == "stable-diffusion" else pipeline.transformer
    with record(pipeline, tmp_path / "none", dtype="float32"):
        before = draw(pipeline)[0]
    config = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"])
    denoiser.add_adapter(config, "mine")
    traces = {}
    for state, switch in (("on", pipeline.enable_lora), ("off", pipeline.disable_lora)):
        switch()
        bare = draw(pipeline)[0]
        with record(pipeline, tmp_path / state, dtype="float32"):
            assert np.array_equal(draw(pipeline)[0], bare)
        traces[state] = open_trace(tmp_path / state)
        in_order(traces[state], name)
        (lora,) = traces[state].manifest.loras
        assert lora.on == (state == "on") and lora.name == "mine" and lora.file is None
    assert np.array_equal(traces["off"].image(), before) and not np.array_equal(traces["on"].image(), before)
    none = open_trace(tmp_path / "none")
    for site in cross(none):
        key = f"{site}/cond"
        on, off, truth = (trace.files.step(1).read(key) for trace in (traces["on"], traces["off"], none))
        assert np.array_equal(off, truth) and np.abs(on - truth).max() > 1e-4


@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-xl"])
def test_guidance_that_a_callback_ends_part_way(name, tmp_path):
    """As diffusers' documentation does it: the batch is halved, and what was its first half is now the prompt's."""

    def end_guidance(pipeline, step, time, tensors):
        if step == 1:
            pipeline._guidance_scale = 0.0
            tensors = {key: value.chunk(2)[-1] for key, value in tensors.items()}
        return tensors

    inputs = ["prompt_embeds", *(["add_text_embeds", "add_time_ids"] if name == "stable-diffusion-xl" else [])]
    how = {"callback_on_step_end": end_guidance, "callback_on_step_end_tensor_inputs": inputs}
    pipeline = made(name)
    plain = draw(pipeline, [PROMPT, "the moon"], steps=4, negative=NEGATIVE, **how)
    with record(pipeline, tmp_path / "run", keep="mean"):
        pictures = draw(pipeline, [PROMPT, "the moon"], steps=4, negative=NEGATIVE, **how)
    traces = open_collection(tmp_path / "run")
    assert [trace.prompt for trace in traces] == [PROMPT, "the moon"]
    for trace, picture, before in zip(traces, pictures, plain):
        assert np.array_equal(picture, before) and trace.verify() == [] and trace.branches == ["cond", "uncond"]
        site = cross(trace)[0]
        keys = [trace.files.step(step).keys for step in trace.steps]
        assert [f"{site}/cond" in found for found in keys] == [True] * 4
        assert [f"{site}/uncond" in found for found in keys] == [True, True, False, False]


def test_our_own_z_image_with_truncated_guidance_and_two_lengths(tmp_path):
    made("z-image").save_pretrained(tmp_path / "model")
    model = ZImage.from_folder(tmp_path / "model", torch.float32)
    prompts = [PROMPT + ", and the moon is on the left of the red cat and the blue cat is on the moon", "the moon"]
    how = {"steps": 4, "size": (32, 48), "guidance": 2.0, "truncation": 0.3, "seed": (1, 2)}
    plain = model.sample(prompts, NEGATIVE, **how)
    with record(model, tmp_path / "run", keep="mean"):
        pictures = model.sample(prompts, NEGATIVE, **how)
    traces = open_collection(tmp_path / "run")
    assert len({len(trace.tokens()) for trace in traces}) == 2  # the longer caption fills one block more
    for trace, picture, before, prompt in zip(traces, pictures, plain, prompts):
        assert np.array_equal(picture, before) and trace.verify() == [] and trace.prompt == prompt
        there = [f"{cross(trace)[0]}/uncond" in trace.files.step(step).keys for step in trace.steps]
        assert there[0] and not there[-1]
