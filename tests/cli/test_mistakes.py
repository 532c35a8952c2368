"""A mistake of a user gets one line that says what to do, and nothing is written."""

import contextlib
import errno
import shlex
import sys
from pathlib import Path

import pytest

from toushi import main


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["trace"], 'toushi trace "'),
        (["trace", "猫", "--model", "mini-unt"], "mini-unet"),
        (["trace", "猫", "--steps", "0"], "1 or more"),
        (["trace", "猫", "--steps", "many"], "--steps"),
        (["trace", "猫", "--stepz", "3"], "--steps"),
        (["trace", "猫", "--size", "60"], "64x64"),
        (["trace", "猫", "--size", "64x70"], "64x64"),
        (["trace", "猫", "--size", "64x64x3"], "height x width"),
        (["trace", "猫", "--size", "0"], "16x16"),
        (["trace", "猫", "--seed", "-1"], "--seed"),
        (["trace", "猫", "--guidance", "nan"], "--guidance"),
        (["trace", "猫", "--guidance", "1", "--negative", "狗"], "a negative prompt needs guidance"),
        (["trace", "猫", "--steps", "5:11"], "--steps must be a whole number, but 5:11 came"),
        (["trace", "猫", "--sampler", "eulr"], "--sampler must be one of euler, heun, but eulr came"),
        (["trace", "猫", "--guidance", "big"], "--guidance must be a number, but big came"),
        (["trace", "a", "red", "cat"], "put quotes around all of it"),
        (["compare", "runs/cat"], "B is missing"),
        (["trace", "猫", "--words", "狗"], "Its words: 猫"),
        (["trace", "猫头鹰", "--words", "猫"], "part of 猫头鹰"),
        (["trace", "猫", "--device", "gpu"], "cpu"),
        (["trace", "猫", "--device", "cpu:1"], "the numbers 0 to 0"),
        (["trace", "猫", "--prompts", "p.txt"], "either"),
        (["trace", "--prompts", "nowhere.txt"], "nowhere.txt"),
        (["trace", "--resume", "/nowhere"], "/nowhere"),
        (["trace", "猫", "--resume", "runs/cat"], "remove PROMPT"),
        (["trace", "--resume", "runs/cat", "--steps", "50", "--dtype", "bf16"], "remove --steps, --dtype"),
        (["trace", "猫", "--edits", "nowhere.json"], "nowhere.json"),
        (["trace", "猫", "--size", "99999"], "the nearest is 8192x8192"),
        (["doctor", "mini-unet", "--steps", "0"], "--steps must be 1 or more, but 0 came"),
        (["trace", "猫", "--no-record", "--keep", "sum"], "--no-record keeps no map; remove --keep"),
        (
            ["trace", "猫", "--no-record", "--record-steps", "1:2", "--branches", "cond"],
            "remove --record-steps, --branches",
        ),
        (["trace", "猫", "--record-steps", "x"], "--record-steps must be a step or a slice, 7 or 5:11, but 'x' came"),
        (["trace", "猫", "--no-record", "--sites", "unet.up.*", "--words", "猫"], "remove --sites, --words"),
        (["trace", "half a character \ud83d"], "surrogate"),
        (["tracee", "猫"], "'trace'"),
        (["words"], "PROMPT"),
        (["words", "猫", "--model", "nothing"], "nothing"),
        (["info", "/nowhere"], "/nowhere"),
        (["verify", "/nowhere"], "/nowhere"),
        (["compare", "/nowhere", "/nowhere"], "/nowhere"),
        (["compare", "/nowhere", "/nowhere", "--out", "both.jpg"], "--out must end in .pdf, .svg, .png"),
        (["view", "/nowhere"], "/nowhere"),
        (["view", "--port", "0"], "65535"),
        (["view", "--host", "192.0.2.7"], "--host must be an address of this machine"),
        (["export", "/nowhere", "--to", "npz"], "/nowhere"),
        (["export", "/nowhere"], "--to"),
        (["export", "/nowhere", "--to", "csv"], "npz"),
    ],
)
def test_mistakes_get_one_line_that_helps(arguments, hint, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hint in fails(*arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_kept(recorded, tiny, fails, tmp_path):
    before = {path: path.read_bytes() for path in recorded[0].iterdir()}
    assert "--overwrite" in fails("trace", "狗", "--model", tiny, "--out", recorded[0])
    assert "Its words" in fails("trace", "猫", "--words", "狗", "--out", recorded[0], "--overwrite")
    assert "unet" in fails("trace", "猫", "--model", tiny, "--sites", "unet.x", "--out", recorded[0], "--overwrite")
    assert "no model" in fails("trace", "狗", "--model", "none", "--out", recorded[0], "--overwrite")
    assert before == {path: path.read_bytes() for path in recorded[0].iterdir()}
    (tmp_path / "thesis.txt").write_text("years of work")
    for more in ([], ["--no-record"]):
        error = fails("trace", "狗", "--model", tiny, "--steps", "1", "--out", tmp_path, "--overwrite", *more)
        assert "thesis.txt" in error
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_folder_that_cannot_be_written(tiny, fails, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails("trace", "猫", "--model", tiny, "--out", tmp_path / "file" / "run")
    if Path("/proc/self").is_dir():
        assert "cannot write" in fails("trace", "猫", "--model", tiny, "--out", "/proc/self/run")


FILES = ("check none", "compare CAT CAT", "env CAT", "export CAT --to html", "figure CAT", "layers 猫 --encoder none")


@pytest.mark.parametrize("command", FILES)
def test_a_file_that_cannot_be_written_is_refused_first(command, cat, fails, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    command = command.replace("CAT", str(cat)).split()
    assert "cannot write" in fails(*command, "--out", tmp_path / "file" / "a.png")
    assert "is a folder" in fails(*command, "--out", tmp_path / "folder.png")


def test_layers_refuses_a_folder_that_exists_before_the_encoder_is_loaded(cat, fails):
    assert "--overwrite" in fails("layers", "猫", "--encoder", "no-such-encoder", "--save", cat)


def test_a_full_disk_is_no_bug(monkeypatch, fails):
    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("toushi.cli.words.Words.run", full)
    assert "No space left on device. Free some space" in fails("words", "猫")


@pytest.mark.parametrize("content, hint", [(b"", "no prompt"), (b"\n \n", "no prompt"), (b"\xff\xfe\x00", "UTF-8")])
def test_prompt_files_that_hold_no_prompts(content, hint, fails, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(content)
    assert hint in fails("trace", "--prompts", tmp_path / "prompts.txt")


def test_a_picture_that_is_too_large_is_refused(tiny, tmp_path, capsys):
    arguments = ["trace", "猫", "--model", tiny, "--size", "2048", "--no-record", "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "up to 1024x1024" in error and "2048x2048" in error


def test_a_fault_of_ours_is_one_line_too(monkeypatch, capsys):
    def broken(self):
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr("toushi.cli.words.Words.run", broken)
    assert main(["words", "猫"]) == 1
    assert capsys.readouterr().err == (
        "toushi: ZeroDivisionError: deep inside (a bug in Toushi; --debug shows where)\n"
    )
    assert main(["words", "--debug", "猫"]) == 1 and "Traceback" in capsys.readouterr().err


def test_what_may_not_be_read_says_so(monkeypatch, fails, tmp_path):
    def refused(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", refused)
    for name in ("info", "verify", "view"):
        error = fails(name, tmp_path)
        assert "no permission to open" in error and str(tmp_path) in error


def test_interrupting_while_it_is_loaded_is_no_fault(monkeypatch, capsys):
    class Interrupted:
        def find_spec(self, name, *_):
            if name == "toushi.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "toushi.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert main(["words", "猫"]) == 130 and capsys.readouterr().err == "toushi: interrupted\n"


def test_interrupting_is_no_fault(monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("toushi.cli.words.Words.run", interrupted)
    assert main(["words", "猫"]) == 130 and "interrupted" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_no_hub_id(fails, tmp_path):
    missing = tmp_path.name + "/flux"
    for command in (["trace", "猫", "--out", str(tmp_path / "run"), "--model"], ["doctor"], ["words", "猫", "--model"]):
        with contextlib.chdir(tmp_path.parent):
            assert f"there is no folder '{missing}'" in fails(*command, missing)
    said = fails("words", "猫", "--model", "nobody-is-here/flux")  # a hub id: refused before anything is loaded
    assert "expected one of our own models" in said
    advice = fails("doctor", "nobody-is-here/flux")
    assert "if it is a hub id" in advice
    given = shlex.split(advice[advice.index("hf download") :])  # hf takes one pattern after each --include
    assert given[2] == "nobody-is-here/flux" and given[3::2] == ["--include"] * 3


def test_a_mistyped_twin_is_no_hub_id(fails, tmp_path):
    assert "did you mean 'twins/causal'?" in fails("trace", "猫", "--model", "twins/causl", "--out", tmp_path / "run")


def test_words_of_a_pipeline_are_refused_in_a_line(tmp_path, capsys):
    (tmp_path / "model_index.json").write_text("{}")
    assert main(["words", "猫", "--model", str(tmp_path)]) == 2
    assert "toushi layers PROMPT --encoder" in capsys.readouterr().err
