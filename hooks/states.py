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
