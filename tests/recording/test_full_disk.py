"""The disk gives out, for real: a process that may not write files beyond a size, which the system enforces.

The command ends with one line that says what happened and what to do; what was finished before can be read.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.recording.tiny_runs import PROMPT
from toushi.probe.base.errors import ToushiError
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.output_dir import check_output_dir

resource = pytest.importorskip("resource")
HOUSE = Path(__file__).parents[2]

# The limit holds from the beginning, or from the moment when so many steps are listed.
LIMITED = """
import resource, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

limit, after, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def enforce():
    steps = folder / "steps.jsonl"
    while after and not (steps.exists() and steps.read_bytes().count(b"\\n") >= after):
        time.sleep(0.001)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

threading.Thread(target=enforce, daemon=True).start() if after else enforce()
import toushi.cli.trace
toushi.cli.trace.figure_process = partial(ThreadPoolExecutor, 1)  # a process of its own would import matplotlib in vain
sys.exit(toushi.main(sys.argv[4:]))
"""


@pytest.fixture
def limited(tiny, tmp_path):
    """limited(bytes a file may have, steps before that, *options) -> the folder, the one line, the exit code."""

    def run(limit, after, *options):
        folder = tmp_path / "run"
        command = ["trace", PROMPT, "--model", tiny, "--size", "16", "--out", str(folder), *options]
        path = os.pathsep.join([str(HOUSE), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, str(limit), str(after), str(folder), *command],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        said = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
        lines = [line for line in said if not line.startswith("step:")]
        assert len(lines) == 1 and lines[0].startswith("toushi: "), done.stderr
        assert "Traceback" not in done.stderr and "bug in Toushi" not in done.stderr
        return folder, lines[0], done.returncode

    return run


def check(folder, planned):
    """What is listed reads and verifies, and nothing but what is listed counts. Returns how many steps that is."""
    trace = open_trace(folder)
    finished = len(trace.steps)
    assert not trace.complete and trace.steps == list(range(finished)) and trace.image() is None
    assert trace.verify() == [f"The run did not end: {finished} of {planned} steps are finished."]
    for step in trace.steps:
        maps = trace.attention("猫", steps=[step], grid="native")
        assert all(np.isfinite(one).all() for one in maps.values())
        assert trace.latent(step) is not None
    assert not list(folder.glob("*.tmp"))
    check_output_dir(folder, overwrite=True)  # and the folder can be recorded into anew
    return finished


def test_a_step_that_does_not_fit(limited):
    folder, said, code = limited(5000, 3, "--steps", "400")
    assert code == 2
    finished = check(folder, 400)
    assert 3 <= finished < 400
    assert f"Writing step {finished}" in said and "File too large" in said and "os error" not in said
    assert f"{finished} step" in said and "Free some space" in said


def test_a_list_of_steps_that_does_not_fit(limited):
    """A line of it is cut in the middle: the step before is the last one."""
    options = ["--keep", "mean", "--words", "猫", "--sites", "unet.middle.*", "--steps", "300"]
    folder, said, code = limited(20_000, 0, *options)
    assert code == 2 and "File too large" in said and "Free some space" in said
    finished = check(folder, 300)
    assert (folder / layout.STEPS).stat().st_size == 20_000 and finished > 20
    assert not (folder / layout.STEPS).read_bytes().endswith(b"\n")
    # The file of that step is whole, and yet no step: it was not listed.
    assert (folder / layout.step_file(finished, "mean")).exists()


@pytest.mark.slow
def test_nothing_fits(limited):
    folder, said, code = limited(4000, 0, "--steps", "2")
    assert code == 2 and "Cannot write a trace" in said and "File too large" in said and "another folder" in said
    assert list(folder.iterdir()) == []
    with pytest.raises(ToushiError, match="No trace"):
        open_trace(folder)


@pytest.mark.slow
def test_the_figure_does_not_fit(limited):
    """Then the trace is finished, and that is said."""
    folder, said, code = limited(15_000, 0, "--steps", "2", "--sites", "unet.*")
    assert code == 2 and "words.png" in said and "File too large" in said and "can be read" in said
    trace = open_trace(folder)
    assert trace.complete and trace.verify() == [] and not (folder / "words.png").exists()
