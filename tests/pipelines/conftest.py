"""Tiny pipelines, made once, that must be left as they were found."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F

from tests.pipelines.tiny import made
from toushi.hooks.attention import _stack
from toushi.probe.session.sampling_session import _sessions

SDPA = F.scaled_dot_product_attention
_made = cache(made)


@pytest.fixture
def pipeline(name):
    """The pipeline of the family that the test's parameter `name` names."""
    found = _made(name)
    kind = type(found)
    yield found
    assert type(found) is kind and kind.__module__.startswith("diffusers.") and "__call__" in vars(kind)
    assert F.scaled_dot_product_attention is SDPA and not _stack() and not _sessions
    for component in found.components.values():
        for module in component.modules() if isinstance(component, torch.nn.Module) else ():
            # transformers leaves hooks of its own to collect hidden states.
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            assert not [hook for hook in hooks if hook.__module__.startswith("toushi.")]
    assert "encode_prompt" not in vars(found)
    assert not {"step", "set_timesteps"} & set(vars(found.scheduler))
