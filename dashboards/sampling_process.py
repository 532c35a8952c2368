"""The process that samples for the explorer, one order after the other. `sampling_worker` starts it.

It reads orders and `stop` as lines of JSON, and writes lines of JSON with the fields of the job that have changed. It
ends when its input ends, and so with the explorer, whatever ends that.
"""

import json
import os
import queue
import sys
import threading
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from toushi.probe.base.errors import ToushiError

Report = Callable[..., None]  # takes fields of the job


class Stopped(Exception):
    """The job was stopped."""


@lru_cache(maxsize=2)  # that of new traces, and that of the trace that is edited
def _model(name: str, device: str | None = None, dtype: str | None = None):
    from toushi.probe.pipelines.load import load

    return load(name, device, dtype)


def sample(folder: Path, order: dict, report: Report, after_step: Callable) -> None:
    """Records the trace of a prompt."""
    from toushi.probe.pipelines.generate import generate
    from toushi.probe.recording.record import record

    model = _model(order["model"])
    report(state="draw")
    with record(model, folder):
        generate(
            model, order["prompt"], order["negative"], steps=order["steps"], seed=order["seed"], sampler=order["sampler"],
            guidance=order["guidance"], size=tuple(order["size"]), callback=after_step,
        )  # fmt: skip
        report(state="write")


def edit(folder: Path, order: dict, report: Report, after_step: Callable) -> None:
    """Makes the run of a trace again with changes."""
    from toushi.probe.edit_run import edit_run
    from toushi.probe.trace.open import open_trace

    trace = open_trace(order["trace"])
    run = trace.manifest
    model = None if run.loading else _model(str(run.name_of_model), run.device, run.dtype)
    report(state="draw")
    edit_run(trace, folder, **order["changes"], model=model, callback=after_step)


def work(line: str, report: Report, stop: threading.Event) -> None:
    """Does one order: {"folder": …, and the fields of `Order` or `EditOrder`}."""
    from toushi.probe.models.mini_unet import PromptCut

    order = json.loads(line)

    def after_step(index: int, latents: object) -> None:
        if stop.is_set():
            raise Stopped
        report(step=index + 1)

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            make = edit if "changes" in order else sample
            make(Path(order["folder"]), order, report, after_step)
        cut = [(one.message.limit, one.message.lost) for one in caught if isinstance(one.message, PromptCut)]
        report(state="done", cut=cut)
    except Stopped:
        report(state="stopped")
    except Exception as error:  # shown on the page; the process must go on
        text = str(error) if isinstance(error, ToushiError) else f"{type(error).__name__}: {error}"
        report(state="failed", error=text, error_kinds=[kind.__name__ for kind in type(error).__mro__])


def main(lines: TextIO, output: TextIO) -> None:
    orders: queue.Queue[str] = queue.Queue()
    stop = threading.Event()

    def read() -> None:
        for line in lines:
            if line.strip() == "stop":
                stop.set()
            else:
                stop.clear()  # it was for the job before
                orders.put(line)
        os._exit(0)

    def report(**fields: object) -> None:
        print(json.dumps(fields), file=output, flush=True)

    threading.Thread(target=read, daemon=True).start()
    while True:
        work(orders.get(), report, stop)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    main(sys.stdin, answers)
