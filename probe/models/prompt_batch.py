"""A batch of encoded prompts: what the text encoder gives to the U-Net."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toushi.probe.text.bpe import Encoding

KeysValues = tuple[Float[Tensor, "b heads l d"], Float[Tensor, "b heads l d"]]  # of one cross-attention


class PromptBatch(NamedTuple):
    """Encoded prompts. `mask` is True at real tokens; pads are never attended to."""

    states: Float[Tensor, "b l width"]
    mask: Bool[Tensor, "b l"]
    encodings: tuple[Encoding, ...]
    keys_values: tuple[KeysValues, ...] | None = None  # of each cross-attention, computed once a run


def pad_ids(
    encodings: Sequence[Encoding], pad: int, device: torch.device | None = None
) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
    """Ids and mask (True at real tokens), at the length of the longest prompt."""
    length = max(len(e.ids) for e in encodings)
    ids = torch.full((len(encodings), length), pad, dtype=torch.long)
    for row, encoding in zip(ids, encodings):
        row[: len(encoding.ids)] = torch.tensor(encoding.ids)
    lengths = torch.tensor([len(e.ids) for e in encodings])
    return ids.to(device), (torch.arange(length) < lengths[:, None]).to(device)


def concat_prompts(first: PromptBatch, second: PromptBatch) -> PromptBatch:
    """The rows of both batches in one. The shorter texts are padded with zero states, which are masked."""
    batches, length = (first, second), max(first.states.shape[1], second.states.shape[1])
    states = [F.pad(batch.states, (0, 0, 0, length - batch.states.shape[1])) for batch in batches]
    masks = [F.pad(batch.mask, (0, length - batch.mask.shape[1])) for batch in batches]
    return PromptBatch(torch.cat(states), torch.cat(masks), first.encodings + second.encodings)
