"""What every layer of the text encoder computes while prompts are encoded."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from toushi.hooks.attention import AttentionHook, Call
from toushi.hooks.module_hooks import argument_hooks, state_hooks
from toushi.probe.pipelines.family import EncodedPrompt, Family, Model, submodule, unwrap
from toushi.probe.recording.unrecordable import Unrecordable
from toushi.probe.session.row_matching import index_of_ids


@dataclass
class CapturedBatch:
    """What the encoder computed for one batch."""

    ids: list[list[int]]  # [row][position], with padding
    states: dict[int, Tensor] = field(default_factory=dict)  # [row, position, feature]; 0 is the embeddings
    calls: dict[int, Call] = field(default_factory=dict)

    def row_of(self, ids: Iterable[int]) -> tuple[int, slice] | None:
        """The row that has these ids, and their positions in it; None if no row has them."""
        ids = list(ids)
        for index, row in enumerate(self.ids):
            if (start := index_of_ids(row, ids)) is not None:
                return index, slice(start, start + len(ids))
        return None


class EncoderCapture:
    """`with EncoderCapture(...) as capture:` keeps what the encoder computes; `capture.arrays_of(prompt)` returns it.

    `layers`: numbers of the layers to keep. Without layers nothing is kept.
    """

    def __init__(self, family: Family, model: Model, layers: Iterable[int]):
        self.family, self.model = family, model
        self.layers = sorted(layers)
        self.reads_attention = family.hidden_attention(model) is None
        self.batches: list[CapturedBatch] = []
        self.hooks = ExitStack()

    def __enter__(self) -> "EncoderCapture":
        if not self.layers:
            return self
        family, modules = self.family, self.family.encoder_layers(self.model)
        states = {"0": submodule(self.model, family.embeddings)}
        states |= {str(i + 1): unwrap(modules[i]) for i in self.layers}
        attention = {}
        if self.reads_attention:
            attention = {str(i): unwrap(modules[i].get_submodule(family.layer_attention)) for i in self.layers}
        encoder = submodule(self.model, family.text_encoder)
        self.hooks.enter_context(
            argument_hooks({family.text_encoder: (encoder, [family.input_ids])}, self._begin_batch)
        )
        self.hooks.enter_context(state_hooks(states, self._keep_state))
        self.attention_hook = self.hooks.enter_context(AttentionHook(attention, self._keep_call))
        return self

    def __exit__(self, *exception: object) -> None:
        self.hooks.close()

    def arrays_of(self, prompt: EncodedPrompt) -> dict[str, np.ndarray]:
        """`state/{i}` [token, feature] and `attention/{i}` [head, query, token], fp32; {} if it was not computed."""
        for batch in reversed(self.batches):
            match = batch.row_of(prompt.ids)
            if match is None:
                continue
            row, positions = match
            tensors = {f"state/{i}": state[row, positions].float() for i, state in batch.states.items()}
            for i, call in batch.calls.items():
                (probabilities,) = call.probabilities(positions, [row])[..., positions]
                tensors[f"attention/{i}"] = probabilities.transpose(1, 2).float().contiguous()
            return {key: tensor.detach().cpu().numpy() for key, tensor in tensors.items()}
        return {}

    def unread(self) -> dict[str, str]:
        """Layers that were computed without their attention being read, each with the reason."""
        if not self.batches:
            return {}
        return {
            f"{self.family.layers}.{i}.{self.family.layer_attention}": reason
            for i, reason in self.attention_hook.unread_modules().items()
        }

    def _begin_batch(self, name: str, ids: Tensor) -> None:
        self.batches.append(CapturedBatch(ids.tolist()))

    def _keep_state(self, number: str, state: Tensor) -> None:
        if self.batches:  # the embeddings may be used without the encoder
            state = state.transpose(0, 1) if self.family.sequence_first else state
            self._check_rows(f"state {number} of the text encoder", state.shape[0])
            self.batches[-1].states[int(number)] = state.detach().clone()

    def _keep_call(self, call: Call) -> None:
        self._check_rows(f"{self.family.layers}.{call.site}.{self.family.layer_attention}", call.shape[0])
        self.batches[-1].calls[int(call.site)] = call

    def _check_rows(self, name: str, rows: int) -> None:
        expected = len(self.batches[-1].ids)
        if rows != expected:
            raise Unrecordable(f"{name}: expected {expected} rows, one for each text, but {rows} came")
