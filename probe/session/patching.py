"""Replaces a method of one instance for the duration of a `with`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

_ABSENT = object()

Wrap = Callable[[Callable], Callable]  # method -> the function that replaces it


@contextmanager
def patch_method(instance: object, name: str, wrap: Wrap) -> Iterator[None]:
    """Replaces a method of one instance by `wrap(method)` and restores it at the end. The signature stays the same.

    Python looks up `__call__` in the class. For such a name the instance gets a class of its own inside the `with`.
    """
    if name.startswith("__"):
        yield from _patch_class_of(instance, name, wrap)
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


def _patch_class_of(instance: object, name: str, wrap: Wrap) -> Iterator[None]:
    original_class = type(instance)
    method = getattr(instance, name)
    replacement = wraps(method)(wrap(method))

    def call(self, *args, **kwargs):
        # Another instance may get this class, for example a copy of the first one.
        return (
            replacement(*args, **kwargs) if self is instance else getattr(original_class, name)(self, *args, **kwargs)
        )

    namespace = {
        name: wraps(getattr(original_class, name))(call),
        "__module__": original_class.__module__,
        "__qualname__": original_class.__qualname__,
        "__doc__": original_class.__doc__,
    }
    object.__setattr__(instance, "__class__", type(original_class.__name__, (original_class,), namespace))
    try:
        yield
    finally:
        object.__setattr__(instance, "__class__", original_class)
