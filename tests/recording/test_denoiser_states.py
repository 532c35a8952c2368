"""Edits of the denoiser's hidden states: a no-op changes no bit, each kind does what the same does by hand."""

import numpy as np
import pytest
import torch

from tests.pipelines.tiny import draw as draw_pipeline
from tests.pipelines.tiny import made
from tests.recording.tiny_runs import PROMPT, draw, recorded
from toushi.probe.editing.denoiser_states import denoiser_states, read_states
from toushi.probe.editing.editing import BadEdit, Edit, edit, edits_of_manifest
from toushi.probe.pipelines.family import UnknownSite
from toushi.probe.pipelines.registry import family_of

BLOCK, MLP, HEADS = "unet.middle", "unet.*.feed_forward", "unet.middle.cross_attention.heads"
OTHER = "左边是狗，右边是月亮，夜晚"


def velocity(model, prompt=PROMPT):
    return model.denoise(model.noise(1, 64, 64, seed=3), 0.6, prompt)


def hooked(model, name, change):
    """The velocity when a plain hook changes the module's output."""
    handle = model.get_submodule(name).register_forward_hook(lambda module, inputs, output: change(output))
    try:
        return velocity(model)
    finally:
        handle.remove()


@pytest.mark.parametrize("site", [BLOCK, MLP, HEADS, "unet.down.1.self_attention.heads"])
def test_an_edit_that_changes_nothing_changes_no_bit(model, site):
    plain = draw(model)
    with edit(model, Edit(site, "scale", factor=1)):
        assert np.array_equal(draw(model), plain)
    with edit(model, site, lambda state: state):
        assert np.array_equal(draw(model), plain)
    with read_states(model, site) as states:
        assert np.array_equal(draw(model), plain)
    assert len(states.values) == 3 * 2 * len(states.modules)  # steps, branches
    with edit(model, Edit(site, "patch", source=states)):
        assert np.array_equal(draw(model), plain)
    with edit(model, Edit(site, "zero")):
        assert not np.array_equal(draw(model), plain)


def edited(model, *edits, prompt=PROMPT):
    with edit(model, *edits):
        return velocity(model, prompt)


def test_each_kind_is_what_a_hook_would_do(model):
    vector = torch.linspace(-1, 1, 64)
    for change, kind in [
        (lambda state: state * 0, Edit(BLOCK, "zero")),
        (lambda state: state * 2, Edit(BLOCK, "scale", factor=2)),
        (lambda state: state + vector[:, None, None], Edit(BLOCK, "add", vector=vector)),
        (lambda state: state.flip(-1), Edit(BLOCK, "function", function=lambda state: state.flip(-1))),
    ]:
        assert torch.equal(edited(model, kind), hooked(model, BLOCK, change))
    mlp = "unet.middle.feed_forward"
    found = edited(model, Edit(mlp, "add", vector=vector.tolist()))
    assert torch.equal(found, hooked(model, mlp, lambda state: state + vector))


def test_heads_are_edited_before_they_are_mixed(model):
    """A head without output is as the knock-out of its attention; what is added to it goes through its own columns."""
    site = model.get_submodule("unet.middle.cross_attention")
    knocked_out = edited(model, Edit("unet.middle.cross_attention", "zero", head=1))
    assert torch.equal(edited(model, Edit(HEADS, "zero", head=1)), knocked_out)
    vector = torch.linspace(-1, 1, 16)
    found = edited(model, Edit(HEADS, "add", head=1, vector=vector))
    through = site.to_out.weight[:, 16:32] @ vector
    expected = hooked(model, "unet.middle.cross_attention", lambda state: state + through)
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, velocity(model), atol=1e-3)


def test_a_patch_of_the_last_state_is_the_other_run(model):
    with read_states(model, "unet.up_resnet") as states:
        expected = velocity(model, OTHER)
    assert torch.equal(edited(model, Edit("unet.up_resnet", "patch", source=states)), expected)
    assert not torch.equal(velocity(model), expected)


def test_one_head_of_another_run(model):
    with read_states(model, HEADS) as states:
        velocity(model, OTHER)
    seen = []
    patch = [
        Edit(HEADS, "patch", head=2, source=states),
        Edit(HEADS, "function", function=lambda x: seen.append(x) or x),
    ]
    with edit(model, patch):
        velocity(model)
    (other,) = states.values.values()
    assert torch.equal(seen[0][0, 2], other[2]) and not torch.equal(seen[0][0, 1], other[1])


def test_steps_and_branches_are_those_that_were_named(model):
    with read_states(model, BLOCK) as plain:
        draw(model)
    with read_states(model, BLOCK) as states, edit(model, Edit(BLOCK, "zero", steps=2, branch="uncond")):
        draw(model)
    changed = [key for key, state in states.values.items() if not torch.equal(state, plain.values[key])]
    assert {(key.step, key.branch) for key in changed} <= {(2, "uncond")}
    assert not states.values[BLOCK, 2, "uncond", 1].any()


def test_the_manifest_has_the_edit_and_hooks_go_after_an_error(model, tmp_path):
    with edit(model, Edit(BLOCK, "add", vector=[0.5] * 64, steps=0)):
        picture, trace = recorded(model, tmp_path / "run")
    with edit(model, edits_of_manifest(trace.manifest.edits)):
        assert np.array_equal(draw(model), picture)
    with read_states(model, BLOCK) as states:
        draw(model)
    with edit(model, Edit(BLOCK, "patch", source=states)):
        _, trace = recorded(model, tmp_path / "patched")
    with pytest.raises(BadEdit, match="in memory"):
        edits_of_manifest(trace.manifest.edits)

    def fail(state):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), edit(model, BLOCK, fail):
        draw(model)  # the fixture then finds no hook


def test_mistakes_get_one_line(model):
    with read_states(model, BLOCK) as states:
        draw(model)
    for bad, expected in [
        (Edit("unet.midle", "zero"), "unet.middle"),
        (Edit(BLOCK, "zero", head=1), "has no heads"),
        (Edit(HEADS, "zero", head=9), "no head 9"),
        (Edit("unet.up_resnet*", "zero"), "which is inside it"),
        (Edit(BLOCK, "add", vector=[1.0, 2.0]), "has 64 features"),
        (Edit(HEADS, "add", vector=[1.0, 2.0]), "has 16 features"),
        (Edit("unet.up_resnet", "patch", source=states), "was not read"),
        (Edit(BLOCK, "zero", word="猫"), "no site or state"),
        (Edit("encoder.layers.3", "add", vector=[1.0]), "of the denoiser"),
        (Edit("unet.middle_resnet.skip.missing*", "zero"), "no site or state"),
    ]:
        with pytest.raises((BadEdit, UnknownSite), match=expected) as error, edit(model, bad):
            draw(model)
        assert "\n" not in str(error.value)
    with pytest.raises(BadEdit, match="read in 3 steps"), edit(model, Edit(BLOCK, "patch", source=states)):
        draw(model, steps=4)
    for given in [dict(kind="add"), dict(kind="add", vector=["a"]), dict(kind="zero", vector=[1.0])]:
        with pytest.raises(BadEdit, match="vector"):
            Edit(BLOCK, **given)
    with pytest.raises(UnknownSite, match="unet.middle"), read_states(model, "unet.midle"):
        pass


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("stable-diffusion", "unet.mid_block"),
        ("stable-diffusion-3", "transformer.transformer_blocks.0"),
        ("z-image", "transformer.layers.0"),
    ],
)
def test_pipelines_of_diffusers(name, block):
    pipeline = made(name)
    known = denoiser_states(family_of(pipeline), pipeline)
    heads = next(state for state in known if state.endswith(".heads"))
    plain = draw_pipeline(pipeline)[0]
    for site in (block, heads):
        with read_states(pipeline, site) as states:
            assert np.array_equal(draw_pipeline(pipeline)[0], plain)
        with edit(pipeline, Edit(site, "patch", source=states)):
            assert np.array_equal(draw_pipeline(pipeline)[0], plain)
        with edit(pipeline, Edit(site, "scale", factor=3.0)):
            assert not np.array_equal(draw_pipeline(pipeline)[0], plain)
        if name == "stable-diffusion-3" and site == block:  # it returns the text, then the image of 8x8 tokens
            assert {len(state) for state in states.values.values()} == {64}
