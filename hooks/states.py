"""What goes into named modules and what they return: hidden states, texts, velocities. Read, or changed."""

import inspect
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from hooks.errors import WireError


class States:
    """`with States({name: module}, see):` calls `see(name, state)` with what each module returns.

    A module that returns several values gives its first one. If `see` returns a tensor, that goes on in its place;
    it sees what contexts opened before it made of the state. The state is the model's own tensor: copy it to keep
    it beyond the call.
    """

    def __init__(self, modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], Tensor | None]):
        self.modules, self.see = dict(modules), see
        self.handles: list = []

    def __enter__(self) -> "States":
        for name, module in self.modules.items():
            self.handles.append(module.register_forward_hook(self._after(name)))
        return self

    def __exit__(self, *exception) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _after(self, name: str):
        def after(module, arguments, output):
            state = output[0] if isinstance(output, tuple | list) else output
            if not isinstance(state, Tensor):
                raise WireError(
                    f"{name}: expected a tensor or a tuple that begins with one, but {type(output).__name__} came"
                )
            changed = self.see(name, state)
            if changed is None:
                return None
            if not isinstance(output, tuple | list):
                return changed
            make = getattr(type(output), "_make", type(output))  # a named tuple takes its fields one by one
            return make((changed, *output[1:]))

        return after


class Given:
    """`with Given(module, parameter, change):` the module gets what `change(value)` returns in place of the value.

    What is None stays as it was. `parameter` is a name of its `forward`.
    """

    def __init__(self, module: nn.Module, parameter: str, change: Callable[[Tensor], Tensor | None]):
        self.module, self.parameter, self.change = module, parameter, change
        self.handle = None

    def __enter__(self) -> "Given":
        place = list(inspect.signature(self.module.forward).parameters).index(self.parameter)

        def before(module, arguments, named):
            if place < len(arguments):
                changed = self.change(arguments[place])
                return None if changed is None else ((*arguments[:place], changed, *arguments[place + 1 :]), named)
            changed = self.change(named[self.parameter])
            return None if changed is None else (arguments, {**named, self.parameter: changed})

        self.handle = self.module.register_forward_pre_hook(before, with_kwargs=True)
        return self

    def __exit__(self, *exception) -> None:
        if self.handle is not None:
            self.handle.remove()
            self.handle = None


class Arguments:
    """`with Arguments({name: (module, parameters)}, see):` calls `see(name, *values)` before each run of a module.

    `parameters` are names of its `forward`; a value is None where the call leaves it out.
    """

    def __init__(self, modules: Mapping[str, tuple[nn.Module, Sequence[str]]], see: Callable[..., None]):
        self.modules, self.see = dict(modules), see
        self.handles: list = []

    def __enter__(self) -> "Arguments":
        for name, (module, parameters) in self.modules.items():
            known = list(inspect.signature(module.forward).parameters)
            if missing := [p for p in parameters if p not in known]:
                raise WireError(f"{name}: forward has no parameter {missing[0]!r}; it has {', '.join(known)}")
            places = [(p, known.index(p)) for p in parameters]
            self.handles.append(module.register_forward_pre_hook(self._before(name, places), with_kwargs=True))
        return self

    def __exit__(self, *exception) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _before(self, name: str, places: list[tuple[str, int]]):
        def before(module, arguments, named):
            self.see(name, *(arguments[i] if i < len(arguments) else named.get(p) for p, i in places))

        return before
