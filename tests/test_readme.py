"""The README as a stranger follows it: its blocks run in their order, and what it names is there.

The blocks of the English one run; those of the Chinese one are the same, but for comments.
"""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from tests.lens.made import made as made_encoder

import toushi
from tests.pipelines.tiny import made as made_pipeline
from toushi import main
from toushi.cli.main import parse

HOUSE = Path(toushi.__file__).resolve().parents[1]
READMES = pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
SLOW = ("view", "run", "report")  # a server, an experiment of minutes and its pages: only their arguments are read


def blocks(name: str, language: str) -> list[str]:
    """The code blocks of this language ("" is the shell), in their order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (HOUSE / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [code for tag, code in found if tag == language]


def commands(name: str, program: str) -> list[list[str]]:
    """The arguments of each line that runs this program."""
    lines = [shlex.split(line, comments=True) for block in blocks(name, "") for line in block.splitlines()]
    return [words[1:] for words in lines if words[:1] == [program]]


def map_of_folders(name: str) -> list[str]:
    """The paths in the map, below their parents."""
    (block,) = [block for block in blocks(name, "") if block.startswith("toushi/")]
    found, parent = [], ""
    for line in block.splitlines():
        path = line.split()[0]
        parent = parent if line.startswith(" ") else path
        found.append(parent + path if line.startswith(" ") else path)
    return found


def extras() -> set[str]:
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = {"pipeline": made_pipeline("stable-diffusion")}
    for code in blocks("README.md", "python"):
        exec(compile(code, "README.md", "exec"), known)
    assert known["picture"].size == (64, 64)
    assert known["without"].tobytes() != known["picture"].tobytes()
    assert (tmp_path / "runs" / "mine" / "manifest.json").is_file()


def test_the_commands_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pipeline, (encoder, tokenizer) = made_pipeline("stable-diffusion"), made_encoder("bert")
    pipeline.save_pretrained(tmp_path / "pipeline")
    encoder.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    found = commands("README.md", "toushi")
    assert {words[0] for words in found} > {
        "trace",
        "view",
        "words",
        "sites",
        "doctor",
        "info",
        "verify",
        "lens",
        "export",
    }
    for words in found:
        folder = "encoder" if words[0] == "lens" else "pipeline"
        words = [folder if word == "FOLDER" else word for word in words]
        if words[0] in SLOW:
            parse(words)
        else:
            assert main(words) == 0, f"{shlex.join(['toushi', *words])}\n{capsys.readouterr().err}"
    for made in ("runs/cat/image.png", "runs/cat/words.png", "runs/cat.npz", "bank.png"):
        assert (tmp_path / made).is_file(), made


@READMES
def test_what_sets_up_is_there(name):
    targets = re.findall(r"^([\w-]+):", (HOUSE / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    first = blocks(name, "")[0]
    assert {words[0] for words in commands(name, "make")} <= set(targets)
    assert [line.split("#")[0].split() for line in first.splitlines()] == [
        ["make", "demo"],
        ["make", "view"],
        ["source", ".venv/bin/activate"],
    ]
    assert r".venv\Scripts\activate" in first
    named = [re.search(r"\[([\w,]+)\]", words[-1]) for words in commands(name, "pip")]
    assert {extra for one in named if one for extra in one[1].split(",")} <= extras()
    table = re.search(
        r"^\| (?:extra|可选部分) .*?\n\n", (HOUSE / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert table and set(re.findall(r"^\| `(\w+)` ", table[0], re.MULTILINE)) == extras()


@READMES
def test_the_map_is_that_of_the_house(name):
    found = map_of_folders(name)
    assert [path for path in found if not (HOUSE / path).exists()] == []
    linked = {f"{path.name}/" for path in (HOUSE / "toushi").iterdir() if path.is_symlink()}
    assert linked <= set(found), sorted(linked - set(found))
    for parent in ("probe/", "experiments/"):
        folders = [path.parent for path in (HOUSE / parent).glob("*/*") if path.is_file()]
        there = {f"{parent}{folder.name}/" for folder in folders} - {f"{parent}__pycache__/"}
        assert there <= set(found), sorted(there - set(found))


def test_both_say_the_same():
    english, chinese = ("README.md", "README.zh.md")
    assert map_of_folders(english) == map_of_folders(chinese)
    for program in ("make", "pip", "source", "python"):
        assert commands(english, program) == commands(chinese, program)
    trees = [[ast.dump(ast.parse(code)) for code in blocks(name, "python")] for name in (english, chinese)]
    assert trees[0] == trees[1]
    same = [[word.replace("文件夹", "FOLDER") for word in words] for words in commands(chinese, "toushi")]
    assert commands(english, "toushi") == same


def test_the_cut_encoder_is_never_called_by_the_name_of_the_original():
    """Three findings are about a 4-bit cut. The bare name stands only beside that, in a folder's name or in a hub id."""
    sources = ["README.md", "README.zh.md", "experiments/results/README.md"]
    sources += [f"experiments/studies/{study}/e5.yaml" for study in ("bilingual", "disambiguation", "layer_semantics")]
    honest = r"cut\s+of\s+$|intfloat/$|is not $|, not $|并不是 $"
    for source in sources:
        text = (HOUSE / source).read_text(encoding="utf-8")
        assert re.search(r"4-bit|4 位", text)
        for found in re.finditer(r"multilingual-e5-small(?!-zh-en| 的 4 位)", text):
            before = text[max(0, found.start() - 20) : found.start()]
            assert re.search(honest, before), f"{source}: {before}{found[0]}"
