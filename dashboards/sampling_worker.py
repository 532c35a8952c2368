"""Records traces in a thread, one after the other. It does not use Streamlit; pages read the fields of a job.

This is the only part of the app that needs torch. It imports torch when the first job starts.
"""

import gc
import itertools
import os
import queue
import threading
import warnings
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path

from toushi.probe.base.errors import ToushiError

MAX_WAITING = 8

_active: "list[Job]" = []  # in the order in which they were asked for
_orders: "queue.Queue[Job]" = queue.Queue()
_lock = threading.Lock()


class Stopped(Exception):
    """The stop button was pressed."""


class Busy(ToushiError):
    """Too many traces are waiting."""


@dataclass(frozen=True)
class Order:
    prompt: str
    negative: str = ""
    steps: int = 20
    guidance: float = 3.0
    seed: int = 0
    sampler: str = "euler"
    model: str = "mini-unet"
    size: tuple[int, int] = (64, 64)  # pixels, height and width


@dataclass
class Job:
    order: Order
    folder: Path
    state: str = "wait"  # wait, load, draw, write; then done, stopped or failed
    step: int = 0
    error: str = ""
    failure: Exception | None = None  # whose text is `error`
    cut: list[Warning] = field(default_factory=list)  # PromptCut, of the prompt and of the negative one
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def running(self) -> bool:
        return self.state in ("wait", "load", "draw", "write")

    def cancel(self) -> None:
        """Stops the job before it starts, or after the current step."""
        self.stop.set()
        with _lock:
            if self.state == "wait":
                self.state = "stopped"


@cache
def _model(name: str):
    from toushi.probe.pipelines.load import load

    model = load(name)
    freeze_loaded_objects()
    return model


def freeze_loaded_objects() -> None:
    """Keeps what is loaded now (torch, the model) out of every later garbage collection.

    Streamlit collects garbage after each rerun of each session. With torch loaded one collection takes 0.2 s, during
    which the worker cannot compute.
    """
    gc.collect()
    gc.freeze()


def start(order: Order, runs: Path) -> Job:
    """A job in a new folder of `runs`, which begins when those before it have ended. Raises Busy when many wait."""
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_seed{order.seed}"
    names = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))  # two within one second
    with _lock:
        _active[:] = [job for job in _active if job.running]
        if len(_active) > MAX_WAITING:
            raise Busy(f"{len(_active)} traces are running or waiting already; stop one, or wait")
        taken = {job.folder for job in _active}
        job = Job(
            order, next(runs / name for name in names if runs / name not in taken and not os.path.lexists(runs / name))
        )
        _active.append(job)
        _orders.put(job)
        _worker()
    return job


def running() -> Job | None:
    """The job that runs, whichever page ordered it."""
    return next((job for job in list(_active) if job.running), None)


@cache
def _worker() -> threading.Thread:
    """The only thread that draws, because two would wait for each other."""

    def serve() -> None:
        while True:
            job = _orders.get()
            with _lock:
                if job.state != "wait":
                    continue
                job.state = "load"
            _work(job)

    thread = threading.Thread(target=serve, daemon=True, name="traces")
    thread.start()
    return thread


def _work(job: Job) -> None:
    order = job.order

    def after_step(index: int, latents: object) -> None:
        job.step = index + 1
        if job.stop.is_set():
            raise Stopped

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            from toushi.probe.models.mini_unet import PromptCut
            from toushi.probe.pipelines.generate import generate
            from toushi.probe.recording.record import record

            model = _model(order.model)  # after the imports: it freezes all that is loaded
            job.state = "draw"
            with record(model, job.folder):
                generate(
                    model, order.prompt, order.negative, steps=order.steps, seed=order.seed, guidance=order.guidance,
                    sampler=order.sampler, size=order.size, callback=after_step,
                )  # fmt: skip
                job.state = "write"
        job.cut = [one.message for one in caught if isinstance(one.message, PromptCut)]
        job.state = "done"
    except Stopped:
        job.state = "stopped"
    except Exception as error:  # shown on the page; the thread must go on
        job.failure = error
        job.error = str(error) if isinstance(error, ToushiError) else f"{type(error).__name__}: {error}"
        job.state = "failed"
