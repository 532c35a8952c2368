"""A mistake in Python gets an error that says what was expected, what came, and what to write."""

import re
from types import SimpleNamespace

import pytest

from toushi import ToushiError, diagnose_word, edit_run, load, open_trace, record, subscribe, words_figure
from toushi.probe.models.mini_unet import MiniUNet


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    model, folder = MiniUNet.tiny(), tmp_path_factory.mktemp("runs") / "cat"
    with record(model, folder):
        model.sample("左边是猫", steps=1, size=16)
    return SimpleNamespace(model=model, folder=folder, trace=open_trace(folder))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: record("mini-unet", t.folder.parent / "new").__enter__(), "write load('mini-unet')"),
        (lambda t: record(t.folder, t.model), "expects a folder, but a MiniUNet came"),
        (lambda t: subscribe(t.model, object()).__enter__(), "inherits from Subscriber"),
        (lambda t: load("mini-unet", device="gpu"), "device must be one of cpu, cuda, mps"),
        (lambda t: words_figure(str(t.folder), ["猫"]), "write open_trace("),
        (lambda t: words_figure(t.trace, ["猫"], width="3.3in"), "a number of inches, such as 3.3, but '3.3in' came"),
        (lambda t: t.trace.heat_map("猫#2"), "There is no '猫#2' in the prompt. It occurs once: write '猫'."),
        (
            lambda t: edit_run(t.folder, t.folder.parent / "new", move={"猫": "north"}),
            "left, right, up, down, but 'north'",
        ),
        (lambda t: edit_run(t.folder, t.folder.parent / "new", head=3), "head needs knock_out"),
    ],
)
def test_an_error_says_what_to_write(tiny, call, message):
    with pytest.raises(ToushiError, match=re.escape(message)):
        call(tiny)
    assert not (tiny.folder.parent / "new").exists()


@pytest.mark.parametrize("choice", [{"words": "狗"}, {"budget": 5}, {"steps": 9}])
def test_a_refused_recording_leaves_no_folder(tiny, choice):
    folder = tiny.folder.parent / "refused"
    with pytest.raises(ToushiError), record(tiny.model, folder, **choice):
        tiny.model.sample("左边是猫", steps=1, size=16)
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(ToushiError), record(tiny.model, folder, **choice):
        tiny.model.sample("左边是猫", steps=1, size=16)
    folder.rmdir()  # a folder that was there stays, empty


def test_a_word_can_be_diagnosed_in_a_folder(tiny):
    assert diagnose_word(tiny.folder, "猫") == diagnose_word(tiny.trace, "猫")
