"""The number of CPU threads that a model computes with, held only while it computes.

A model of mini-unet's size gains little from a second thread. On a busy machine it loses much: after each of its
thousands of small operations the threads wait for each other.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch


@runtime_checkable
class HasThreads(Protocol):
    """A model with its own number of CPU threads; None: as many as torch takes."""

    threads: int | None


Model = TypeVar("Model", bound=HasThreads)
P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Inside, this Python thread computes with `count` threads of torch. None changes nothing.

    Other Python threads of the process keep their number, also those that start meanwhile.
    """
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    # torch has this number for each Python thread, and gives new threads the last one that was set anywhere. So a new
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


def with_own_threads(method: Callable[Concatenate[Model, P], R]) -> Callable[Concatenate[Model, P], R]:
    """The method of a model, computed with the model's own number of `threads`."""

    @wraps(method)
    def limited(model: Model, *arguments: P.args, **named: P.kwargs) -> R:
        with cpu_threads(model.threads):
            return method(model, *arguments, **named)

    return limited
