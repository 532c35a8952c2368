"""Type checker, linter and coverage look into every folder of the package, although links lead to most of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKED = ("dashboards", "experiments", "hooks", "probe", "reports")
FOLDERS = (*LINKED, "benchmarks", "toushi/cli")
BARE = ("commands", *LINKED)


@pytest.fixture
def planted(tmp_path):
    """A function that lays out this repository's folders, links and settings with one file in each folder."""

    def plant(code: str) -> set[str]:
        (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        for folder in (*FOLDERS, "tests"):
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / "planted.py").write_text(code)
        for folder in LINKED:
            (tmp_path / "toushi" / folder).symlink_to(f"../{folder}")
        (tmp_path / "toushi/__init__.py").write_text(code)
        return {f"{folder}/planted.py" for folder in FOLDERS} | {"toushi/__init__.py"}

    return plant


def relative(path: str, folder: Path) -> str:
    return Path(path).resolve().relative_to(folder.resolve()).as_posix()


def test_the_package_is_made_of_links():
    links = {path.name: path.readlink().as_posix() for path in (ROOT / "toushi").iterdir() if path.is_symlink()}
    assert links == {folder: f"../{folder}" for folder in LINKED}


def test_pyright_finds_a_planted_type_error(planted, tmp_path):
    files = planted('number: int = "one"\n')
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = {relative(one["file"], tmp_path): one.get("rule") for one in found if one["severity"] == "error"}
    assert errors == dict.fromkeys(files, "reportAssignmentType")


@pytest.mark.parametrize("name", BARE)
def test_ruff_finds_a_planted_bare_import(planted, tmp_path, name):
    files = planted(f"import {name}\nfrom {name}.attention import AttentionHook\n\nprint({name}, AttentionHook)\n")
    command = [sys.executable, "-m", "ruff", "check", "--output-format=json", "--no-cache", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = [relative(one["filename"], tmp_path) for one in json.loads(done.stdout) if one["code"] == "TID251"]
    assert sorted(found) == sorted(2 * [*files, "tests/planted.py"])


def test_ruff_finds_a_planted_undefined_name(planted, tmp_path):
    """A shape of one axis begins with a space: else ruff would take the axis for a name, or names could go unchecked."""
    code = 'from jaxtyping import Float\nfrom torch import Tensor\n\n\ndef norm(x: Float[Tensor, " n"]) -> Tensor:\n'
    files = planted(code + "    return x * missing\n")
    command = [sys.executable, "-m", "ruff", "check", "--output-format=json", "--no-cache", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = {relative(one["filename"], tmp_path): one["message"] for one in json.loads(done.stdout)}
    assert found == dict.fromkeys([*files, "tests/planted.py"], "Undefined name `missing`")


@pytest.mark.slow
def test_coverage_measures_the_linked_folders(tmp_path):
    """Lines of a linked folder count, under the name of the real one; so do files that never ran."""
    code = "import toushi.hooks.hook_error, toushi.probe.base.errors"
    data, report = f"--data-file={tmp_path / 'data'}", tmp_path / "report.json"
    (tmp_path / "script.py").write_text(code)
    run = ["run", "--rcfile=pyproject.toml", data, tmp_path / "script.py"]
    write = ["json", "--rcfile=pyproject.toml", data, "-q", "-o", report]
    for arguments in (run, write):
        done = subprocess.run(
            [sys.executable, "-m", "coverage", *arguments],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    files = json.loads(report.read_text())["files"]
    assert files["probe/base/errors.py"]["summary"]["percent_covered"] == 100
    assert files["hooks/hook_error.py"]["summary"]["covered_lines"] > 0
    assert {name.partition("/")[0] for name in files} == {*LINKED, "toushi"}
    assert not [name for name in files if name.startswith(tuple(f"toushi/{folder}/" for folder in LINKED))]
