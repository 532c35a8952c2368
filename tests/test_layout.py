"""One file name, one role; a command stands in the file of its name; tests lie where the code does."""

import os
from collections import defaultdict
from pathlib import Path

from toushi.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
CODE = ("hooks", "probe", "experiments", "reports", "dashboards", "benchmarks", "toushi")
SHARED_NAMES = {"__init__.py", "__main__.py", "conftest.py"}


def python_files(*tops: str) -> list[Path]:
    """Below these folders; the links in toushi/ to other folders are not followed."""
    return [
        Path(folder) / name
        for top in tops
        for folder, _, names in os.walk(ROOT / top)
        for name in names
        if name.endswith(".py")
    ]


def test_no_file_name_occurs_twice():
    places = defaultdict(list)
    for path in python_files(*CODE, "tests"):
        places[path.name].append(str(path.relative_to(ROOT)))
    assert len(places) > 200
    twice = {name: paths for name, paths in places.items() if len(paths) > 1 and name not in SHARED_NAMES}
    assert not twice


def test_a_command_stands_in_the_file_of_its_name():
    homes = {name: command.__module__ for name, command in COMMANDS.items()}
    assert homes == {name: f"toushi.cli.{name}" for name in COMMANDS}


def test_tests_lie_in_folders_named_like_those_of_the_code():
    folders = {path.parent.name for path in python_files(*CODE)} | {"packaging", "tests"}
    astray = [str(path.relative_to(ROOT)) for path in python_files("tests") if path.parent.name not in folders]
    assert not astray
