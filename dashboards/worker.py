"""Makes a trace in a thread of its own. The thread never touches Streamlit; pages look at the job's fields.

This is the only part of the app that needs torch, and it imports it when the first job starts.
"""

import itertools
import threading
import warnings
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path

from probe.errors import ToushiError

_one_at_a_time = threading.Lock()
_latest: "Job | None" = None


class Stopped(Exception):
    """The reader pressed stop."""


class Busy(ToushiError):
    """A second trace was asked for while one is being made."""


@dataclass(frozen=True)
class Order:
    prompt: str
    negative: str = ""
    steps: int = 20
    guidance: float = 3.0
    seed: int = 0
    sampler: str = "euler"
    model: str = "mini-unet"


@dataclass
class Job:
    order: Order
    folder: Path
    state: str = "load"  # load, draw, write; then done, stopped or failed
    step: int = 0
    error: str = ""
    warnings: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def running(self) -> bool:
        return self.state in ("load", "draw", "write")


@cache
def _model(name: str):
    from probe.models.load import load

    return load(name)


def start(order: Order, runs: Path) -> Job:
    """A job that has begun, in a new folder of `runs`. Raises Busy while another one runs."""
    if not _one_at_a_time.acquire(blocking=False):
        raise Busy("one trace is made at a time, but another is being made; wait for it, or stop it")
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_seed{order.seed}"
    names = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))  # two within one second
    job = Job(order, next(runs / name for name in names if not (runs / name).exists()))
    global _latest
    _latest = job
    threading.Thread(target=_work, args=(job,), daemon=True).start()
    return job


def running() -> Job | None:
    """The job that is being worked at, whichever page began it."""
    return _latest if _latest is not None and _latest.running else None


def _work(job: Job) -> None:
    order = job.order

    def after_step(index, latents) -> None:
        job.step = index + 1
        if job.stop.is_set():
            raise Stopped

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            model = _model(order.model)
            from probe.record import record

            job.state = "draw"
            with record(model, job.folder):
                model.sample(
                    order.prompt, negative=order.negative, steps=order.steps, guidance=order.guidance,
                    sampler=order.sampler, seed=order.seed, callback=after_step,
                )  # fmt: skip
                job.state = "write"
        job.warnings = [str(w.message) for w in caught if type(w.message).__name__ == "PromptCut"]
        job.state = "done"
    except Stopped:
        job.state = "stopped"
    except Exception as error:  # whatever went wrong belongs on the page, not in a dead thread
        job.error = str(error) if isinstance(error, ToushiError) else f"{type(error).__name__}: {error}"
        job.state = "failed"
    finally:
        _one_at_a_time.release()
