"""Follows a text through a denoiser of unknown design: which attention modules got it as their keys.

That an attention has as many keys as the text has columns does not prove that they are the text's: an image may have as
many cells.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


class TextFollower:
    """Between `begin(text)` and the end of the denoiser's evaluation it notes the `sites` that got the text."""

    def __init__(self) -> None:
        self.texts: list[Tensor] = []  # the text, and what modules made of it position by position
        self.sites: set[str] = set()

    def begin(self, text: Tensor) -> None:
        """A new evaluation of the denoiser, with this text [row, column, feature]."""
        self.texts, self.sites = [text], set()

    @contextmanager
    def hooks(self, denoiser: nn.Module, sites: Mapping[str, nn.Module]) -> Iterator[None]:
        """Inside the `with` the modules are followed. `sites`: attention modules by name."""
        with ExitStack() as handles:
            for module in denoiser.modules():
                handles.enter_context(module.register_forward_hook(self._after))
            for name, module in sites.items():

                def before(module: nn.Module, arguments: tuple, named: dict, name: str = name) -> None:
                    keys = named.get("encoder_hidden_states", arguments[1] if len(arguments) > 1 else None)
                    queries = named.get("hidden_states", arguments[0] if arguments else None)
                    if self._is_text(keys) and not self._is_text(queries):
                        self.sites.add(name)

                handles.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            try:
                yield
            finally:
                self.texts = []

    def _after(self, module: nn.Module, arguments: tuple, output: object) -> None:
        """A module that got the text first, and returns as many columns, has projected it."""
        first = arguments[0] if arguments else None
        if not isinstance(first, Tensor) or not isinstance(output, Tensor) or output.dim() != 3:
            return
        if any(_is_same(first, text) for text in self.texts) and output.shape[:2] == self.texts[0].shape[:2]:
            self.texts.append(output)

    def _is_text(self, value: object) -> bool:
        return isinstance(value, Tensor) and any(
            _is_same(value, text) or (value.shape == text.shape and torch.equal(value, text.to(value)))
            for text in self.texts
        )


def _is_same(value: Tensor, text: Tensor) -> bool:
    return value is text or (value.data_ptr() == text.data_ptr() != 0 and value.shape[-1] == text.shape[-1])
