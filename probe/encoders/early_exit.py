"""An encoder that ends early: what the image model makes of a layer in the midst."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from toushi.hooks.module_hooks import state_hooks
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import MiniUNet


@contextmanager
def ending_at(model: MiniUNet, layer: int) -> Iterator[None]:
    """While open, the encoder hands on state `layer` (0: the embeddings), the final norm applied, in place of the last.

    Every prompt is read so, the negative one too. At the last layer nothing changes, to the bit.
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
