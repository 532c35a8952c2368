"""Recorded maps equal a softmax that shares no line with the recorder, and each planted fault is found."""

import warnings

import numpy as np
import pytest
import torch

from tests.pipelines.sharpened import sharpen
from tests.pipelines.tiny import MAKERS, draw, made
from tests.pipelines.variants import VARIANTS, given, variant
from toushi.probe.model_check.check_model import check_model
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.recording.run_recorder import RunRecorder

PROMPTS = ["一只 red moon on the left, 月亮，cat", "the moon"]
NEGATIVES = ["blue 猫", "red"]
ALIKE = (["the red moon", "the blue moon"], ["the red cat", "the blue cat"])  # as many tokens in each
QUICK = ("stable-diffusion", "hunyuan-dit", "stable-diffusion-3", "z-image", "flux", "qwen-image")
# Variants of which batches are tried, too.
BATCHES = ("StableDiffusionInstructPix2PixPipeline", "QwenImageEditPipeline", "ZImageOmniPipeline")
UNTRIED = {"a changed cell": "stable-diffusion stable-diffusion-xl kolors", "a changed text": "hunyuan-dit"}


def check(pipeline, tmp_path, count, texts=(PROMPTS, NEGATIVES), **options):
    """The check of a batch of `count` prompts, each with a negative prompt of its own."""

    def draws(prompts, negatives):
        texts = (prompts, negatives) if count > 1 else (prompts[0], negatives[0])
        return draw(pipeline, texts[0], negative=texts[1], **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check_model(pipeline, draws, tmp_path, *(text[:count] for text in texts))


def sharpened(name):
    pipeline = made(name)
    assert sharpen(pipeline, lambda: draw(pipeline, PROMPTS[0], negative=NEGATIVES[0], steps=1)) > 0.15
    return pipeline


def whole(name, batches=(1, 2)):
    return [
        pytest.param(name, count, marks=() if name in QUICK and count == 2 else pytest.mark.slow) for count in batches
    ]


@pytest.mark.parametrize(("name", "count"), [row for name in MAKERS for row in whole(name)])
def test_every_law_holds(name, count, tmp_path):
    checked = check(sharpened(name), tmp_path, count, size=(32, 48))
    assert not checked.breaches
    assert len(checked.traces) == count and {len(trace.steps) for trace in checked.traces} == {2}
    untried = [law.name for law in checked.laws if law.holds is None]
    assert untried == [law.name for law in checked.laws for start, names in UNTRIED.items()
                       if law.name.startswith(start) and name in names.split()]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [(name, count) for name in VARIANTS for count in (1, 2)[: 1 + (name in BATCHES)]]
)
def test_every_law_holds_from_images(name, count, tmp_path):
    pipeline = variant(name)
    options = {"size": (32, 48), "steps": 4, **given(name, pipeline, (32, 48))}
    sharpen(pipeline, lambda: draw(pipeline, PROMPTS[0], negative=NEGATIVES[0], **options))
    if count > 1:
        options["image"] = [options["image"]] * count
    assert not check(pipeline, tmp_path, count, **options).breaches


@pytest.mark.slow
def test_quoted_text_has_glyphs_before_the_words(tmp_path):
    """HunyuanImage reads what stands in quotation marks once more, byte by byte."""
    texts = (['a moon, "猫 red"', "a moon"], ['"cat"', "red"])
    checked = check(sharpened("hunyuan-image"), tmp_path, 2, texts)
    assert not checked.breaches
    quoted, plain = (trace.tokens() for trace in checked.traces)
    glyphs = [token.column for token in quoted if token.text.startswith("(glyph")]
    assert len(glyphs) > 10 and glyphs == list(range(len(glyphs))) and not any("glyph" in t.text for t in plain)


# --- planted faults: each in what the recorder gives to the writers of a step ---


def shift_columns(tensors):
    """Each map stands at the next column."""
    return {key: np.roll(maps, 1, -3) if "attn" in key[1] and maps.ndim == 4 else maps for key, maps in tensors.items()}


def swap_branches(tensors):
    other = {"cond": "uncond", "uncond": "cond"}
    return {
        key: tensors.get((key[0], "/".join(other.get(part, part) for part in key[1].split("/"))), maps)
        for key, maps in tensors.items()
    }


def swap_rows(tensors):
    return {key: tensors.get((1 - key[0], key[1]), maps) for key, maps in tensors.items()}


def average_heads(tensors):
    return {
        key: np.broadcast_to(maps.mean(0, keepdims=True), maps.shape).copy() if "attn" in key[1] else maps
        for key, maps in tensors.items()
    }


FAULTS = [
    ("stable-diffusion", 1, shift_columns),
    ("flux", 1, shift_columns),
    ("flux", 2, swap_branches),
    ("stable-diffusion", 2, swap_rows),
    ("qwen-image", 1, average_heads),
]


@pytest.mark.parametrize(("name", "count", "fault"), FAULTS)
def test_a_planted_fault_is_found(name, count, fault, tmp_path, monkeypatch):
    pipeline, arrays_of_step = sharpened(name), RunRecorder._step_arrays

    def faulty(run, step):
        arrays = arrays_of_step(run, step)
        changed = fault({(i, key): np.asarray(maps) for i, of_one in enumerate(arrays) for key, maps in of_one.items()})
        return [{key: maps for (i, key), maps in changed.items() if i == number} for number in range(len(arrays))]

    monkeypatch.setattr(RunRecorder, "_step_arrays", faulty)
    names = {law.name for law in check(pipeline, tmp_path, count, ALIKE).breaches}
    assert "maps equal an explicit softmax" in names


def test_a_second_evaluation_is_found(tmp_path, monkeypatch):
    """Heun evaluates each step twice. Planted: the maps of the second evaluation, which has other latents, are kept."""
    torch.manual_seed(0)
    model, begin = MiniUNet.tiny(), RunRecorder.begin_evaluation

    def draws(prompts, negatives):
        return model.sample(prompts, negatives[0], steps=2, sampler="heun", size=32)

    def holds(folder):
        return not check_model(model, draws, folder, PROMPTS[:1], NEGATIVES[:1]).breaches

    def begin_later(run, evaluation):
        evaluation.run.evaluations.clear()
        begin(run, evaluation)

    assert holds(tmp_path / "right")
    monkeypatch.setattr(RunRecorder, "begin_evaluation", begin_later)
    assert not holds(tmp_path / "wrong")


def test_a_picture_that_recording_changes_is_found(tmp_path, monkeypatch):
    pipeline, finish = made("stable-diffusion"), RunRecorder.finish_step

    def finish_and_disturb(run, step, unread):
        finish(run, step, unread)
        step.latents.add_(0.1 * torch.ones_like(step.latents))

    monkeypatch.setattr(RunRecorder, "finish_step", finish_and_disturb)
    names = {law.name for law in check(pipeline, tmp_path, 1).breaches}
    assert "the recorded picture is the bare one, bit for bit" in names
