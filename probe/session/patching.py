"""Replaces a method of one instance for as long as a `with` lasts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

_ABSENT = object()

Wrap = Callable[[Callable], Callable]


@contextmanager
def patched_method(instance, name: str, wrap: Wrap) -> Iterator[None]:
    """Replaces a method of one instance by `wrap(method)`, and restores it at the end. The signature stays.

    Python looks `__call__` up in the class, so for its sake the instance gets a class of its own meanwhile.
    """
    if name.startswith("__"):
        yield from _patched_in_class(instance, name, wrap)
        return
    before, method = vars(instance).get(name, _ABSENT), getattr(instance, name)
    setattr(instance, name, wraps(method)(wrap(method)))
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(instance, name)
        else:
            setattr(instance, name, before)


def _patched_in_class(instance, name: str, wrap: Wrap) -> Iterator[None]:
    before = type(instance)
    method = getattr(instance, name)
    replacement = wraps(method)(wrap(method))

    def call(self, *args, **kwargs):
        # There may be a second instance of this class.
        return replacement(*args, **kwargs) if self is instance else getattr(before, name)(self, *args, **kwargs)

    namespace = {name: wraps(getattr(before, name))(call), "__module__": before.__module__, "__doc__": before.__doc__}
    namespace["__qualname__"] = before.__qualname__
    object.__setattr__(instance, "__class__", type(before.__name__, (before,), namespace))
    try:
        yield
    finally:
        object.__setattr__(instance, "__class__", before)
