"""The core needs no library of an extra, and what needs one says which extra brings it."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from toushi.probe.base.extras import EXTRAS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
OPTIONAL = {
    extra: [one for one in map(Requirement, lines) if one.name != "toushi"]
    for extra, lines in PROJECT["optional-dependencies"].items()
}
PACKAGES = metadata.packages_distributions()
FOLDERS = ("toushi/cli", "hooks", "probe", "experiments", "reports", "dashboards")


CORE_COMMANDS = [
    ["words", "河边的银行"],
    ["sites"],
    ["info", "run"],
    ["verify", "run"],
    ["compare", "run", "edited"],
    ["why", "run", "月亮"],
    ["env", "run"],
    ["layers", "河边的银行", "他去银行"],
    ["doctor"],
    ["export", "run", "--to", "npz"],
    ["trace", "a red cat", "--steps", "1", "--no-record", "--out", "picture"],
]
EXTRA_COMMANDS = [
    (["demo"], "figures"),
    (["trace", "a red cat", "--steps", "1"], "figures"),
    (["layers", "河边的银行", "--out", "bank.png"], "figures"),
    (["layers", "河边的银行", "--encoder", "pipeline"], "pipelines"),
    (["doctor", "pipeline"], "pipelines"),
    (["view", "run"], "app"),
    (["run", "bilingual"], "experiments"),
    (["report", "run"], "figures"),
    (["figure", "run", "-o", "run.pdf"], "figures"),
    (["compare", "run", "run", "--out", "both.png"], "figures"),
    (["export", "run", "--to", "parquet"], "export"),
]


@pytest.mark.slow
def test_the_core_works_without_the_extras(tmp_path):
    """In one process: torch takes seconds to import."""
    (tmp_path / "pipeline/text_encoder").mkdir(parents=True)
    (tmp_path / "pipeline/model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (tmp_path / "pipeline/text_encoder/config.json").write_text('{"model_type": "clip"}')
    commands = [*CORE_COMMANDS, *(command for command, _ in EXTRA_COMMANDS)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.packaging.core_only", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    for command, (code, out, err) in zip(CORE_COMMANDS, outcomes):
        assert code == 0 and out and "Traceback" not in err, (command, err)
    for (command, extra), (code, out, err) in zip(EXTRA_COMMANDS, outcomes[len(CORE_COMMANDS) :], strict=True):
        assert code == 2 and not out, (command, out, err)
        assert err.count("\n") == 1 and f'pip install "toushi[{extra}]"' in err, (command, err)


def imported_libraries() -> dict[str, str]:
    """Each library that our packages import, with a file that does."""
    found = {}
    for file in (file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found |= {name.partition(".")[0]: str(file.relative_to(ROOT)) for name in names}
    others = sys.stdlib_module_names | {"toushi", "_typeshed"}  # the last is for the type checker only
    return {name: file for name, file in found.items() if name not in others}


def test_every_imported_library_is_declared():
    """By the core, by an extra that `EXTRAS` names, or by a library of the core that cannot do without it."""
    core = {canonicalize_name(one.name) for one in CORE}
    core |= {"pandas", "huggingface-hub", "pydantic-core"}  # xarray, tokenizers and pydantic need them
    files = imported_libraries()
    assert len(files) > 20
    for library, file in files.items():
        if library in EXTRAS:
            continue
        assert {canonicalize_name(name) for name in PACKAGES.get(library, [library])} & core, (library, file)


@pytest.mark.parametrize("library", EXTRAS)
def test_each_extra_declares_its_libraries(library):
    declared = {canonicalize_name(one.name) for one in OPTIONAL[EXTRAS[library]]}
    names = PACKAGES.get(library) or [library]
    assert {canonicalize_name(name) for name in names} & declared, f"{library} is not in [{EXTRAS[library]}]"


def test_lower_bounds_are_those_that_are_tested():
    """`make test-oldest` installs the lower bound of every library of the core and the extras."""
    lines = (ROOT / "requirements-oldest.txt").read_text().splitlines()
    oldest = {one.name: one for one in map(Requirement, filter(lambda line: line and line[0] != "#", lines))}
    shipped = [one for extra, ones in OPTIONAL.items() if extra != "dev" for one in ones]
    assert {one.name for one in (*CORE, *shipped)} == set(oldest)
    for one in (*CORE, *shipped):
        ((bound,), (pin,)) = one.specifier, oldest[one.name].specifier
        assert bound.operator in (">=", "==") and pin.operator == "=="
        assert Version(pin.version.removesuffix(".*")) == Version(bound.version), (str(one), str(oldest[one.name]))


def test_requirements_fit_the_project():
    """The pinned reproduction lies within the ranges that the project declares."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = {canonicalize_name(one.name): one.specifier for one in map(Requirement, filter(None, lines))}
    for extra, ones in {"core": CORE, **OPTIONAL}.items():
        for one in ones if extra != "explain" else ():
            (pin,) = pinned[canonicalize_name(one.name)]
            assert pin.operator == "==" and one.specifier.contains(pin.version, prereleases=True), (extra, str(one))
