"""Conditioning on an early layer of the text encoder: what the image model makes of the states of layer k."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from toushi.hooks.module_hooks import state_hooks
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import MiniUNet


@contextmanager
def exit_at_layer(model: MiniUNet, layer: int) -> Iterator[None]:
    """Inside the `with`, the encoder returns the state `layer` (0: the embeddings) with the final norm, not the last one.

    This holds for every prompt, the negative one too. At the last layer nothing changes, to the bit.
    """
    count = len(model.encoder.layers)
    if not 0 <= layer <= count:
        raise ToushiError(f"expected a layer in 0..{count}, 0 being the embeddings, but {layer} came")
    kept: list[Tensor] = []

    def see(name: str, state: Tensor) -> Tensor | None:
        if name == "this":
            kept[:] = [state]
        return kept.pop() if name == "last" else None

    this = model.encoder.layers[layer - 1] if layer else model.encoder.embed
    with state_hooks({"this": this, "last": model.encoder.layers[-1]}, see):
        yield
