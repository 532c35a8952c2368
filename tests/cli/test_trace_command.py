"""`toushi trace` and `toushi demo` as a stranger uses them."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.shell import HOUSE, PROMPT
from toushi import main
from toushi.probe.trace.open import open_collection, open_trace


def rows_of(said: str) -> list[str]:
    """The row of each word in what `toushi trace` says; the prompt itself stands above the table."""
    return said.split("peak y, x\n", 1)[1].split("\n\n", 1)[0].splitlines()


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
    assert trace.manifest.argv[-1] == str(folder) and "callback" not in trace.manifest.arguments


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
    assert "1 edit (each map is the attention before the edit at its site)" in capsys.readouterr().out
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


def test_a_blank_prompt_is_the_empty_one_and_a_line_break_stays_on_its_line(tiny, tmp_path, capsys):
    options = ["--model", tiny, "--steps", "1", "--size", "16", "--out"]
    assert main(["trace", " \t ", *options, str(tmp_path / "blank")]) == 0
    said = capsys.readouterr()
    assert "unconditional" in said.err and "no word" in said.out and open_trace(tmp_path / "blank").prompt == ""
    assert main(["trace", "a cat\na moon", *options, str(tmp_path / "lines")]) == 0
    assert capsys.readouterr().out.startswith("a cat\\na moon\n")
    assert main(["info", str(tmp_path)]) == 0 and "blank  1 of 1  (empty)\n" in capsys.readouterr().out


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


def test_a_budget_is_a_size_and_is_kept(fails, tmp_path, capsys):
    for wrong in ("much", "0", "-1GB", "1.2.3GB", "1e999"):
        said = fails("trace", "猫", f"--budget={wrong}", "--out", tmp_path / "a")
        assert "--budget must be a size on disk such as 20GB" in said
    assert main(["trace", "猫", "--budget", "10kB", "--steps", "2", "--out", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]  # after the bar: what a run takes is known at its first step
    assert said.startswith("toushi: ") and "the budget is 10 kB" in said and "--budget" in said
    assert main(["trace", "猫", "--budget", "1 GB", "--steps", "1", "--out", str(tmp_path / "c")]) == 0


@pytest.mark.parametrize("choice", [["--sites", "unet.*.self_attention"], ["--branches", "uncond"]])
def test_without_attention_to_the_prompt_there_is_no_figure_of_words_and_no_failure(tiny, tmp_path, capsys, choice):
    out = tmp_path / "run"
    assert main(["trace", "猫", "--model", tiny, *choice, "--size", "16", "--steps", "1", "--out", str(out)]) == 0
    assert "none: no attention of the picture to the prompt was recorded" in capsys.readouterr().out
    assert not (out / "words.png").exists() and not open_trace(out).verify()


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
