"""What every layer of the text encoder did while the prompts were encoded."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from toushi.hooks.attention import AttentionHook, Call
from toushi.hooks.module_hooks import argument_hooks, state_hooks
from toushi.probe.pipelines.family import EncodedPrompt, Family, submodule, unwrapped
from toushi.probe.session.row_matching import index_of_ids


@dataclass
class Batch:
    """One run of the encoder."""

    ids: list[list[int]]  # [row][position], with padding
    states: dict[int, Tensor] = field(default_factory=dict)  # [row, position, feature]; 0 is the embeddings
    calls: dict[int, Call] = field(default_factory=dict)

    def row(self, ids: Iterable[int]) -> tuple[int, slice] | None:
        """The row that is these ids and padding, and where in it they are."""
        ids = list(ids)
        for index, row in enumerate(self.ids):
            if (start := index_of_ids(row, ids)) is not None:
                return index, slice(start, start + len(ids))
        return None


class EncoderCapture:
    """`with EncoderCapture(...) as captured:` keeps what the encoder computes inside; `captured.of(text)` gives it.

    `layers`: numbers of the layers to keep. Nothing is kept if there are none.
    """

    def __init__(self, family: Family, model, layers: Iterable[int]):
        self.family, self.model = family, model
        self.layers = sorted(layers)
        self.attends = family.hidden_attention(model) is None
        self.batches: list[Batch] = []
        self.wires = ExitStack()

    def __enter__(self) -> "EncoderCapture":
        if not self.layers:
            return self
        family, modules = self.family, self.family.encoder_layers(self.model)
        states = {"0": submodule(self.model, family.embeddings)}
        states |= {str(i + 1): unwrapped(modules[i]) for i in self.layers}
        attention = {}
        if self.attends:
            attention = {str(i): unwrapped(modules[i].get_submodule(family.layer_attention)) for i in self.layers}
        encoder = submodule(self.model, family.text_encoder)
        self.wires.enter_context(argument_hooks({family.text_encoder: (encoder, [family.input_ids])}, self._begin))
        self.wires.enter_context(state_hooks(states, self._keep))
        self.watch = self.wires.enter_context(AttentionHook(attention, self._see))
        return self

    def __exit__(self, *exception) -> None:
        self.wires.close()

    def of(self, text: EncodedPrompt) -> dict[str, np.ndarray]:
        """`state/{i}` [token, feature] and `attention/{i}` [head, query, token], fp32; {} if it did not run."""
        for batch in reversed(self.batches):
            place = batch.row(text.ids)
            if place is None:
                continue
            row, own = place
            found = {f"state/{i}": state[row, own].float() for i, state in batch.states.items()}
            for i, call in batch.calls.items():
                (probabilities,) = call.probabilities(own, [row])[..., own]
                found[f"attention/{i}"] = probabilities.transpose(1, 2).float().contiguous()
            return {key: value.cpu().numpy() for key, value in found.items()}
        return {}

    def unread(self) -> dict[str, str]:
        """Layers that ran without their attention being seen."""
        if not self.batches:
            return {}
        return {
            f"{self.family.layers}.{i}.{self.family.layer_attention}": why
            for i, why in self.watch.unread_modules().items()
        }

    def _begin(self, name: str, ids: Tensor) -> None:
        self.batches.append(Batch(ids.tolist()))

    def _keep(self, number: str, state: Tensor) -> None:
        if self.batches:  # the embeddings may be used without the encoder
            state = state.transpose(0, 1) if self.family.sequence_first else state
            self.batches[-1].states[int(number)] = state.detach().clone()

    def _see(self, call: Call) -> None:
        self.batches[-1].calls[int(call.site)] = call
