"""`toushi edit` and `toushi why`."""

import re

import pytest

from toushi import main
from toushi.probe.trace.open import open_trace


def test_the_command_says_what_changed_and_where_it_is(cat, tiny, tmp_path, capsys):
    out = tmp_path / "child"
    arguments = ["edit", str(cat), "--remove", "猫", "--scale", "月亮=2", "--move", "夜晚=up", "--model", tiny]
    assert main([*arguments, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "mean difference" in said and "edits" in said and f"toushi view {out}" in said
    edits = open_trace(out).manifest.edits
    assert edits is not None and [one["kind"] for one in edits] == ["zero", "scale", "move"]
    assert main(["info", str(out)]) == 0 and re.search(r"^parent +cat$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "nothing to change"),
        (["--scale", "月亮"], "月亮=2"),
        (["--scale", "月亮=much"], "no number"),
        (["--swap", "猫="], "猫=狗"),
        (["--move", "猫=north"], "left, right"),
        (["--remove", "狗"], "狗"),
        (["--remove", "猫"], "--model"),  # the shipped model has other weights
    ],
)
def test_mistakes_get_one_line(cat, tmp_path, capsys, options, message):
    assert main(["edit", str(cat), *options, "--out", str(tmp_path / "child")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("toushi: ") and said.count("\n") == 1, said
    assert not list(tmp_path.iterdir())


def test_why_lists_measures_findings_and_what_to_try(cat, capsys):
    assert main(["why", str(cat), "月亮"]) == 0
    said = capsys.readouterr().out
    labels = [re.split("  +", line)[0] for line in said.splitlines()]
    expected = ["word", "tokens", "share of attention", "words of its class", "special tokens and pads", "peak"]
    assert labels[:6] == expected
    assert "finding" in labels and labels[-1] == "try next" and re.search("words of its class +猫 ", said)
    assert f"toushi why {cat} '月亮' --test" in said
    assert main(["why", str(cat), "是#2", "--language", "zh"]) == 0
    said = capsys.readouterr().out
    assert "注意力占比" in said and "share" not in said


def test_why_tests_the_word_with_one_more_run(cat, tiny, tmp_path, capsys):
    before = sorted(cat.parent.iterdir())
    assert main(["why", str(cat), "猫", "--test", "--model", tiny]) == 0
    said = capsys.readouterr().out
    assert "of the pixels change" in said and "Without the word" in said and sorted(cat.parent.iterdir()) == before


def test_why_of_an_unknown_word_is_one_line(cat, capsys):
    assert main(["why", str(cat), "狗"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
