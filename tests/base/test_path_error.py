"""Names that the system refuses: one sentence that says what came and what to do, wherever a name may be given."""

import os
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from toushi import load, main, open_collection, open_trace, record
from toushi.dashboards import trace_library as library
from toushi.experiments.runner.result_folder import read_manifest
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.path_error import MAX_CHARACTERS, PathError, checked_path, short_path
from toushi.probe.encoders.encode_layers import encode_layers
from toushi.probe.encoders.record_texts import record_texts
from toushi.probe.models.mini_unet import MiniUNet
from toushi.reports.build_report import report

LONG, NUL, SURROGATE = "猫" * 5000, "run\0s", "run\ud800"
SAYS = {
    LONG: "猫…猫.* has 5000 characters, more than the system allows.*Give a shorter one",
    NUL: r"run\\x00s holds the character U\+0000, which no file name can have. Remove it",
    SURROGATE: r"run\\ud800 holds the character U\+D800, which no file name can have. Remove it",
    "loop": "loop cannot be opened: .*symbolic links. Look at its permissions",
    "locked": "no permission to open .*locked.*Change its permissions",
}
NAMES = pytest.mark.parametrize("name", SAYS, ids=["long", "nul", "surrogate", "loop", "locked"])


@pytest.fixture(scope="module")
def model():
    return MiniUNet.tiny()


@pytest.fixture
def home(monkeypatch):
    """A folder that everybody may enter. In it: a folder without a trace, a link to itself, a folder that nobody may enter."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)
        (home / "full").mkdir()
        (home / "full" / "notes.txt").write_text("")
        (home / "loop").symlink_to(home / "loop")
        (home / "locked").mkdir()
        (home / "locked" / "manifest.json").write_text("{}")
        (home / "locked").chmod(0o000)
        monkeypatch.chdir(home)
        yield home


@contextmanager
def without_privileges():
    """For root no permission is missing, so root becomes nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def begin(model, name: str) -> None:
    with record(model, name):
        raise AssertionError("the recording began")


@NAMES
def test_every_function_that_takes_a_folder(model, home, name):
    calls = [
        open_trace,
        open_collection,
        lambda name: begin(model, name),
        lambda name: record_texts(model, ["猫"], name),
        lambda name: encode_layers(name, ["猫"]),
        load,
        lambda name: report([Path(name)], home / "report"),
        lambda name: read_manifest(Path(name)),
    ]
    for call in calls:
        with pytest.raises(ToushiError, match="full"):  # also imports what could not be imported without privileges
            call("full")
        with without_privileges(), pytest.raises(PathError, match=SAYS[name]):
            call(name)


@NAMES
@pytest.mark.parametrize(
    "command",
    [
        "info",
        "verify",
        "view",
        "export --to npz",
        f"report -o {tempfile.gettempdir()}/none",
        "trace 猫 --out",
        "doctor",
    ],
)
def test_every_command(home, name, command, capsys):
    before = sorted(home.iterdir())
    assert main([*command.split(), "full"]) == 2 and "full" in capsys.readouterr().err
    with without_privileges():
        assert main([*command.split(), name]) == 2
    error = capsys.readouterr().err
    assert error.startswith("toushi: ") and error.count("\n") == 1 and len(error) < 400
    assert re.search(SAYS[name], error)
    assert sorted(home.iterdir()) == before


@NAMES
def test_the_explorer_goes_on(home, name):
    (home / "good").mkdir()
    (home / "good" / "manifest.json").write_text('{"kind": "picture", "prompt": "猫"}')
    with without_privileges():
        entry = library.entry(Path(name))
        assert entry.damaged and library.thumbnail(entry) is None and set(library.trace_version(name)) == {0}
        assert not library._same(Path(name), home)
        assert list(library._manifests(Path(name), 3)) == []
        assert [found.prompt for found in library.entries(home) if not found.damaged] == ["猫"]


def test_a_name_that_is_free_or_taken_by_a_file_is_for_the_caller_to_judge(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nothing", "nothing/below", "file", "file/below", "", "."):
        assert checked_path(tmp_path / name) == tmp_path / name


def test_a_long_name_is_shortened_and_nothing_unprintable_is_shown():
    assert short_path("runs/猫") == "runs/猫" and short_path("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    short = short_path("begin" + "x" * 5000 + "end")
    assert short.startswith("begin") and short.endswith("end") and len(short) == MAX_CHARACTERS
