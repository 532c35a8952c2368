"""Help, public names, what is written to a terminal; `toushi sites` and `toushi words`."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import toushi
from tests.cli.shell import HOUSE, PROMPT, command
from toushi import main
from toushi.cli.main import COMMANDS
from toushi.cli.terminal import table
from toushi.cli.token_alignment import format_alignment
from toushi.cli.trace import checked_size, default_folder
from toushi.cli.trace_summary import name_place
from toushi.probe.base.byte_sizes import format_bytes
from toushi.probe.base.text_width import text_width
from toushi.probe.text.alignment import Token, Word


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
    for name in ("demo", "trace", "view", "words", "layers", "sites", "info", "verify", "export"):
        assert main([name, "--help"]) == 0
        assert f"  toushi {name} " in capsys.readouterr().out and name in said


def test_help_is_wrapped_and_names_only_defaults_that_are_values(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name, kind in COMMANDS.items():
        assert main([name, "--help"]) == 0
        said = capsys.readouterr().out
        assert said.startswith("usage: toushi ") and "\noptions:\n" in said
        assert not re.search(r"None|\(default: *\)", said)
        prose = [line for line in said.splitlines() if line not in kind.ABOUT]
        assert prose and all(len(line) <= 80 for line in prose), name
        options = [field.name for field in fields(kind) if field.type is bool]
        assert all(f"\n  --{option.replace('_', '-')} " in said for option in options), name


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
