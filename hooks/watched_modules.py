"""Whether a hook reads or changes what a module computes, so that its result must not come from a cache."""

from collections.abc import Callable
from weakref import WeakSet

from torch import nn

from toushi.hooks.torch_private import forward_hooks

# Hooks of these libraries only serve the module itself: they move, cast or adapt it.
LIBRARIES = ("accelerate", "diffusers", "peft", "torch", "transformers")

_input_readers: WeakSet[Callable] = WeakSet()


def mark_input_reader(hook: Callable) -> Callable:
    """The hook itself, registered as one that only reads the arguments of its module."""
    _input_readers.add(hook)
    return hook


def is_watched(module: nn.Module) -> bool:
    """True if a hook reads or changes what the module, or one inside it, computes.

    Every forward hook and forward pre-hook counts, except those of `argument_hooks`, which only read inputs, and those
    of the libraries in `LIBRARIES`.
    """
    return any(
        hook not in _input_readers and (getattr(hook, "__module__", None) or "").partition(".")[0] not in LIBRARIES
        for submodule in module.modules()
        for hook in forward_hooks(submodule)
    )
