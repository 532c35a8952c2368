"""A tiny model that must be left as it was found."""

import pytest
import torch.nn.functional as F

from tests.recording.tiny_runs import SDPA
from toushi.hooks.attention import _stack
from toushi.hooks.watched_modules import is_watched
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.session.sampling_session import _sessions


@pytest.fixture(scope="module")
def shared():
    model = MiniUNet.tiny()
    model.is_watched = is_watched  # as `load` gives it
    return model


@pytest.fixture
def model(shared):
    """Fresh as from a shelf, and left as it was found."""
    shared.embedding_cache.clear()
    yield shared
    assert F.scaled_dot_product_attention is SDPA and not _stack() and not _sessions
    for module in shared.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert "forward" not in vars(module)
    assert not {"sample", "denoise", "encode_prompt"} & set(vars(shared))
    assert not {"step", "set_timesteps"} & set(vars(shared.scheduler))
