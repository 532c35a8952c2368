"""A module is watched by whoever wants what it computes, and by nobody who only reads its inputs."""

from functools import partial

import pytest
import torch
from torch import nn

from toushi.hooks.attention import AttentionHook
from toushi.hooks.module_hooks import argument_hooks, input_hook, state_hooks
from toushi.hooks.watched_modules import is_watched


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))


def ignore(*_):
    return None


@pytest.mark.parametrize(
    "watching",
    [
        lambda module: AttentionHook({"site": module}, ignore),
        lambda module: AttentionHook({"site": module}, edit=ignore),
        lambda module: state_hooks({"state": module}, ignore),
        lambda module: input_hook(module, "input", ignore),
    ],
)
def test_readers_and_editors_watch_a_module_and_all_that_it_is_inside_of(model, watching):
    inner, beside = model[1][0], model[0]
    with watching(inner), watching(inner):
        assert is_watched(inner) and is_watched(model[1]) and is_watched(model) and not is_watched(beside)
    assert not is_watched(model)


def test_who_reads_inputs_only_does_not_watch(model):
    inputs = []
    with argument_hooks({"first": (model[0], ["input"])}, lambda *values: inputs.append(values)):
        assert not is_watched(model)
        with state_hooks({"first": model[0]}, ignore):
            assert is_watched(model)
        assert not is_watched(model)
        model(torch.zeros(1, 2))
    assert len(inputs) == 1


def test_a_watch_that_ends_with_an_exception_ends(model):
    with pytest.raises(ZeroDivisionError), AttentionHook({"site": model[0]}, ignore):
        raise ZeroDivisionError
    assert not is_watched(model)


def test_the_name_of_a_hook_changes_nothing(model):
    def before(*_):
        return None

    before.__qualname__ = "argument_hooks.<locals>.before"  # of somebody else all the same
    handle = model[0].register_forward_pre_hook(before)
    assert is_watched(model)
    handle.remove()
    with argument_hooks({"first": (model[0], ["input"])}, ignore):
        (hook,) = model[0]._forward_pre_hooks.values()
        hook.__qualname__ = hook.__name__ = "anything"
        assert not is_watched(model)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_users_count_and_those_of_the_libraries_do_not(model, register):
    handle = getattr(model[1][0], register)(partial(ignore))
    assert is_watched(model)
    handle.remove()

    def aligned(*_):
        return None

    aligned.__module__ = "accelerate.hooks"
    getattr(model[0], register)(aligned)
    assert not is_watched(model)
