"""The number of CPU threads that a model computes with, held only while it computes.

A model of mini-unet's size gains little from a second thread. On a busy machine it loses much: after each of its
thousands of small operations the threads wait for each other.
"""

import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P, R = ParamSpec("P"), TypeVar("R")


@contextmanager
def cpu_threads(count: int | None):
    """Inside, this Python thread computes with `count` threads of torch. None changes nothing.

    Other Python threads of the process keep their number, those that start meanwhile included.
    """
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    # torch keeps this number for each Python thread, and hands the last one that was set to new threads. So a new
    # thread sets the old one again.
    default = threading.Thread(target=torch.set_num_threads, args=(before,))
    default.start()
    default.join()
    if torch.get_num_threads() != count:  # a torch without OpenMP has one number for all
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_own_threads(method: Callable[P, R]) -> Callable[P, R]:
    """The method of a model, computed with the model's own number of `threads`."""

    @wraps(method)
    def limited(*arguments: P.args, **named: P.kwargs) -> R:
        with cpu_threads(arguments[0].threads):  # pyright: ignore[reportAttributeAccessIssue]
            return method(*arguments, **named)

    return limited
