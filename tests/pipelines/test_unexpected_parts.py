"""Pipelines of a known class whose parts, schedules or results are not those that the class is released with."""

import diffusers
import numpy as np
import peft
import pytest
import torch
import transformers

from tests.pipelines.tiny import NEGATIVE, PROMPT, draw, made
from tests.pipelines.vocabularies import bert_tokenizer, t5_tokenizer
from toushi.hooks.torch_private import is_compiled
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.record import Uncompiled, record
from toushi.probe.recording.unrecordable import Unrecordable
from toushi.probe.trace.open import open_trace


def with_parts(kind=diffusers.StableDiffusionPipeline, **parts):
    """A Stable Diffusion pipeline with some parts of its own."""
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipeline = kind(**{**made("stable-diffusion").components, **parts}, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def recorded(pipeline, folder, prompt=PROMPT, **how):
    """The trace of a picture that is the same as the unrecorded one."""
    plain = draw(pipeline, prompt, **how)
    with record(pipeline, folder, dtype="float32"):
        picture = draw(pipeline, prompt, **how)
    trace = open_trace(folder)
    assert np.array_equal(np.asarray(picture[0]), np.asarray(plain[0])) and trace.verify() == [] and trace.complete
    return trace


# --- text encoders ---

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


@pytest.mark.parametrize("kind", ["Bert", "XLMRoberta"])
def test_the_layers_of_another_text_encoder_are_recorded(kind, tmp_path):
    torch.manual_seed(0)
    tokenizer = bert_tokenizer() if kind == "Bert" else t5_tokenizer()
    tokenizer.model_max_length = 64
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **SMALL)
    pipeline = with_parts(tokenizer=tokenizer, text_encoder=getattr(transformers, f"{kind}Model")(config))
    trace = recorded(pipeline, tmp_path / "run")
    assert trace.encoder_states().shape[0] == 4 and trace.encoder_attention(2).shape[0] == 2
    mass = trace.encoder_attention(0).sum("token")  # the rest is on padding, which the pipeline does not mask
    assert trace.heat_map("cat").shape and mass.min() > 0 and mass.max() < 1 + 1e-5
    # State 0 is what the first layer gets.
    embeddings = family_of(pipeline).embeddings
    assert embeddings == "text_encoder.embeddings"


class Bag(torch.nn.Module):
    """A text encoder without layers."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, words: int):
        super().__init__()
        self.embed, self.config = torch.nn.Embedding(words, 16), transformers.CLIPTextConfig()

    def forward(self, input_ids, attention_mask=None):
        return (self.embed(input_ids),)


def test_an_encoder_without_layers_is_named_and_the_rest_is_recorded(tmp_path):
    tokenizer = made("stable-diffusion").tokenizer
    pipeline = made("stable-diffusion")
    pipeline.text_encoder = Bag(len(tokenizer))
    trace = recorded(pipeline, tmp_path / "run")
    assert trace.heat_map("cat").shape and not [site for site in trace.sites.values() if site.kind == "encoder"]
    assert trace.manifest.not_recorded["text_encoder.*"] == "a Bag has no list of layers that could be read"


# --- wrappers ---


class Parallel(torch.nn.DataParallel):
    """With the attributes of the module inside, which pipelines read."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def wrapped_by_peft(targets, kind="LoraConfig"):
    weights = {"init_lora_weights": False} if kind == "LoraConfig" else {"init_weights": False}
    return lambda module: peft.get_peft_model(module, getattr(peft, kind)(r=2, target_modules=targets, **weights))


WRAPPED = [
    ("stable-diffusion", "unet", wrapped_by_peft(["to_q", "to_k"])),
    ("stable-diffusion", "unet", wrapped_by_peft(["to_q", "to_k"], "LoHaConfig")),
    ("stable-diffusion", "text_encoder", wrapped_by_peft(["q_proj"])),
    ("stable-diffusion", "unet", Parallel),
    ("stable-diffusion", "text_encoder", Parallel),
    ("z-image", "transformer", wrapped_by_peft(["to_q", "to_k"])),
    ("flux", "text_encoder_2", wrapped_by_peft(["q"])),
    ("stable-diffusion", "unet", lambda module: torch.compile(module, backend="eager")),
    ("stable-diffusion", "text_encoder", lambda module: torch.compile(module, backend="eager")),
]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing", "ignore:The PEFT config", "ignore:Found")
@pytest.mark.parametrize(("name", "part", "wrap"), WRAPPED)
def test_a_wrapped_part_has_the_same_sites_and_labels(name, part, wrap, tmp_path):
    torch.manual_seed(0)
    pipeline = made(name)
    names = list(family_of(pipeline).select_sites(pipeline, None))
    setattr(pipeline, part, wrap(getattr(pipeline, part)))
    with torch.compiler.set_stance("force_eager"):  # compiling takes seconds
        trace = recorded(pipeline, tmp_path / "run")
    assert trace.heat_map("cat").shape and set(trace.sites) == set(names) and trace.encoder_states().size


def test_compiled_parts_are_named_because_they_compute_uncompiled(tmp_path):
    pipeline = made("stable-diffusion")
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    with pytest.warns(Uncompiled, match="unet of the model computes uncompiled"), record(pipeline, tmp_path / "run"):
        draw(pipeline)
    assert open_trace(tmp_path / "run").manifest.uncompiled == ["unet"]
    for block in made("stable-diffusion").unet.down_blocks:
        block.compile(backend="eager")
        assert is_compiled(block)
    assert not is_compiled(made("stable-diffusion").unet)


@pytest.mark.parametrize("name", ["stable-diffusion", "flux", "pixart"])
def test_prompts_encoded_by_hand_with_weights_that_need_gradients(name, tmp_path):
    pipeline = made(name)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(True)  # as from_pretrained gives them
    with record(pipeline, tmp_path / "run", dtype="float32", steps=0):
        if name == "flux":
            states, pooled, _ = pipeline.encode_prompt(PROMPT, None, max_sequence_length=48)
            draw(pipeline, None, guidance=False, prompt_embeds=states, pooled_prompt_embeds=pooled)
        elif name == "pixart":
            states = pipeline.encode_prompt(PROMPT, False, max_sequence_length=48)
            draw(pipeline, None, guidance=False, prompt_embeds=states[0], prompt_attention_mask=states[1])
        else:
            states = pipeline.encode_prompt(PROMPT, "cpu", 1, False)
            draw(pipeline, None, guidance=False, prompt_embeds=states[0])
    trace = open_trace(tmp_path / "run")
    assert trace.prompt == PROMPT and trace.heat_map("cat").shape


# --- what the sampling method returns, and how often it steps ---


def returning(result):
    """A class whose call returns `result(output)`."""

    class Own(diffusers.StableDiffusionPipeline):
        def __call__(self, *arguments, **named):
            return result(super().__call__(*arguments, **named))

    return Own


@pytest.mark.parametrize("result", [lambda output: output.images, lambda output: {"pictures": output.images}])
def test_a_result_without_images_ends_a_complete_run(result, tmp_path):
    pipeline = with_parts(returning(result))
    how = {"num_inference_steps": 2, "height": 32, "width": 32}
    with record(pipeline, tmp_path / "run"):
        pipeline(PROMPT, generator=torch.Generator().manual_seed(0), **how)
    trace = open_trace(tmp_path / "run")
    assert trace.complete and trace.verify() == []
    assert (trace.image() is not None) == isinstance(result(diffusers.ImagePipelineOutput([])), list)


class TwoLatents(diffusers.StableDiffusionPipeline):
    """Steps the scheduler twice after each evaluation."""

    def __call__(self, *arguments, **named):
        def again(pipeline, index, time, given):
            pipeline.scheduler.step(torch.zeros_like(given["latents"]), time, given["latents"])
            return given

        return super().__call__(*arguments, callback_on_step_end=again, **named)


def test_a_scheduler_that_is_stepped_twice_after_one_evaluation(tmp_path):
    pipeline, usual = with_parts(TwoLatents), with_parts()
    latents = []
    draw(usual, steps=3, callback_on_step_end=lambda _, step, time, given: latents.append(given["latents"]) or given)
    trace = recorded_by_hand(pipeline, tmp_path / "run", steps=3)
    assert trace.steps == [0, 1, 2] and trace.complete and trace.verify() == []
    for step, kept in enumerate(latents):
        assert np.array_equal(trace.latent(step).values, kept[0].numpy())


def recorded_by_hand(pipeline, folder, steps):
    with record(pipeline, folder, dtype="float32"):
        pipeline(
            PROMPT,
            height=32,
            width=32,
            num_inference_steps=steps,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0),
        )
    return open_trace(folder)


class Views(diffusers.StableDiffusionPipeline):
    """Evaluates the denoiser a second time at each step, as for another view, and steps the scheduler with it."""

    def __call__(self, *arguments, **named):
        def again(pipeline, index, time, given):
            embeds = given["prompt_embeds"]
            output = pipeline.unet(given["latents"].repeat(2, 1, 1, 1), time, encoder_hidden_states=embeds)[0]
            pipeline.scheduler.step(output[:1], time, given["latents"])
            return given

        tensors = ["latents", "prompt_embeds"]
        return super().__call__(
            *arguments, callback_on_step_end=again, callback_on_step_end_tensor_inputs=tensors, **named
        )


def test_a_second_view_of_a_step_is_refused_with_the_reason(tmp_path):
    with pytest.raises(Unrecordable, match="makes step 0 again, after another evaluation.*several views"):
        recorded_by_hand(with_parts(Views), tmp_path / "run", steps=2)


class OneMore(diffusers.DDIMScheduler):
    """Has the time of the end among its timesteps, as DDPMWuerstchenScheduler has."""

    def set_timesteps(self, count, device=None, **named):
        super().set_timesteps(count + 1, device, **named)


def test_a_schedule_with_one_time_more_than_steps(tmp_path):
    class Loop(diffusers.StableDiffusionPipeline):
        def __call__(self, prompt, count):
            embeds, _ = self.encode_prompt(prompt, "cpu", 1, False)
            latents = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))
            self.scheduler.set_timesteps(count)
            for time in self.scheduler.timesteps[:-1]:
                output = self.unet(latents, time, encoder_hidden_states=embeds)[0]
                latents = self.scheduler.step(output, time, latents)[0]
            return (latents,)

    pipeline = with_parts(Loop, scheduler=OneMore())
    with record(pipeline, tmp_path / "run"), torch.no_grad():
        pipeline(PROMPT, 3)
    trace = open_trace(tmp_path / "run")
    assert trace.complete and trace.verify() == [] and trace.steps == [0, 1, 2]
    assert trace.manifest.steps.count == 3 and len(trace.manifest.steps.times) == 4
    with pytest.raises(ToushiError, match="ended after 3 steps"), record(pipeline, tmp_path / "last", steps=-1):
        pipeline(PROMPT, 3)


def test_a_run_that_ends_where_it_was_asked_to_is_complete(tmp_path):
    base = made("stable-diffusion-xl")
    with record(base, tmp_path / "base", keep="mean"):
        latents = draw(base, steps=5, denoising_end=0.6, output_type="latent")
    first = open_trace(tmp_path / "base")
    assert first.complete and first.verify() == [] and first.steps == [0, 1, 2]
    assert first.manifest.steps.count == 3 and first.manifest.as_dict()["denoising_end"] == 0.6

    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**base.components)
    refiner.set_progress_bar_config(disable=True)
    with record(refiner, tmp_path / "refiner", keep="mean"):
        draw(refiner, steps=5, denoising_start=0.6, image=latents)
    second = open_trace(tmp_path / "refiner")
    assert second.complete and second.verify() == [] and second.steps == [3, 4]
    assert second.manifest.as_dict()["denoising_start"] == 0.6 and second.manifest.strength is None


def test_a_run_that_a_callback_interrupted_is_not_complete(tmp_path):
    def interrupt(pipeline, index, time, given):
        pipeline._interrupt = index == 0
        return given

    pipeline = made("stable-diffusion")
    with record(pipeline, tmp_path / "run", keep="mean"):
        draw(pipeline, steps=3, negative=NEGATIVE, callback_on_step_end=interrupt)
    trace = open_trace(tmp_path / "run")
    assert trace.steps == [0] and not trace.complete and trace.manifest.steps.count == 3
