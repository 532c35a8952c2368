"""The READMEs and the pages of docs/ as a stranger follows them: blocks run in order, and what they name is there."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

import toushi
from toushi import main
from toushi.cli.main import COMMANDS, parse

ROOT = Path(toushi.__file__).resolve().parents[1]
READMES = pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
PAGES = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if ".zh" not in page.suffixes)
MAX_LINES = 150


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and mark of each code block ("sh", "python no-test", …), and its code, in their order."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```([\w -]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(code: str) -> list[list[str]]:
    """The arguments of each line that runs `toushi`."""
    lines = [shlex.split(line, comments=True) for line in code.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["toushi"]]


@READMES
def test_the_blocks_run_one_after_the_other(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ran, namespace = run_blocks(name, capsys)
    assert ran >= 3 and (tmp_path / "runs/cat/words.png").is_file()
    assert namespace["picture"].size == (64, 64)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(f"docs/{page}.md", marks=[pytest.mark.slow] * (page in ("editing", "reading")))
        for page in ("editing", "encoders", "reading", "recording", "subscribe")
    ],
)
def test_the_blocks_of_a_page_run_one_after_the_other(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    edits = re.search(r"`edits\.json` is a list: `(.+?)`", (ROOT / name).read_text(encoding="utf-8"))
    if edits is not None:
        (tmp_path / "edits.json").write_text(edits[1], encoding="utf-8")
    ran, _ = run_blocks(name, capsys)
    assert ran >= 1


def run_blocks(name: str, capsys) -> tuple[int, dict]:
    """How many blocks and commands of the page ran, and the variables that its Python left."""
    namespace, ran = {}, 0
    for tag, code in blocks(name):
        if tag == "python":
            exec(compile(code, name, "exec"), namespace)
            ran += 1
        elif tag == "sh":
            for words in commands(code):
                assert main(words) == 0, f"{shlex.join(words)}\n{capsys.readouterr().err}"
                ran += 1
    return ran, namespace


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", *PAGES])
def test_commands_exist_with_their_options(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "style.safetensors").touch()  # `--lora` wants a file that is there
    for tag, code in blocks(name):
        for words in commands(code) if tag.startswith("sh") else ():
            parse(words)


@READMES
def test_many_commands_are_named(name):
    named = re.findall(r"`toushi ([a-z]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert set(named) <= set(COMMANDS) and len(set(named)) >= 8


@READMES
def test_extras_make_targets_and_folders_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [extra for found in re.findall(r"\.\[([\w,]+)\]", text) for extra in found.split(",")]
    assert asked and set(asked) <= set(project["optional-dependencies"])
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"make ([a-z][\w-]+)`", text)) <= set(targets)
    folders = re.findall(r"^\| `([\w./]+/)`", text, re.MULTILINE)
    assert len(folders) >= 5 and all((ROOT / folder).is_dir() for folder in folders)
    assert len(text.splitlines()) <= MAX_LINES
