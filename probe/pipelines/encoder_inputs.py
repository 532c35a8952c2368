"""Notes the token ids that text encoders get, which tell the tokens of every text column."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from toushi.hooks.module_hooks import argument_hooks
from toushi.probe.pipelines.family import EncoderInputs

ENCODER_PARAMETERS = ("input_ids", "attention_mask")  # of the text encoders of transformers


@contextmanager
def note_encoder_inputs(
    encoders: Mapping[str, tuple[nn.Module, Sequence[str]]],
    before_call: Callable[[str, EncoderInputs | None], None] | None = None,
) -> Iterator[dict[str, list[EncoderInputs]]]:
    """Gives the inputs of each call of these encoders inside the `with`, by name and in order.

    encoders      name -> module and the parameters of its `forward`: the ids, and the mask if there is one
    before_call   gets the name of each encoder that is about to compute, and its inputs; None if it got embeddings
    """
    calls: dict[str, list[EncoderInputs]] = {name: [] for name in encoders}

    def note(name: str, ids: Tensor | None, mask: Tensor | None = None) -> None:
        inputs = None
        if ids is not None:
            inputs = EncoderInputs(ids.tolist(), None if mask is None else mask.long().tolist())
            calls[name].append(inputs)
        if before_call is not None:
            before_call(name, inputs)

    with argument_hooks(encoders, note):
        yield calls
