"""No function, class, parameter or module has a bare participle, or a word without content, for a name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "dashboards", "experiments", "hooks", "probe", "reports", "toushi/cli")
# CONTRIBUTING.md, "Names": a reader who knows the libraries of the field, but not this project, must guess what it is.
WORDS = """
    about ahead alike aside asked begun beside broken called chosen drawn followed following foreign foreseen found given
    heard held joined kept known lanes made meant moved odd one opened own put_in put_off read_off readable room said
    seen shown some spoken started stored taken tell teller told turned twice whose wrapped
"""
# (file, name) -> why it is a name all the same.
ALLOWED = {
    ("experiments/scene_world/draw.py", "_room"): "the place of a scene",
    **{
        (f"probe/trace/export/{file}_export.py", "about"): "the array that an npz file has of this name"
        for file in ("encoder", "npz", "parquet")
    },
    ("probe/trace/manifest.py", "Kept"): "the object of the manifest's field `kept`",
}


def names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg


def offences() -> set[tuple[str, str]]:
    found = set()
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            path = file.relative_to(ROOT).as_posix()
            for name in (file.stem, *names(ast.parse(file.read_text(encoding="utf-8")))):
                if name.strip("_").lower() in WORDS.split():
                    found.add((path, name))
    return found


def test_no_name_is_a_bare_participle_or_says_nothing():
    assert sorted(offences() - set(ALLOWED)) == []


def test_every_exception_is_still_needed():
    assert sorted(set(ALLOWED) - offences()) == []


@pytest.mark.parametrize("source", ["def drawn(): ...", "class Found: ...", "def f(told): ...", "lambda _one: 0"])
def test_such_names_are_found(source):
    assert {name.strip("_").lower() for name in names(ast.parse(source))} & set(WORDS.split())
