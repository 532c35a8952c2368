"""Putting something around methods of one instance, for as long as a `with` lasts."""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import wraps

from toushi.probe.pipelines.family import Family

_nothing = object()


@contextmanager
def wrapped(instance, name: str, wrap: Callable[[Callable], Callable]):
    """Replaces a method of one instance by `wrap(method)`, and puts back what was there. The signature stays.

    Python looks `__call__` up in the class, so for its sake the instance is of a class of its own meanwhile.
    """
    if name.startswith("__"):
        yield from _of_own_class(instance, name, wrap)
        return
    before, method = vars(instance).get(name, _nothing), getattr(instance, name)
    setattr(instance, name, wraps(method)(wrap(method)))
    try:
        yield
    finally:
        if before is _nothing:
            delattr(instance, name)
        else:
            setattr(instance, name, before)


def _of_own_class(instance, name: str, wrap: Callable[[Callable], Callable]):
    before = type(instance)
    method = getattr(instance, name)
    replacement = wraps(method)(wrap(method))

    def called(self, *arguments, **named):
        # Somebody may have made a second instance of this class.
        return (
            replacement(*arguments, **named) if self is instance else getattr(before, name)(self, *arguments, **named)
        )

    own = {name: wraps(getattr(before, name))(called), "__module__": before.__module__, "__doc__": before.__doc__}
    own["__qualname__"] = before.__qualname__
    object.__setattr__(instance, "__class__", type(before.__name__, (before,), own))
    try:
        yield
    finally:
        object.__setattr__(instance, "__class__", before)


Wrap = Callable[[Callable], Callable]


@contextmanager
def wrapped_run(
    model,
    family: Family,
    encoding: Wrap,
    sampling: Wrap,
    evaluating: Wrap,
    beginning: Wrap,
    stepping: Wrap,
    starting: Callable[[int], None],
):
    """Puts something around all by which a run is followed: the methods of the model and of its scheduler.

    `starting` is told the first step that is drawn, where an image to begin with stands for those before it.
    """
    scheduler = getattr(model, family.scheduler)

    def beginning_late(get_timesteps: Callable) -> Callable:
        def wrapper(*arguments, **named):
            result = get_timesteps(*arguments, **named)
            starting(len(scheduler.timesteps) - len(result[0]))
            return result

        return wrapper

    methods = [(model, family.encode_prompt, encoding), (model, family.sample, sampling)]
    if family.evaluate is not None:
        methods.append((model, family.evaluate, evaluating))
    methods += [(scheduler, "set_timesteps", beginning), (scheduler, "step", stepping)]
    if family.timesteps_method is not None and hasattr(model, family.timesteps_method):
        methods.append((model, family.timesteps_method, beginning_late))
    with ExitStack() as wires:
        for instance, name, wrap in methods:
            wires.enter_context(wrapped(instance, name, wrap))
        yield
