"""What a module is given can be exchanged, however it is handed over, and only within the `with`."""

import pytest
import torch
from torch import nn

from toushi.hooks.module_hooks import input_hook


class Scaled(nn.Module):
    def forward(self, x, scale=2):
        return x * scale


@pytest.mark.parametrize("call", [lambda m, x: m(x), lambda m, x: m(x=x), lambda m, x: m(x, scale=2)])
def test_the_module_gets_what_change_returns(call):
    module, x = Scaled(), torch.ones(3)
    with input_hook(module, "x", lambda value: value + 1):
        assert torch.equal(call(module, x), torch.full((3,), 4.0))
    assert torch.equal(call(module, x), torch.full((3,), 2.0))
    with input_hook(module, "x", lambda value: None):
        assert torch.equal(call(module, x), torch.full((3,), 2.0))
    with pytest.raises(RuntimeError), input_hook(module, "x", lambda value: value):
        raise RuntimeError
    assert not module._forward_pre_hooks
