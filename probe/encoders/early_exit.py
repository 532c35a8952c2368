"""Pictures conditioned on an early layer of the text encoder."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from toushi.hooks.module_hooks import state_hooks
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import MiniUNet


@contextmanager
def exit_at_layer(model: MiniUNet, layer: int) -> Iterator[None]:
    """Inside the `with`, the encoder returns the state of `layer` (0: the embeddings) with its final norm.

    This holds for negative prompts, too. At the last layer nothing changes, to the bit. Raises ToushiError.
    """
    count = len(model.encoder.layers)
    if not 0 <= layer <= count:
        raise ToushiError(f"expected a layer in 0..{count}, 0 being the embeddings, but {layer} came")
    states: list[Tensor] = []

    def on_state(name: str, state: Tensor) -> Tensor | None:
        if name == "exit":
            states[:] = [state]
        return states.pop() if name == "last" else None

    exit_module = model.encoder.layers[layer - 1] if layer else model.encoder.embed
    with state_hooks({"exit": exit_module, "last": model.encoder.layers[-1]}, on_state):
        yield
