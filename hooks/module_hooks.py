"""Reading or changing what named modules take and return: hidden states, token ids, velocities."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from torch import Tensor, nn

from toushi.hooks.hook_error import HookError
from toushi.hooks.watched_modules import mark_input_reader

Value = TypeVar("Value")  # of an argument


@contextmanager
def state_hooks(
    modules: Mapping[str, nn.Module],
    on_state: Callable[[str, Tensor], Tensor | None],
    *,
    prepend: bool = False,
    place_of: Callable[[Sequence[object]], int] = lambda values: 0,
) -> Iterator[None]:
    """`with state_hooks({name: module}, on_state):` calls `on_state(name, state)` with the output of each module.

    The state of a module that returns several values is the one at `place_of` them, by default the first. A tensor that `on_state` returns replaces the
    state. Hooks run in the order in which they were opened. Each gets the state that the previous one returned. With
    `prepend`, this one runs first. The state is the model's own tensor: copy it to keep it after the call. Raises
    HookError for a module that returns no tensor.
    """

    def after(name: str, output: object) -> object:
        place = place_of(output) if isinstance(output, tuple | list) else 0
        state = output[place] if isinstance(output, tuple | list) else output
        if not isinstance(state, Tensor):
            raise HookError(f"{name}: expected a tensor or a tuple with one, but {type(output).__name__} came")
        changed = on_state(name, state)
        if changed is None or not isinstance(output, tuple | list):
            return changed
        # A named tuple takes its fields one by one.
        make: Callable[[Iterable[object]], object] = getattr(type(output), "_make", type(output))
        return make((*output[:place], changed, *output[place + 1 :]))

    with ExitStack() as handles:
        for name, module in modules.items():
            handle = module.register_forward_hook(lambda *call, name=name: after(name, call[2]), prepend=prepend)
            handles.enter_context(handle)
        yield


@contextmanager
def input_hook(module: nn.Module, parameter: str, change: Callable[[Value], Value | None]) -> Iterator[None]:
    """`with input_hook(module, parameter, change):` gives the module `change(value)` in place of the argument `value`.

    `parameter` is the name of a parameter of its `forward`. Where `change` returns None, the value stays.
    """
    position = forward_parameters(module).index(parameter)

    def before(module: nn.Module, arguments: tuple, named: dict) -> tuple[tuple, dict] | None:
        positional = position < len(arguments)
        changed = change(arguments[position] if positional else named[parameter])
        if changed is None:
            return None
        if positional:
            return (*arguments[:position], changed, *arguments[position + 1 :]), named
        return arguments, {**named, parameter: changed}

    with module.register_forward_pre_hook(before, with_kwargs=True):
        yield


@contextmanager
def argument_hooks(
    modules: Mapping[str, tuple[nn.Module, Sequence[str]]], on_arguments: Callable[..., None]
) -> Iterator[None]:
    """`with argument_hooks({name: (module, parameters)}, f):` calls `f(name, *values)` before each run of a module.

    `parameters` are names of parameters of its `forward`; a value is None where the call leaves it out. Raises
    HookError for a parameter that does not exist.
    """
    with ExitStack() as handles:
        for name, (module, parameters) in modules.items():
            known = forward_parameters(module)
            if missing := [p for p in parameters if p not in known]:
                raise HookError(f"{name}: forward has no parameter {missing[0]!r}; it has {', '.join(known)}")

            positions = [(p, known.index(p)) for p in parameters]

            def before(module: nn.Module, arguments: tuple, named: dict, name=name, positions=positions) -> None:
                on_arguments(name, *(arguments[i] if i < len(arguments) else named.get(p) for p, i in positions))

            handles.enter_context(module.register_forward_pre_hook(mark_input_reader(before), with_kwargs=True))
        yield


def forward_parameters(module: nn.Module) -> list[str]:
    """Names of the parameters of the module's `forward`, without `self`.

    Offloading may replace the instance's `forward` by a function of any arguments. Then the names are those of the class.
    """
    parameters = inspect.signature(module.forward).parameters
    if "forward" in vars(module) and any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return list(inspect.signature(type(module).forward).parameters)[1:]
    return list(parameters)
