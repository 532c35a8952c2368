"""The attention matrices of the text encoder, as the text component draws them, within a budget of bytes."""

from dataclasses import dataclass

import numpy as np

from toushi.dashboards.heat_map import word_maps
from toushi.probe.text.alignment import Token
from toushi.probe.trace.picture_trace import Trace


@dataclass(frozen=True)
class Matrices:
    tokens: list[Token]
    layers: dict[int, np.ndarray]  # float16 [1 + head, query, token] by number from 0; slot 0 is the mean of the heads
    heads_left_out: bool  # they would exceed word_maps.BUDGET; the means are a few megabytes


def read_matrices(trace: Trace, branch: str) -> Matrices:
    """The attention of the recorded layers. They are read one by one, which bounds the memory."""
    tokens = trace.encoder_tokens(branch)
    positions = [token.position for token in tokens]
    layers, left_out = {}, False
    for number in trace.encoder_layers(branch):
        maps = trace.encoder_attention(number, branch).values[:, positions][:, :, positions]
        mean = maps.mean(0, keepdims=True)
        layers[number] = (mean if left_out or len(maps) == 1 else np.concatenate([mean, maps])).astype(np.float16)
        if not left_out and sum(heads.nbytes for heads in layers.values()) > word_maps.BUDGET:
            layers, left_out = {number: heads[:1].copy() for number, heads in layers.items()}, True
    return Matrices(tokens, layers, left_out)
