"""Putting something around a method of one instance, for as long as a `with` lasts."""

from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps

_nothing = object()


@contextmanager
def wrapped(instance, name: str, wrap: Callable[[Callable], Callable]):
    """Replaces a method of one instance by `wrap(method)`, and puts back what was there. The signature stays."""
    before, method = vars(instance).get(name, _nothing), getattr(instance, name)
    setattr(instance, name, wraps(method)(wrap(method)))
    try:
        yield
    finally:
        if before is _nothing:
            delattr(instance, name)
        else:
            setattr(instance, name, before)
