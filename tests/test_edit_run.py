"""`edit_run`: the same run with a change, a new trace that knows its parent, and what changed."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from tests.pipelines.tiny import MAKERS
from toushi.probe.base.errors import ToushiError
from toushi.probe.edit_run import CannotRepeat, edit_run
from toushi.probe.editing.editing import BadEdit, Edit, edit
from toushi.probe.pipelines.load import load
from toushi.probe.recording.record import record
from toushi.probe.resume import resume
from toushi.probe.text.alignment import AmbiguousWord, UnknownWord
from toushi.probe.text.word_changes import OverlappingWords, replace_words
from toushi.probe.trace.open import open_trace

PROMPT = "左边是猫，右边是月亮，夜晚"
HOW = {"steps": 2, "size": 32, "seed": 5, "guidance": 2.0}
CROSS = "unet.*cross_attention"


@pytest.fixture(scope="module")
def model(tiny):
    return load(tiny)


@pytest.fixture(scope="module")
def parent(model, tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "cat"
    with record(model, home):
        model.sample(PROMPT, **HOW)
    return home


def picture(model, prompt=PROMPT, *edits):
    if not edits:
        return np.asarray(model.sample(prompt, **HOW))
    with edit(model, edits):
        return np.asarray(model.sample(prompt, **HOW))


@pytest.mark.parametrize(
    "prompt, changes, expected",
    [
        (PROMPT, [("猫", "")], "左边是，右边是月亮，夜晚"),
        (PROMPT, [("是#2", "有"), ("猫", "红色的狗")], "左边是红色的狗，右边有月亮，夜晚"),
        ("a red cat", [("red", "")], "a cat"),
        ("red cat", [("red", "")], "cat"),
        ("a cat", [("cat", "")], "a"),
        ("猫", [("猫", "")], ""),
    ],
)
def test_words_of_a_prompt_are_replaced(prompt, changes, expected):
    assert replace_words(prompt, changes) == expected


def test_two_changes_of_one_place_are_refused():
    with pytest.raises(OverlappingWords):
        replace_words(PROMPT, [("猫", ""), ((2, 4), "狗")])


@pytest.mark.parametrize(
    "changes, prompt, edits",
    [
        ({"remove": ["猫"]}, PROMPT, [Edit(CROSS, "zero", word="猫", renormalise=True)]),
        ({"scale": {"月亮": 2}}, PROMPT, [Edit(CROSS, word="月亮", factor=2, renormalise=True)]),
        ({"move": {"猫": "right"}}, PROMPT, [Edit(CROSS, "move", word="猫", shift=(0, 0.5), renormalise=True)]),
        ({"keep_only": "猫"}, PROMPT, [Edit(CROSS, "keep_only", word=("猫",), renormalise=True)]),
        ({"without": "猫"}, "左边是，右边是月亮，夜晚", []),
        ({"swap": {"猫": "红色的狗"}}, "左边是红色的狗，右边是月亮，夜晚", []),
        (
            {"knock_out": "unet.middle.cross_attention", "head": (1,)},
            PROMPT,
            [Edit("unet.middle.cross_attention", "zero", head=1)],
        ),
        (
            {"swap": {"猫": "狗"}, "remove": ["狗"]},
            "左边是狗，右边是月亮，夜晚",
            [Edit(CROSS, "zero", word="狗", renormalise=True)],
        ),
    ],
)
def test_the_run_is_the_same_but_for_the_change(model, parent, tmp_path, changes, prompt, edits):
    result = edit_run(parent, tmp_path / "child", model=model, **changes)
    child = result.b
    assert np.array_equal(child.image(), picture(model, prompt, *edits))
    assert not np.array_equal(child.image(), result.a.image())
    assert child.complete and child.prompt == prompt and list(child.sites) == list(open_trace(parent).sites)
    known = child.manifest.parent
    assert known is not None and known.name == "cat"
    assert known.manifest_sha256 == hashlib.sha256((parent / "manifest.json").read_bytes()).hexdigest()
    assert {name.partition(".")[0] for name in result.facts.index} <= {"prompt", "edits", "arguments"}


def test_edits_add_up_over_generations(model, parent, tmp_path):
    edit_run(parent, tmp_path / "child", remove=["猫"], model=model)
    grandchild = edit_run(tmp_path / "child", tmp_path / "grandchild", scale={"月亮": 2}, model=model).b
    both = edit_run(parent, tmp_path / "both", remove=["猫"], scale={"月亮": 2}, model=model).b
    assert np.array_equal(grandchild.image(), both.image())
    assert grandchild.manifest.edits == both.manifest.edits
    with pytest.raises(UnknownWord, match="猫"):  # the edit that the trace has already
        edit_run(tmp_path / "child", tmp_path / "no", without=["猫"], model=model)


def test_an_edited_run_that_was_interrupted_keeps_its_parent(model, parent, tmp_path):
    class Interruption(Exception):
        pass

    def interrupt(index, latents):
        raise Interruption

    with pytest.raises(Interruption):
        edit_run(parent, tmp_path / "child", remove=["猫"], model=model, callback=interrupt)
    before = open_trace(tmp_path / "child")
    assert not before.complete and before.manifest.parent is not None
    resume(model, tmp_path / "child")
    after = open_trace(tmp_path / "child")
    assert after.complete and after.manifest.parent == before.manifest.parent
    whole = edit_run(parent, tmp_path / "whole", remove=["猫"], model=model).b
    assert np.array_equal(after.image(), whole.image())


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({}, ToushiError, "nothing to change"),
        ({"remove": ["狗"]}, UnknownWord, "狗"),
        ({"without": ["是"]}, AmbiguousWord, "是#1"),
        ({"without": ["猫"], "remove": ["猫"]}, UnknownWord, "猫"),
        ({"move": {"猫": "north"}}, ToushiError, "left, right, up, down"),
        ({"remove": ["猫"], "head": 3}, ToushiError, "knock_out"),
        ({"scale": {"猫": "much"}}, BadEdit, "factor must be a number"),
        ({"knock_out": ["unet.middle.cross_attention"], "head": 99}, BadEdit, "no head 99"),
    ],
)
def test_wrong_changes_are_refused(model, parent, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        edit_run(parent, tmp_path / "child", model=model, **changes)


def test_a_trace_is_not_written_over_its_parent(model, parent):
    with pytest.raises(ToushiError, match="another folder"):
        edit_run(parent, parent, remove=["猫"], model=model, overwrite=True)
    with pytest.raises(ToushiError, match="another folder"):  # it would delete the folder with the trace
        edit_run(parent, parent.parent, remove=["猫"], model=model, overwrite=True)
    assert open_trace(parent).complete


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"seed": None}, "seed"),
        ({"prompt": None, "branches": {}, "size": None}, "prompt and size"),
        ({"strength": 0.5}, "image"),
        ({"batch": 4}, "one of 4"),
        ({"arguments": {"prompt": PROMPT, "eta": 0.5}}, "called with eta"),
        ({"arguments": {"generator": {"type": "Generator", "device": "cuda", "seed": 3}}}, "a generator on cuda"),
        ({"loras": [{"file": "style.safetensors", "on": True}]}, "style.safetensors"),
        (
            {"model": {"name": "nobody/nowhere-at-all", "revision": "1"}, "device": "cuda:7"},
            "cuda|no pipeline|not here",
        ),
        ({"model": {"name": "gone", "revision": "1"}}, "gone.*--model"),
        ({"model": {"name": "mini-unet", "weights_sha256": "0" * 64}}, "weights_sha256 0000"),
    ],
)
def test_a_run_that_cannot_be_made_again_is_refused(parent, tmp_path, fields, message):
    copy = tmp_path / "copy"
    shutil.copytree(parent, copy)
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    (copy / "manifest.json").write_text(json.dumps(manifest | fields), encoding="utf-8")
    with pytest.raises(CannotRepeat, match=message):
        edit_run(copy, tmp_path / "child", remove=["猫"])


def test_the_run_of_a_pipeline_is_made_again(tmp_path):
    import torch

    pipeline = MAKERS["stable-diffusion"]()
    with record(pipeline, tmp_path / "cat"):
        generator = torch.Generator().manual_seed(3)
        pipeline("a cat", num_inference_steps=2, height=64, width=64, generator=generator)
    same = edit_run(tmp_path / "cat", tmp_path / "same", scale={"cat": 1}, model=pipeline)
    assert same.mean_difference == 0
    assert edit_run(tmp_path / "cat", tmp_path / "none", remove=["cat"], model=pipeline).mean_difference != 0
