"""A small model computes with one CPU thread, whatever the process has, and the process keeps its number."""

import json
import threading

import pytest
import torch

from toushi import main
from toushi.cli.layers import Layers
from toushi.cli.trace import Trace
from toushi.probe.encoders.record_texts import record_texts
from toushi.probe.models.cpu_threads import cpu_threads
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.load import load
from toushi.probe.pipelines.load_options import BadOption
from toushi.probe.recording.record import record
from toushi.probe.resume import CannotResume, resume
from toushi.probe.trace.open import open_encoder_trace, open_trace

PROMPT = "左边是猫"


@pytest.fixture(autouse=True)
def process():
    """A process whose torch computes with three threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    home = tmp_path_factory.mktemp("models") / "tiny"
    MiniUNet.tiny().save(home, torch.float32)
    return str(home)


def threads_of_new_thread() -> int:
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def of_denoiser(model, compute) -> set[int]:
    """The numbers of threads that the denoiser runs with."""
    found: set[int] = set()
    handle = model.unet.register_forward_pre_hook(lambda *_: found.add(torch.get_num_threads()))
    try:
        compute()
    finally:
        handle.remove()
    return found


def test_one_thread_unless_more_are_asked_for(folder):
    latents = torch.zeros(1, 8, 4, 4)
    for options, expected in ({}, 1), ({"threads": 2}, 2), ({"threads": 3}, 3):
        model = load(folder, "cpu", **options)
        assert of_denoiser(model, lambda m=model: m.sample(PROMPT, steps=1, size=16)) == {expected}
        assert of_denoiser(model, lambda m=model: m.denoise(latents, 0.5, PROMPT)) == {expected}
        assert torch.get_num_threads() == 3


def test_the_rest_of_the_process_keeps_its_number(folder):
    """Also a thread that starts while the model computes, and also after an error."""
    seen = []

    def callback(*_):
        seen.append((torch.get_num_threads(), threads_of_new_thread()))
        raise KeyError

    with pytest.raises(KeyError):
        load(folder, "cpu").sample(PROMPT, steps=1, size=16, callback=callback)
    assert seen == [(1, 3)]
    assert torch.get_num_threads() == threads_of_new_thread() == 3


def test_two_at_once_leave_the_number_as_it_was():
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with cpu_threads(2):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with cpu_threads(1):
        thread.start()
        inside.wait(10)
        assert torch.get_num_threads() == 1
    leave.set()
    thread.join()
    assert torch.get_num_threads() == threads_of_new_thread() == 3


def test_the_manifest_has_the_number_that_computed(folder, tmp_path):
    model = load(folder, "cpu")
    with record(model, tmp_path / "sampled"):
        model.sample(PROMPT, steps=1, size=16)
    with record(model, tmp_path / "evaluated"):
        model.denoise(torch.zeros(1, 8, 4, 4), 0.5, PROMPT)
    for name in ("sampled", "evaluated"):
        manifest = open_trace(tmp_path / name).manifest
        assert manifest.threads == manifest.loading["threads"] == 1
    record_texts(folder, [PROMPT], tmp_path / "texts")
    assert open_encoder_trace(tmp_path / "texts").manifest.threads == 1


def cut_off(folder: str, out, **options) -> None:
    """A run that ends after its first step."""

    def callback(*_):
        raise KeyError

    model = load(folder, "cpu", **options)
    with pytest.raises(KeyError), record(model, out):
        model.sample(PROMPT, steps=3, size=16, callback=callback)


def test_a_run_goes_on_with_the_threads_that_it_began_with(folder, tmp_path, capsys):
    with record(load(folder, "cpu"), tmp_path / "whole") as recording:
        whole = recording.model.sample(PROMPT, steps=3, size=16)
    cut_off(folder, tmp_path / "one")
    assert resume(load(folder, "cpu"), tmp_path / "one").tobytes() == whole.tobytes()
    cut_off(folder, tmp_path / "two", threads=2)
    with pytest.raises(CannotResume, match="begun with threads 2; here it is 1.*Load the model with threads=2"):
        resume(load(folder, "cpu"), tmp_path / "two")
    assert main(["trace", "--resume", str(tmp_path / "two"), "--model", folder]) == 0
    trace = open_trace(tmp_path / "two")
    assert trace.complete and trace.manifest.threads == 2 and trace.verify() == []


@pytest.mark.parametrize("written", [0, -1, 10**9, "many", None, 1.5])
def test_a_number_of_threads_that_nobody_has_is_refused(folder, tmp_path, written, capsys):
    cut_off(folder, tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "threads": written}))
    assert main(["trace", "--resume", str(tmp_path / "run"), "--model", folder]) == 2
    assert "threads" in capsys.readouterr().err


def test_the_commands_take_it(folder, tmp_path, capsys):
    drawing = ["--model", folder, "--steps", "1", "--size", "16", "--threads", "2", "--out", str(tmp_path / "run")]
    assert main(["trace", PROMPT, *drawing]) == 0
    assert open_trace(tmp_path / "run").manifest.threads == 2
    for options, expected in ([], 1), (["--threads", "2"], 2):
        texts = tmp_path / f"texts-{expected}"
        assert main(["layers", PROMPT, "--encoder", folder, "--save", str(texts), *options]) == 0
        assert open_encoder_trace(texts).manifest.threads == expected
    capsys.readouterr()
    for command in (["trace", PROMPT], ["sites"], ["layers", PROMPT]):
        assert main([*command, "--threads", "0"]) == 2
        assert "threads must be a whole number from 1 to 1024; 0 came" in capsys.readouterr().err


def test_numbers_that_cannot_be_meant():
    for wrong in (0, -1, 5000, 2.0, "two"):
        with pytest.raises(BadOption, match="threads must be a whole number from 1 to 1024"):
            load("mini-unet", threads=wrong)
    assert Trace().loading.threads is None and Layers(("猫",)).threads is None
