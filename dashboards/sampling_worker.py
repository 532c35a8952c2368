"""The queue of the traces that are recorded, one after the other, in a process of its own (sampling_process.py).

It does not use Streamlit, and needs no torch; pages read the fields of a job. So the pages of many people, which rerun
each second, and the garbage collection after each rerun, do not stop the model, and what it loads is not in their memory.
"""

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path

from toushi.probe.base.errors import ToushiError

MAX_WAITING = 40
LOOK = 0.5  # seconds between two looks at who is still there
PATIENCE = 1.0  # seconds in which a stopped job must end; then its process is ended

_active: "list[Job]" = []  # in the order in which they were asked for
_orders: "queue.Queue[Job]" = queue.Queue()
_lock = threading.Lock()


class Busy(ToushiError):
    """Too many traces are waiting."""


@dataclass(frozen=True)
class Order:
    """A new trace of a prompt."""

    prompt: str
    negative: str = ""
    steps: int = 20
    guidance: float = 3.0
    seed: int = 0
    sampler: str = "euler"
    model: str = "mini-unet"
    size: tuple[int, int] = (64, 64)  # pixels, height and width


@dataclass(frozen=True)
class EditOrder:
    """The run of a trace, made again with changes."""

    trace: str  # its folder
    changes: dict[str, object]  # the arguments of `edit_run`
    steps: int
    seed: int


@dataclass
class Job:
    order: Order | EditOrder
    folder: Path
    is_wanted: Callable[[], bool]  # whether somebody waits for it
    state: str = "wait"  # wait, load, draw, write; then done, stopped or failed
    step: int = 0
    error: str = ""
    error_kinds: list[str] = field(default_factory=list)  # the names of the error's classes
    cut: list[tuple[int, list[str]]] = field(default_factory=list)  # of each text: limit of tokens, words that were cut
    stopped_at: float | None = None  # time.monotonic()

    @property
    def running(self) -> bool:
        return self.state in ("wait", "load", "draw", "write")

    def cancel(self) -> None:
        """Stops the job before it starts, or after the current step."""
        with _lock:
            if self.stopped_at is None and self.running:
                self.stopped_at = time.monotonic()
                if self.state == "wait":
                    self.state = "stopped"
                else:
                    _write_line(_process(), "stop")


def start(order: Order | EditOrder, runs: Path, is_wanted: Callable[[], bool] = lambda: True) -> Job:
    """A job in a new folder of `runs`, which begins when those before it have ended. Raises Busy when many wait.

    It is stopped when `is_wanted` says no. That is asked in another thread.
    """
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_seed{order.seed}" + "_edit" * isinstance(order, EditOrder)
    names = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))  # two within one second
    with _lock:
        _active[:] = [job for job in _active if job.running]
        if len(_active) > MAX_WAITING:
            raise Busy(f"{len(_active)} traces are running or waiting already; stop one, or wait")
        taken = {job.folder for job in _active}
        free = (runs / name for name in names if runs / name not in taken and not os.path.lexists(runs / name))
        job = Job(order, next(free), is_wanted)
        _active.append(job)
        _orders.put(job)
        _start_threads()
    return job


def running() -> list[Job]:
    """The job that runs, and those that wait, in their order."""
    return [job for job in list(_active) if job.running]


def place(job: Job) -> int:
    """How many jobs come before this one."""
    return next((place for place, other in enumerate(running()) if other is job), 0)


@cache
def _start_threads() -> None:
    for target in (_serve, _look):
        threading.Thread(target=target, daemon=True, name=target.__name__).start()


def _serve() -> None:
    """Gives the jobs to the process, and takes its answers."""
    while True:
        job = _orders.get()
        with _lock:
            if job.state != "wait":
                continue
            job.state = "load"
            process = _process()
            _write_line(process, json.dumps({**asdict(job.order), "folder": str(job.folder.absolute())}))
        assert process.stdout is not None
        while job.running and (line := process.stdout.readline()):
            vars(job).update(json.loads(line))
        if job.running:
            process.wait()
            job.error = f"The process that samples has ended: {process.returncode}"
            job.state = "failed" if job.stopped_at is None else "stopped"


def _look() -> None:
    """Stops the jobs that nobody waits for, and the process if a stopped job does not end."""
    unwanted: set[int] = set()
    while True:
        time.sleep(LOOK)
        gone = [job for job in running() if not job.is_wanted()]
        for job in gone:
            if id(job) in unwanted:  # twice: a connection may be lost for a moment
                job.cancel()
        unwanted = {id(job) for job in gone}
        for job in running():
            if job.stopped_at is not None and time.monotonic() - job.stopped_at > PATIENCE:
                _processes[0].kill()


_processes: "list[subprocess.Popen[str]]" = []  # one at most


def _process() -> "subprocess.Popen[str]":
    """The process that samples; a new one if it has ended."""
    if not _processes or _processes[0].poll() is not None:
        root = str(Path(__file__).parents[2])  # that holds the package
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        _processes[:] = [
            subprocess.Popen(
                [sys.executable, "-P", "-m", "toushi.dashboards.sampling_process"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, encoding="utf-8", env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the explorer; this ends with its input
            )
        ]  # fmt: skip
    return _processes[0]


def _write_line(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except OSError:
        pass  # it has ended, which `_serve` sees
