"""kill -9 in the middle of `toushi trace`, at thirty moments: whatever is listed is there, reads and verifies.

And whatever was left goes on to the end that it would have had.
"""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.recording.tiny_runs import PROMPT
from toushi.probe.pipelines.load import load
from toushi.probe.recording.record import record
from toushi.probe.resume import resume
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.output_dir import check_output_dir
from toushi.probe.trace.trace_errors import NoTrace

HOUSE = Path(__file__).parents[2]
MOMENTS, STEPS = 30, 60


def listed(folder: Path) -> int:
    steps = folder / layout.STEPS
    return steps.read_bytes().count(b"\n") if steps.exists() else 0


def killed(folder: Path, keep: str, after: int, delay: float) -> int:
    """A run that is killed `delay` (of the time of a step) after its step `after` is listed; how many were then.

    after = -1: somewhere between the first file in the folder and the first step.
    """
    command = [sys.executable, "-m", "toushi", "trace", PROMPT, "--steps", str(STEPS), "--size", "32"]
    command += ["--keep", keep, "--out", str(folder)]
    path = os.pathsep.join([str(HOUSE), os.environ.get("PYTHONPATH", "")])
    told = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=told, start_new_session=True, **quiet)
    try:
        deadline, moments = time.monotonic() + 300, [time.monotonic()]
        # The time of a step, as it is on this machine now: between the last two that were seen.
        while len(moments) <= max(after, 0) + 1 and process.poll() is None:
            assert time.monotonic() < deadline, "the run does not get on"
            if (folder / layout.MANIFEST).exists() if after < 0 else listed(folder) >= len(moments):
                moments.append(time.monotonic())
            time.sleep(0.0005)
        step = moments[-1] - moments[-2] if len(moments) > 2 else 0.1
        time.sleep(delay * step)
        count = listed(folder)
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        return count
    finally:
        with suppress(ProcessLookupError):  # the process that draws the figures
            os.killpg(process.pid, signal.SIGKILL)


def check(folder: Path, keep: str, at_least: int) -> int:
    """Nothing listed is missing or wrong. Returns how many steps are listed."""
    try:
        trace = open_trace(folder)
    except NoTrace:
        assert at_least == 0 and listed(folder) == 0
        return 0
    assert trace.steps == list(range(len(trace.steps))) and len(trace.steps) >= at_least
    problems = [f"The run did not end: {len(trace.steps)} of {STEPS} steps are finished."]
    assert trace.verify() == ([] if trace.complete else problems)
    for step in trace.steps[-1:] if keep == "sum" else trace.steps:
        maps = trace.attention("猫", steps=trace.steps if keep == "sum" else [step], grid="native")
        assert maps and all(np.isfinite(one).all() and one.sum() > 0 for one in maps.values())
        assert trace.latent(step) is not None and trace.preview(step) is not None
    if trace.steps:
        assert np.isfinite(trace.heat_map("月亮")).all() and trace.encoder_states().shape[0] > 1
    if trace.complete:
        assert len(trace.steps) == STEPS and trace.image() is not None
    return len(trace.steps)


@pytest.fixture
def model():
    """As the killed processes have it: what rounds must be the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load("mini-unet", "cpu")
    torch.set_num_threads(threads)


def goes_on(model, folder: Path, whole: Path) -> None:
    """Finished later, the run is what it would have been without the kill: every file of arrays, and the picture."""
    if not (folder / layout.MANIFEST).exists() or open_trace(folder).complete:
        return
    resume(model, folder)
    assert open_trace(folder).verify() == []
    names = {path.name for path in whole.iterdir() if path.suffix in (".safetensors", ".png")}
    assert names == {path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".png")} - {"words.png"}
    for name in names:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_whatever_kills_the_run_every_listed_step_can_be_read(model, tmp_path):
    for keep in layout.KEEPS:
        with record(model, tmp_path / keep, keep=keep):
            model.sample(PROMPT, steps=STEPS, size=32)
    draw, found = random.Random("kill -9"), []
    for moment in range(MOMENTS):
        keep, after = draw.choice(["heads", "heads", "mean", "sum"]), draw.randrange(-1, STEPS)
        folder = tmp_path / f"{moment}"
        count = killed(folder, keep, after, draw.uniform(0, 1.5))
        found.append(check(folder, keep, count))
        check_output_dir(folder, overwrite=True)  # what is left can be recorded over
        goes_on(model, folder, tmp_path / keep)
    print(f"steps found: {found}")
    assert len(set(found)) > 5, f"the moments were all alike: {found}"
