"""What goes into named modules and what they return: hidden states, texts, velocities. Read, or changed."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from toushi.hooks.hook_error import HookError
from toushi.hooks.watched_modules import mark_input_reader


@contextmanager
def state_hooks(
    modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], Tensor | None], *, first: bool = False
) -> Iterator[None]:
    """`with state_hooks({name: module}, see):` calls `see(name, state)` with what each module returns.

    A module that returns several values gives its first one. If `see` returns a tensor, that goes on in its place;
    it sees what contexts opened before it made of the state, or with `first` the module's own. The state is the
    model's own tensor: copy it to keep it beyond the call.
    """

    def after(name: str, output):
        several = isinstance(output, tuple | list)
        state = output[0] if several else output
        if not isinstance(state, Tensor):
            raise HookError(
                f"{name}: expected a tensor or a tuple that begins with one, but {type(output).__name__} came"
            )
        changed = see(name, state)
        if changed is None or not several:
            return changed
        make = getattr(type(output), "_make", type(output))  # a named tuple takes its fields one by one
        return make((changed, *output[1:]))

    with ExitStack() as wires:
        for name, module in modules.items():
            hook = module.register_forward_hook(lambda *call, name=name: after(name, call[2]), prepend=first)
            wires.enter_context(hook)
        yield


@contextmanager
def input_hook(module: nn.Module, parameter: str, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """`with input_hook(module, parameter, change):` the module gets what `change(value)` returns in place of the value.

    What is None stays as it was. `parameter` is a name of its `forward`.
    """
    place = forward_parameters(module).index(parameter)

    def before(module, arguments, named):
        placed = place < len(arguments)
        changed = change(arguments[place] if placed else named[parameter])
        if changed is None:
            return None
        if placed:
            return (*arguments[:place], changed, *arguments[place + 1 :]), named
        return arguments, {**named, parameter: changed}

    with module.register_forward_pre_hook(before, with_kwargs=True):
        yield


@contextmanager
def argument_hooks(modules: Mapping[str, tuple[nn.Module, Sequence[str]]], see: Callable[..., None]) -> Iterator[None]:
    """`with argument_hooks({name: (module, parameters)}, see):` calls `see(name, *values)` before each run of a module.

    `parameters` are names of its `forward`; a value is None where the call leaves it out.
    """
    with ExitStack() as wires:
        for name, (module, parameters) in modules.items():
            known = forward_parameters(module)
            if missing := [p for p in parameters if p not in known]:
                raise HookError(f"{name}: forward has no parameter {missing[0]!r}; it has {', '.join(known)}")

            places = [(p, known.index(p)) for p in parameters]

            def before(module, given, named, name=name, places=places):
                see(name, *(given[i] if i < len(given) else named.get(p) for p, i in places))

            wires.enter_context(module.register_forward_pre_hook(mark_input_reader(before), with_kwargs=True))
        yield


def forward_parameters(module: nn.Module) -> list[str]:
    """Names of the parameters of the module's `forward`, without `self`.

    An offload may put a function of any arguments in its place on the instance; the names are then the class's.
    """
    parameters = inspect.signature(module.forward).parameters
    if "forward" in vars(module) and any(one.kind is one.VAR_POSITIONAL for one in parameters.values()):
        return list(inspect.signature(type(module).forward).parameters)[1:]
    return list(parameters)
