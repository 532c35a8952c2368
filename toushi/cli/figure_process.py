"""A second process that draws figures: it imports matplotlib while the command's own process imports torch."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.util import Finalize


@contextmanager
def figure_process() -> Iterator[Executor]:
    """The process, which has started already. It ends with the `with`, or with its parent."""
    with ProcessPoolExecutor(1, get_context("spawn"), _prepare_figures) as figures:
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for the parent alone
        figures.submit(int)  # the process starts with the first task
        signal.signal(signal.SIGINT, handler)
        yield figures


def _prepare_figures() -> None:
    """Imports, in the process that draws figures, what the first figure needs."""
    import toushi.probe.figures.words_figure
    import toushi.probe.trace.open  # noqa: F401
    from toushi.probe.figures.style import warm_up

    threading.Thread(target=_end_with_parent, daemon=True).start()
    Finalize(None, os._exit, (0,), exitpriority=0)  # no file is open, and a regular exit of the libraries takes 0.2 s
    warm_up()


def _end_with_parent() -> None:
    """Ends this process when its parent ends, or it would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
