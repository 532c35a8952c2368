"""Reading what named modules return: hidden states, velocities."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from hooks.errors import WireError


class States:
    """`with States({name: module}, see):` calls `see(name, state)` with what each module returns.

    A module that returns several values gives its first one. The state is the model's own tensor, detached: copy it
    to keep it beyond the call.
    """

    def __init__(self, modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]):
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
            self.see(name, state.detach())

        return after
