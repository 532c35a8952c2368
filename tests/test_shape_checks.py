"""Shapes in signatures are checked while the tests run: see conftest.py."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from toushi.hooks.kernels import softmax_
from toushi.probe.analysis.maps import mean_of_heads
from toushi.probe.models.text_encoder import apply_rope
from toushi.probe.models.vae import ConvBlock


@pytest.mark.parametrize(
    "call",
    [
        lambda: softmax_(torch.zeros(2, 3, 4)),
        lambda: softmax_(torch.zeros(2, 3, 4, 5, dtype=torch.int64)),
        lambda: mean_of_heads(np.zeros((4, 4))),
        lambda: apply_rope(torch.zeros(4)),
        lambda: ConvBlock(8)(torch.zeros(8, 4, 4)),
    ],
)
def test_a_wrong_shape_or_dtype_is_noticed(call):
    with pytest.raises(TypeCheckError):
        call()
