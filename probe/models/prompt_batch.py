"""What the text side hands to the image side."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from toushi.probe.text.bpe import Encoding


class Text(NamedTuple):
    """A batch of encoded prompts. `mask` is True at real tokens; pads are never attended to."""

    states: Float[Tensor, "b l width"]
    mask: Bool[Tensor, "b l"]
    encodings: tuple[Encoding, ...]
    keys_values: tuple[tuple[Tensor, Tensor], ...] | None = None  # of each cross-attention, computed once a run


def padded_ids(encodings: list[Encoding], pad: int, device=None) -> tuple[Tensor, Tensor]:
    """Ids [b, l] and mask [b, l] at the length of the longest prompt."""
    length = max(len(e.ids) for e in encodings)
    ids = torch.full((len(encodings), length), pad, dtype=torch.long)
    for row, encoding in zip(ids, encodings):
        row[: len(encoding.ids)] = torch.tensor(encoding.ids)
    lengths = torch.tensor([len(e.ids) for e in encodings])
    return ids.to(device), (torch.arange(length) < lengths[:, None]).to(device)


def joined(first: Text, second: Text) -> Text:
    """Both batches as one, the shorter padded (with zero states, masked)."""
    length = max(first.states.shape[1], second.states.shape[1])

    def pad(text: Text) -> tuple[Tensor, Tensor]:
        missing = length - text.states.shape[1]
        return torch.nn.functional.pad(text.states, (0, 0, 0, missing)), torch.nn.functional.pad(
            text.mask, (0, missing)
        )

    (a, a_mask), (b, b_mask) = pad(first), pad(second)
    return Text(torch.cat([a, b]), torch.cat([a_mask, b_mask]), first.encodings + second.encodings)
