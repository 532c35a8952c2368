"""One trace that the real command made, for all tests of commands."""

import subprocess
from pathlib import Path

import pytest

from tests.cli.shell import PROMPT, command


@pytest.fixture(autouse=True)
def drawing(figures_in_this_process):
    """Only `command` starts the process that draws figures."""


@pytest.fixture(scope="session")
def recorded(tiny, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A trace that the real command made in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "猫 1"
    arguments = ["trace", PROMPT, "--model", tiny, "--steps", "3", "--size", "32x64", "--out", str(folder)]
    return folder, command(*arguments)


@pytest.fixture(scope="session")
def cat(tiny, tmp_path_factory) -> Path:
    """A small trace, recorded in this process."""
    from toushi.probe.pipelines.load import load
    from toushi.probe.recording.record import record

    folder = tmp_path_factory.mktemp("runs") / "cat"
    with record(load(tiny), folder) as recording:
        recording.model.sample(PROMPT, steps=2, size=32, seed=5, guidance=2.0)
    return folder
