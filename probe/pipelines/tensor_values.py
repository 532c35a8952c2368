"""Numbers that are read from tensors. On a GPU each reading waits for all work that was launched before it."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from toushi.hooks.torch_private import tensor_version

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
