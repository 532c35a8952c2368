"""Where a trace says that it comes from."""

import subprocess
from pathlib import Path

import pytest

from toushi.probe.recording import provenance


@pytest.fixture
def commit(monkeypatch):
    """commit(file) -> what is said of a package that lies there."""

    def told(file: Path) -> str | None:
        monkeypatch.setattr(provenance, "__file__", str(file))
        return provenance.git_commit.__wrapped__()

    return told


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, "-C", folder, *arguments], check=True, capture_output=True)


def test_a_checkout_gives_its_commit_and_says_when_it_was_changed(commit, tmp_path):
    file = tmp_path / "probe" / "recording" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    first = commit(file)
    assert first and len(first) == 40
    file.write_text("# changed")
    assert commit(file) == first + "+"


def test_somebody_elses_repository_around_an_installed_package_is_not_ours(commit, tmp_path):
    file = tmp_path / "venv" / "site-packages" / "probe" / "recording" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "theirs")
    assert commit(file) is None


def test_a_model_is_told_by_its_folder_or_hub_id_never_by_a_path_of_this_machine(tmp_path, monkeypatch):
    class Pipeline:
        name_or_path = ""

    def told(source: str) -> tuple[str | None, str | None]:
        model = Pipeline()
        model.name_or_path = source
        found = provenance._model_identity(model)
        return found["name"], found["revision"]

    (tmp_path / "models" / "flux").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for source in (str(tmp_path / "models" / "flux"), "models/flux", "/gone/flux"):
        assert told(source) == ("flux", None)
    assert told("/home/me/hub/models--owner--flux/snapshots/0a1b") == ("owner/flux", "0a1b")
    assert told("owner/flux") == ("owner/flux", None) and told("") == ("Pipeline", None)


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/bin/toushi", "trace", "猫"], ["toushi", "trace", "猫"]),
        (["/site-packages/toushi/__main__.py", "trace", "猫"], ["toushi", "trace", "猫"]),
        (["toushi", "trace", "--model", "https://me:abc@x/y"], ["toushi", "trace", "--model", "https://(secret)@x/y"]),
        (["train.py", "--password", "abc"], None),
        (["/home/me/toushi.py"], None),
        ([], None),
    ],
)
def test_only_our_own_command_is_kept(argv, command):
    assert provenance.command_line(argv) == command
