"""The `toushi` command as a stranger uses it. Most cases run in this process; a few start the real one."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import toushi
from toushi import main
from toushi.cli.terminal import table
from toushi.cli.token_alignment import format_alignment
from toushi.cli.trace import checked_size, default_folder
from toushi.cli.trace_summary import name_place
from toushi.probe.base.byte_sizes import format_bytes
from toushi.probe.base.text_width import text_width
from toushi.probe.text.alignment import Token, Word
from toushi.probe.trace.collection import write_collection
from toushi.probe.trace.open import open_collection, open_trace

HOUSE = Path(toushi.__file__).resolve().parents[1]
PROMPT = "左边是猫，右边是月亮，夜晚"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    from toushi.probe.models.mini_unet import MiniUNet

    folder = tmp_path_factory.mktemp("models") / "tiny"
    MiniUNet.tiny().save(folder)
    return str(folder)


@pytest.fixture
def fails(capsys):
    """fails(*arguments) -> the error, which is one line on stderr that begins with `toushi: `; exit code 2."""

    def run(*arguments) -> str:
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if not line.startswith("toushi: warning")]
        assert code == 2 and len(errors) == 1 and errors[0].startswith("toushi: "), said
        assert "Traceback" not in said.err
        return errors[0]

    return run


@pytest.fixture(scope="session")
def recorded(tiny, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A trace that the real command made in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "猫 1"
    arguments = ["trace", PROMPT, "--model", tiny, "--steps", "3", "--size", "32x64", "--out", str(folder)]
    return folder, command(*arguments)


def command(*arguments: str, **environment) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(HOUSE), os.environ.get("PYTHONPATH", "")])
    told = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "toushi", *arguments], capture_output=True, env=told, encoding="utf-8", timeout=120
    )


def rows_of(said: str) -> list[str]:
    """The row of each word in what `toushi trace` says; the prompt itself stands above the table."""
    return said.split("peak y, x\n", 1)[1].split("\n\n", 1)[0].splitlines()


# --- trace ---


def test_words_of_a_pipeline_are_refused_in_a_line(tmp_path, capsys):
    (tmp_path / "model_index.json").write_text("{}")
    assert main(["words", "猫", "--model", str(tmp_path)]) == 2
    assert "toushi layers PROMPT --encoder" in capsys.readouterr().err


def test_trace_draws_records_and_tells(recorded):
    folder, done = recorded
    assert done.returncode == 0, done.stderr
    assert "/3" in done.stderr  # the progress bar
    assert [row.split()[0] for row in rows_of(done.stdout)] == ["左边", "是#1", "猫", "右边", "是#2", "月亮", "夜晚"]
    assert "besides   <bos> " in done.stdout and "time      sampling " in done.stdout
    assert str(folder / "words.png") in done.stdout and f"toushi view '{folder}'" in done.stdout
    assert Image.open(folder / "image.png").size == (64, 32)
    assert Image.open(folder / "words.png").width > 500
    trace = open_trace(folder)
    assert trace.complete and trace.prompt == PROMPT and trace.steps == [0, 1, 2]
    assert trace.manifest.argv[-1] == str(folder)


def test_words_and_special_tokens_together_are_all_of_the_attention(recorded):
    shares = re.findall(r"(\d+\.?\d*) %", recorded[1].stdout)
    assert sum(map(float, shares)) == pytest.approx(100, abs=2)


def test_the_same_without_recording_draws_the_same_picture(recorded, tiny, tmp_path, capsys):
    arguments = ["trace", PROMPT, "--model", tiny, "--steps", "3", "--size", "32x64", "--no-record"]
    assert main([*arguments, "--out", str(tmp_path / "bare")]) == 0
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["image.png"]
    assert (tmp_path / "bare" / "image.png").read_bytes() == (recorded[0] / "image.png").read_bytes()
    assert "image.png" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="signals to a process group")
def test_ctrl_c_ends_it_with_one_line_and_keeps_the_finished_steps(tiny, tmp_path):
    folder = tmp_path / "run"
    arguments = [sys.executable, "-m", "toushi", "trace", PROMPT, "--model", tiny, "--steps", "3000", "--out", folder]
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1"}
    # A session of its own is the foreground group that the terminal would send Ctrl-C to. The terminal's own shell does
    # not ignore that signal, as whatever started these tests may (`make test &`), and a child inherits it.
    process = subprocess.Popen(
        list(map(str, arguments)), env=environment, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while not (folder / "steps.jsonl").exists() or len((folder / "steps.jsonl").read_bytes().splitlines()) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.strip() and "step/s" not in line]
    lines = [line for line in lines if not line.startswith("step:")]
    assert process.returncode == 130 and lines == ["toushi: interrupted; finished steps can be read"]
    trace = open_trace(folder)
    assert not trace.complete and len(trace.steps) >= 3
    assert trace.verify() == [f"The run did not end: {len(trace.steps)} of 3000 steps are finished."]


def test_resume_finishes_what_was_cut_off(tiny, tmp_path, capsys, fails):
    from toushi.probe.pipelines.load import load
    from toushi.probe.recording.record import record

    class Cut(Exception):
        pass

    def cut(index, latents):
        if index == 1:
            raise Cut

    options = ["--model", tiny, "--steps", "4", "--size", "16x32"]
    assert main(["trace", PROMPT, *options, "--out", str(tmp_path / "whole")]) == 0
    with pytest.raises(Cut), record(load(tiny, "cpu"), tmp_path / "cut") as recording:
        recording.model.sample(PROMPT, steps=4, size=(16, 32), callback=cut)
    capsys.readouterr()
    assert main(["trace", "--resume", str(tmp_path / "cut"), "--model", tiny]) == 0
    assert "2 of 4 steps" in capsys.readouterr().out
    for name in ("image.png", "words.png", "step_0003.safetensors", "encoder.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert "complete" in fails("trace", "--resume", tmp_path / "cut", "--model", tiny)


def test_edits_from_a_file_and_from_a_trace(tiny, tmp_path, capsys, fails):
    edits = tmp_path / "edits.json"
    edits.write_text('[{"site": "unet.*.cross_attention", "kind": "zero", "word": "猫"}]', encoding="utf-8")
    options = ["--model", tiny, "--steps", "2", "--size", "16", "--out"]
    assert main(["trace", PROMPT, *options, str(tmp_path / "free")]) == 0
    assert main(["trace", PROMPT, "--edits", str(edits), *options, str(tmp_path / "edited")]) == 0
    assert main(["trace", PROMPT, "--edits", str(tmp_path / "edited"), *options, str(tmp_path / "again")]) == 0
    free, edited, again = (open_trace(tmp_path / name) for name in ("free", "edited", "again"))
    assert edited.manifest.edits[0]["word"] == "猫"
    assert not np.array_equal(free.latent(1), edited.latent(1)) and np.array_equal(edited.latent(1), again.latent(1))
    capsys.readouterr()
    assert "holds no edit" in fails("trace", PROMPT, "--edits", tmp_path / "free", *options, tmp_path / "x")
    edits.write_text('[{"sites": "unet"}]', encoding="utf-8")
    assert "expected an edit such as" in fails("trace", PROMPT, "--edits", edits, *options, tmp_path / "y")


def test_prompts_from_a_file_make_one_trace_each(tiny, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\ufeff一只猫\r\n\r\na red cat\r\n", encoding="utf-8")
    options = ["--model", tiny, "--steps", "1", "--size", "16", "--out", str(tmp_path / "many")]
    assert main(["trace", "--prompts", str(tmp_path / "prompts.txt"), *options, "--keep", "mean"]) == 0
    assert [trace.prompt for trace in open_collection(tmp_path / "many")] == ["一只猫", "a red cat"]
    assert (tmp_path / "many" / "001" / "words.png").exists()
    capsys.readouterr()
    assert main(["info", str(tmp_path / "many")]) == 0 and "a red cat" in capsys.readouterr().out
    assert main(["trace", "--prompts", str(tmp_path / "prompts.txt"), *options, "--overwrite", "--no-record"]) == 0
    made = sorted(str(path.relative_to(tmp_path / "many")) for path in (tmp_path / "many").rglob("*.*"))
    assert made == ["000/image.png", "001/image.png"]
    assert main(["trace", "猫", *options, "--overwrite"]) == 0 and open_trace(tmp_path / "many").prompt == "猫"


def test_choices_reach_the_recorder(tiny, tmp_path, capsys):
    options = ["--steps", "2", "--sampler", "heun", "--guidance", "1", "--seed", "7", "--dtype", "bf16"]
    options += ["--sites", "unet.middle.*", "--words", "猫", "--out", str(tmp_path / "run")]
    options += ["--record-steps", "1:", "--branches", "cond"]
    assert main(["trace", PROMPT, "--model", tiny, "--size", "16", *options]) == 0
    trace = open_trace(tmp_path / "run")
    assert all(name.startswith("unet.middle.") for name in trace.sites)
    assert (trace.manifest.seed, trace.manifest.sampler, trace.manifest.size) == (7, "heun", (16, 16))
    assert trace.branches == ["cond"] and trace.steps == [1]
    assert trace.manifest.dtype == "bfloat16" and trace.manifest.kept.words == ["猫"]
    assert [row.split()[0] for row in rows_of(capsys.readouterr().out)] == ["猫"]
    assert main(["info", str(tmp_path / "run")]) == 0
    assert re.search(r"^steps +1 of 2 \(recorded: 1\)$", capsys.readouterr().out, re.MULTILINE)


def test_the_empty_prompt_is_the_unconditional_picture(tiny, tmp_path, capsys):
    assert main(["trace", "", "--model", tiny, "--steps", "1", "--size", "16", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "unconditional" in said.err and "no word" in said.out


def test_a_blank_prompt_is_the_empty_one_and_a_line_break_stays_on_its_line(tiny, tmp_path, capsys):
    options = ["--model", tiny, "--steps", "1", "--size", "16", "--out"]
    assert main(["trace", " \t ", *options, str(tmp_path / "blank")]) == 0
    assert "unconditional" in capsys.readouterr().err and open_trace(tmp_path / "blank").prompt == ""
    assert main(["trace", "a cat\na moon", *options, str(tmp_path / "lines")]) == 0
    assert capsys.readouterr().out.startswith("a cat\\na moon\n")


def test_a_picture_that_is_too_large_is_refused(tiny, tmp_path, capsys):
    arguments = ["trace", "猫", "--model", tiny, "--size", "2048", "--no-record", "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "up to 1024x1024" in error and "2048x2048" in error


def test_a_prompt_that_is_too_long_names_the_words_lost(tiny, tmp_path, capsys):
    prompt = "左边是猫，右边是月亮，" * 20 + "最后是恐龙"
    out = str(tmp_path / "run")
    assert main(["trace", prompt, "--model", tiny, "--steps", "1", "--size", "16", "--out", out]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("toushi: warning")]
    assert len(warnings) == 1 and "恐龙" in warnings[0] and "77" in warnings[0]
    many = " ".join(f"x{number}" for number in range(3000))
    assert main(["words", many, "--model", tiny]) == 0
    said = capsys.readouterr().err
    assert re.search(r"x\d+、x\d+.* and \d{4} more$", said) and len(said) < 200, "thousands are counted, not listed"


# --- demo ---


@pytest.mark.slow
def test_the_demo_is_the_same_as_its_trace_command_and_replaces_only_its_own(tmp_path, capsys, monkeypatch, fails):
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    first = capsys.readouterr().out
    assert main(["trace", PROMPT, "--steps", "20", "--seed", "0", "--out", "traced"]) == 0
    names = {path.name for path in Path("traced").iterdir()}
    assert names == {path.name for path in Path("runs/demo").iterdir()} and {"image.png", "words.png"} <= names
    for name in sorted(names - {"manifest.json", "steps.jsonl"}):  # these hold times and the command
        assert (Path("runs/demo") / name).read_bytes() == (Path("traced") / name).read_bytes(), name
    assert f"{Path('runs/demo/words.png')}\n" in first and first.splitlines()[-2].endswith("  toushi view runs/demo")
    assert main(["demo"]) == 0  # its own
    assert main(["trace", "猫", "--steps", "1", "--size", "16", "--out", "mine"]) == 0
    capsys.readouterr()
    assert "--overwrite" in fails("demo", "--out", "mine") and open_trace("mine").prompt == "猫"


# --- wrong input ---


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["trace"], 'toushi trace "'),
        (["trace", "猫", "--model", "mini-unt"], "mini-unet"),
        (["trace", "猫", "--steps", "0"], "1 or more"),
        (["trace", "猫", "--steps", "-3"], "1 or more"),
        (["trace", "猫", "--steps", "many"], "--steps"),
        (["trace", "猫", "--stepz", "3"], "--steps"),
        (["trace", "猫", "--size", "60"], "64x64"),
        (["trace", "猫", "--size", "64x70"], "64x64"),
        (["trace", "猫", "--size", "64x64x3"], "height x width"),
        (["trace", "猫", "--size", "0"], "16x16"),
        (["trace", "猫", "--size", "100000"], "8192"),
        (["trace", "猫", "--seed", "-1"], "--seed"),
        (["trace", "猫", "--guidance", "nan"], "--guidance"),
        (["trace", "猫", "--guidance", "1", "--negative", "狗"], "a negative prompt needs guidance"),
        (["trace", "猫", "--steps", "5:11"], "--steps must be a whole number, but 5:11 came"),
        (["trace", "猫", "--sampler", "eulr"], "euler"),
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
        (["compare", "/nowhere", "/nowhere", "--out", "both.jpg"], "--out must end in .png, .pdf, .svg"),
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
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_collection_can_be_viewed(recorded, tmp_path, monkeypatch):
    shutil.copytree(recorded[0], tmp_path / "many" / "000")
    write_collection(tmp_path / "many", ["000"])
    started = []
    monkeypatch.setattr(os, "execve", lambda *how: started.append(how))
    for folder in (tmp_path / "many", recorded[0].parent):  # one that was recorded so, or one by one
        assert main(["view", str(folder), "--headless"]) == 0
        assert started[-1][1][-1] == str(folder) and "--server.port" not in started[-1][1]


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


@pytest.mark.parametrize("content, hint", [(b"", "no prompt"), (b"\n \n", "no prompt"), (b"\xff\xfe\x00", "UTF-8")])
def test_prompt_files_that_hold_no_prompts(content, hint, fails, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(content)
    assert hint in fails("trace", "--prompts", tmp_path / "prompts.txt")


def test_a_damaged_trace(recorded, fails, tmp_path, capsys):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in recorded[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    step = folder / "step_0001.safetensors"
    whole = step.read_bytes()
    step.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(["verify", str(folder)]) == 1 and "step_0001" in capsys.readouterr().out
    (folder / "manifest.json").write_text('{"format": ')
    for name in ("info", "verify", "view"):
        assert "manifest.json" in fails(name, folder)


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


# --- the others ---


def test_info_tells_what_is_there(recorded, capsys):
    assert main(["info", str(recorded[0])]) == 0
    said = capsys.readouterr().out
    facts, sites = said.split("\n\n")
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in facts.splitlines())
    assert (facts["prompt"], facts["words"]) == (PROMPT, "左边  是  猫  右边  是  月亮  夜晚")
    assert (facts["steps"], facts["size"], facts["sampler"], facts["seed"]) == ("3 of 3", "32x64", "euler", "0")
    assert not {"LoRA", "safety checker", "edits"} & set(facts)
    assert facts["unet"].startswith("UNet, float32, weights ") and facts["scheduler"].startswith("Scheduler, shift 1.5")
    assert facts["arguments"].startswith("steps=3, size=[32, 64], callback=function ")
    assert re.search(r"^unet\.down\.0\.cross_attention +image to text +8x16 ", sites, re.MULTILINE)
    assert main(["verify", str(recorded[0])]) == 0 and "no problem found" in capsys.readouterr().out


def test_info_tells_what_was_put_in_what_was_blocked_and_what_is_not_recorded(recorded, tmp_path, capsys):
    shutil.copytree(recorded[0], tmp_path / "run")
    more = {
        "loras": [{"name": "style", "file": "style.safetensors", "scale": 0.8, "on": True}],
        "generator_state": "AAAA",
        "batch": 2,
        "batch_index": 1,
        "arguments": {"eta": 1.0, "image": {"type": "Image", "shape": [8, 8, 3], "dtype": "RGB", "sha256": "ab" * 32}},
        "safety": "blocked",
        "true_guidance": 2.5,
        "not_recorded": {"controlnet.*": "a control network attends by itself"},
    }
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({**manifest, **more}), encoding="utf-8")
    assert main(["info", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    unseen = r"not recorded +controlnet\.\*: a control network attends by itself"
    again = "arguments +eta=1.0, image=Image abababababab"
    assert "the generator was used before" in said
    for row in (
        "LoRA +style.safetensors x 0.8",
        "safety checker +blocked",
        "real guidance +2.5",
        unseen,
        again,
        "picture +2 of 2",
    ):
        assert re.search(f"^{row}$", said, re.MULTILINE), row


def test_compare_prints_pictures_settings_and_words_and_draws(recorded, tiny, fails, tmp_path, capsys):
    folder, other, figure = recorded[0], tmp_path / "other", tmp_path / "both.png"
    assert (
        main(["trace", PROMPT, "--model", tiny, "--steps", "2", "--size", "32x64", "--seed", "9", "--out", str(other)])
        == 0
    )
    capsys.readouterr()
    assert main(["compare", str(folder), str(other), "--words", "月亮", "猫", "--out", str(figure)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"mean difference +\d+\.\d of 255", said) and re.search(r"^seed +\d+ +9$", said, re.MULTILINE)
    assert [line.split()[0] for line in said.splitlines() if line.startswith(("月亮", "猫", "左边"))] == ["月亮", "猫"]
    assert said.endswith(f"figure  {figure}\n") and figure.read_bytes()[:4] == b"\x89PNG"
    assert main(["compare", str(folder), str(folder)]) == 0
    assert "no setting differs" in capsys.readouterr().out
    assert "狗" in fails("compare", folder, other, "--words", "狗")


def test_export_writes_one_file_and_keeps_what_is_there(recorded, fails, tmp_path, capsys):
    out = str(tmp_path / "cat.npz")
    assert main(["export", str(recorded[0]), "--to", "npz", "--out", out, "--words", "猫", "月亮"]) == 0
    said = capsys.readouterr()
    assert out in said.out and "6 arrays" in said.out and "/18" in said.err  # two words, three grids, three steps
    with np.load(out) as data:
        names = {name.rpartition("/")[0] for name in data.files if name != "about"}
    assert names == {"cond/猫", "cond/月亮"}
    assert "--overwrite" in fails("export", recorded[0], "--to", "npz", "--out", out)
    assert "not in the prompt" in fails(
        "export", recorded[0], "--to", "npz", "--out", out, "--overwrite", "--words", "狗"
    )
    assert main(["export", str(recorded[0]), "--to", "parquet", "--tokens", "--out", str(tmp_path / "cat.pq")]) == 0
    assert "rows" in capsys.readouterr().out and len(list(tmp_path.iterdir())) == 2


def test_sites_lists_every_attention_with_its_grid(tiny, capsys):
    assert main(["sites", "--model", tiny]) == 0
    said = capsys.readouterr().out
    kinds = {kind: said.count(kind) for kind in ("text to text", "image to text", "image to image")}
    assert kinds["text to text"] == 12 and all(kinds.values())
    assert re.search(r"unet\.down\.0\.cross_attention +image to text +16x16", said)


def test_words_stand_under_their_characters(tiny, capsys):
    assert main(["words", "河边的银行，𰻝a cat", "--model", tiny]) == 0
    characters, tokens, words = capsys.readouterr().out.splitlines()[:3]
    assert (characters[:10], tokens[:6], words[:5]) == ("characters", "tokens", "words")

    def cell(line: str, text: str) -> int:
        return text_width(line[: line.index(text)])

    for word, character in (("银行", "银"), ("𰻝", "𰻝")):
        assert cell(words, word) == cell(characters, character)
    assert cell(tokens, "，") == cell(characters, "，")
    assert words.rstrip().endswith("│cat")


def test_lanes_break_where_nothing_is_cut():
    prompt = "左边是猫头鹰"
    tokens = [Token(i, c, (i, i + 1), "text", (), i, i) for i, c in enumerate(prompt)]
    words = [Word("左边", 0, 2), Word("是", 2, 3), Word("猫头鹰", 3, 6)]
    lines = format_alignment(prompt, tokens, words, width=28).splitlines()
    assert (
        "".join(line.split("words")[1] for line in lines if line.startswith("words")).replace(" ", "")
        == "│左边│是│猫头鹰"
    )
    assert len(lines) == 7 and all(text_width(line) <= 28 for line in lines)


def test_help_teaches(capsys):
    assert main([]) == 0 and main(["--help"]) == 0
    said = capsys.readouterr().out
    assert 'toushi trace "左边是猫，右边是月亮，夜晚"' in said
    for name in ("demo", "trace", "view", "words", "sites", "info", "verify", "export"):
        assert main([name, "--help"]) == 0
        assert f"  toushi {name} " in capsys.readouterr().out and name in said


def test_view_starts_the_explorer_on_the_folder(recorded, monkeypatch):
    calls = []
    monkeypatch.setattr("os.execve", lambda program, command, environment: calls.append((command, environment)))
    assert main(["view", str(recorded[0]), "--port", "8765", "--headless"]) == 0
    ((said, environment),) = calls
    assert said[-2:] == ["--", str(recorded[0])] and "8765" in said and Path(said[4]).is_file()
    assert str(HOUSE) in environment["PYTHONPATH"]


@pytest.mark.parametrize("locale, who, may, look", [
    ("C", "everybody who can reach this machine", "record, edit and delete", "only see"),
    ("zh_CN.UTF-8", "网络上能连到这台机器的任何人", "新做、干预和删除", "只能观看"),
])  # fmt: skip
def test_view_says_who_can_come_and_what_they_may_do(recorded, monkeypatch, capsys, locale, who, may, look):
    calls = []
    monkeypatch.setattr("os.execve", lambda program, command, environment: calls.append(command))
    monkeypatch.setenv("LC_ALL", locale)
    folder = str(recorded[0])
    assert main(["view", folder]) == 0 and capsys.readouterr().out == "" and "--server.address" not in calls[-1]
    assert main(["view", folder, "--host", "0.0.0.0"]) == 0
    said, port = capsys.readouterr().out, calls[-1][calls[-1].index("--server.port") + 1]
    assert re.search(rf"http://[\w.-]+:{port}\n", said) and who in said and may in said and "0.0.0.0" not in said
    assert (
        calls[-1][-3:] == ["--", "--shared", folder] and calls[-1][calls[-1].index("--server.address") + 1] == "0.0.0.0"
    )
    assert main(["view", folder, "--host", "0.0.0.0", "--read-only"]) == 0
    assert look in capsys.readouterr().out and calls[-1][-3:] == ["--shared", "--read-only", folder]


def test_what_layers_saved_can_be_viewed(tmp_path, monkeypatch, capsys):
    folder, calls = tmp_path / "bank", []
    monkeypatch.setattr("os.execve", lambda program, command, environment: calls.append(command))
    assert main(["layers", "我在河边的银行钓鱼", "--save", str(folder)]) == 0
    assert f"toushi view {folder}" in capsys.readouterr().out
    assert main(["view", str(folder)]) == 0 and calls[0][-1] == str(folder)


# --- the front door ---


def test_the_front_door_needs_no_torch():
    code = "import sys, toushi; toushi.open_trace; toushi.words_figure; print('torch' in sys.modules)"
    told = {**os.environ, "PYTHONPATH": str(HOUSE)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=told, encoding="utf-8")
    assert done.stdout.strip() == "False", done.stderr


def test_public_names():
    for name in toushi.__all__:
        assert getattr(toushi, name) is not None
    assert set(toushi.__all__) <= set(dir(toushi))
    with pytest.raises(AttributeError, match="open_trace"):
        _ = toushi.open_traces


def test_a_terminal_that_cannot_show_chinese_does_not_break_it(recorded):
    done = command("info", str(recorded[0]), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0 and "3 of 3" in done.stdout


# --- small things ---


def test_small_things():
    assert [text_width(t) for t in ("猫", "cat", "ｃ", "e\u0301", "𰻝", "é", "🐱")] == [2, 3, 2, 1, 2, 1, 2]
    assert table([("猫", "1"), ("ab", "10")], right=(1,)) == "猫   1\nab  10"
    assert [format_bytes(n) for n in (12, 1234, 999_600, 123_456_789)] == ["12 B", "1.23 kB", "1 MB", "123 MB"]
    assert checked_size("64") == (64, 64) and checked_size("32×96") == (32, 96)
    assert default_folder([PROMPT], None, 3) == Path("runs/左边是猫右边是月亮夜晚-3")
    assert default_folder(["../a b"], None, 0) == Path("runs/a-b-0") and default_folder([""], None, 0).name == "empty-0"
    assert name_place(0.3, 0.3, 0.9) == "top left" and name_place(0.5, 0.5, 0.9) == "middle"
    assert name_place(0.5, 0.7, 0.9) == "right" and name_place(0.3, 0.3, 1.0) == "everywhere"
    assert name_place(float("nan"), 0.5, 0.5) == "everywhere"


def test_a_budget_is_a_size_and_is_kept(fails, tmp_path, capsys):
    for wrong in ("much", "0", "-1GB", "1.2.3GB", "1e999"):
        said = fails("trace", "猫", f"--budget={wrong}", "--out", tmp_path / "a")
        assert "--budget must be a size on disk such as 20GB" in said
    assert main(["trace", "猫", "--budget", "10kB", "--steps", "2", "--out", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]  # after the bar: what a run takes is known at its first step
    assert said.startswith("toushi: ") and "the budget is 10 kB" in said and "--budget" in said
    assert main(["trace", "猫", "--budget", "1 GB", "--steps", "1", "--out", str(tmp_path / "c")]) == 0


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


def test_a_layer_that_is_not_there_is_said_before_anything_is_kept(fails, tmp_path):
    said = fails("layers", "河边的银行", "--layers", "99", "--save", tmp_path / "run")
    assert "there is no layer 99" in said and not (tmp_path / "run").exists()


def test_without_attention_to_the_text_there_is_no_figure_of_words_and_no_failure(tiny, tmp_path, capsys):
    out = tmp_path / "run"
    sites = ["--sites", "unet.*.self_attention", "--size", "16", "--steps", "1", "--out", str(out)]
    assert main(["trace", "猫", "--model", tiny, *sites]) == 0
    assert "none: no attention of the picture to the text was recorded" in capsys.readouterr().out
    assert not (out / "words.png").exists() and not open_trace(out).verify()


def test_edits_are_told_where_the_maps_are(tiny, tmp_path, capsys):
    (tmp_path / "edits.json").write_text('[{"site": "unet.*.cross_attention", "kind": "zero", "word": "猫"}]')
    options = ["--edits", str(tmp_path / "edits.json"), "--size", "16", "--steps", "1", "--out", str(tmp_path / "run")]
    assert main(["trace", "猫", "--model", tiny, *options]) == 0
    assert "1 edit (each map is the attention before the edit at its site)" in capsys.readouterr().out


def test_a_mistyped_twin_is_no_hub_id(fails, tmp_path):
    assert "did you mean 'twins/causal'?" in fails("trace", "猫", "--model", "twins/causl", "--out", tmp_path / "run")


def test_traces_that_lie_in_one_folder_are_told_and_checked_together(tiny, tmp_path, capsys):
    for name in ("a", "b"):
        main(["trace", f"猫 {name}", "--model", tiny, "--size", "16", "--steps", "1", "--out", str(tmp_path / name)])
    main(["layers", "河边的银行", "--save", str(tmp_path / "layers")])
    capsys.readouterr()
    assert main(["info", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "猫 a" in said and "猫 b" in said and "河边的银行" in said
    assert main(["verify", str(tmp_path)]) == 0 and capsys.readouterr().out.count("no problem found") == 3
    (tmp_path / "a" / "manifest.json").write_text((tmp_path / "a" / "manifest.json").read_text()[:-9])
    assert main(["verify", str(tmp_path)]) == 1  # the damaged one is named, the others are looked at all the same
    said = capsys.readouterr().out
    assert said.count("no problem found") == 2 and f"{tmp_path / 'a'}: " in said
    assert main(["info", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "damaged" in said and "猫 b" in said
