"""Numbers and rows that are read from tensors. On a GPU each reading waits for all work that was launched before it."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from toushi.hooks.torch_private import tensor_version
from toushi.probe.base.errors import ToushiError

T = TypeVar("T")


def read_once(read: Callable[[Tensor], T]) -> Callable[[Tensor], T]:
    """`read(tensor)`, remembered while the tensor lives and is not changed in place."""
    known = WeakTensorKeyDictionary()  # tensor -> (version, what was read)

    def remembered(tensor: Tensor) -> T:
        version = tensor_version(tensor)
        if tensor not in known or known[tensor][0] != version or tensor.is_inference():
            known[tensor] = (version, read(tensor))
        return known[tensor][1]

    return remembered


@read_once
def mask_lengths(mask: Tensor) -> list[int]:
    """Number of real positions of each row of a mask [row, position]."""
    return mask.long().sum(1).tolist()


def real_columns(states: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Of each row of `states` [row, column, feature] the columns that the mask keeps. Raises ToushiError if padding is
    not behind them."""
    if mask is None:
        return list(states.unbind())
    lengths = mask.long().sum(1).tolist()
    if not all(bool(row[:length].all()) for row, length in zip(mask, lengths)):
        raise ToushiError("expected padding behind the tokens of a text, but it is before them: set padding_side=right")
    return [row[:length] for row, length in zip(states, lengths)]
