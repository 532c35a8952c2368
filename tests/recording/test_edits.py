"""Edits do what they say, nothing else, and are noted; a patch of a run with itself changes nothing."""

import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from tests.recording.tiny_runs import LONG, PROMPT, draw, recorded, same
from toushi.probe.editing.editing import BadEdit, Edit, edit, edits_of_manifest
from toushi.probe.encoders.record_texts import record_texts
from toushi.probe.models.mini_unet import PromptCut
from toushi.probe.pipelines.family import UnknownSite
from toushi.probe.recording.record import record
from toushi.probe.session.sampling_session import session_of
from toushi.probe.text.alignment import AmbiguousWord, UnknownWord, Word
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.trace_errors import NotAPicture

MIDDLE = "unet.middle.cross_attention"
CROSS = "unet.*.cross_attention"
TIME = 0.6


def velocity(model, prompt=PROMPT, seed=3):
    return model.denoise(model.noise(1, 64, 64, seed=seed), TIME, prompt)


def columns_of(model, word, prompt=PROMPT):
    tokens = model.tokenizer.encode(prompt).tokens
    start = prompt.index(word)
    return [t.column for t in tokens if t.span and t.span[0] >= start and t.span[1] <= start + len(word)]


# --- what an edit does, against the same thing done by hand


def test_knocked_out_head_is_a_head_whose_output_weights_are_zero(model):
    with edit(model, Edit(MIDDLE, "zero", head=1)):
        found = velocity(model)
    site = model.get_submodule(MIDDLE)
    width = site.to_out.weight.shape[1] // site.heads
    kept = site.to_out.weight.detach().clone()
    try:
        site.to_out.weight[:, width : 2 * width] = 0
        expected = velocity(model)
    finally:
        site.to_out.weight.copy_(kept)
    assert torch.allclose(found, expected, atol=1e-6) and not torch.allclose(found, velocity(model), atol=1e-4)


def by_hand(model, column, renormalise):
    """The velocity when one text column is masked (the others share its mass), or its value is nothing."""
    text = model.unet.read_text(model.encode_text([PROMPT]))
    if renormalise:
        mask = text.mask.clone()
        mask[0, column] = False
        text = text._replace(mask=mask)
    else:
        silent = []
        for k, v in text.keys_values:
            v = v.clone()
            v[:, :, column] = 0
            silent.append((k, v))
        text = text._replace(keys_values=tuple(silent))
    return model.unet(model.noise(1, 64, 64, seed=3), torch.tensor([TIME]), text)


@pytest.mark.parametrize("renormalise", [True, False])
def test_knocked_out_token(model, renormalise):
    (column, *_) = columns_of(model, "月亮")
    with edit(model, Edit(CROSS, "zero", token=column, renormalise=renormalise)):
        found = velocity(model)
    assert torch.allclose(found, by_hand(model, column, renormalise), atol=1e-5)
    assert not torch.allclose(found, velocity(model), atol=1e-4)


def test_word_edits_are_edits_of_all_its_tokens(model):
    columns = columns_of(model, "月亮")
    with edit(model, Edit(CROSS, word="月亮", factor=2.5)):
        by_word = velocity(model)
    with edit(model, [Edit(CROSS, token=column, factor=2.5) for column in columns]):
        by_token = velocity(model)
    assert torch.equal(by_word, by_token)


def test_scales_of_one_word_multiply(model):
    with edit(model, Edit(CROSS, word="猫", factor=2.0), Edit(CROSS, word="猫", factor=3.0)):
        twice = velocity(model)
    with edit(model, Edit(CROSS, word="猫", factor=6.0)):
        once = velocity(model)
    assert torch.allclose(twice, once, atol=1e-6)


def test_function_at_an_attention_site(model):
    (column, *_) = columns_of(model, "猫")

    def silence(p):
        p = p.clone()
        p[:, :, column] = 0
        return p

    with edit(model, CROSS, silence):
        found = velocity(model)
    assert torch.allclose(found, by_hand(model, column, renormalise=False), atol=1e-5)


def test_patched_state_is_the_other_runs(model, tmp_path):
    other = "左边是狗，右边是月亮，夜晚"
    recorded(model, tmp_path / "source", prompt=other)
    _, before = recorded(model, tmp_path / "before")
    patch = Edit("encoder.layers.5", "patch", word="猫", source=tmp_path / "source", source_word="狗")
    with edit(model, patch):
        _, after = recorded(model, tmp_path / "after")
    source, plain, patched = (
        open_trace(tmp_path / name).encoder_states().values for name in ("source", "before", "after")
    )
    at = [t.position for t in after.tokens() if t.text == "猫"] or [
        t.position for t in after.tokens() if t.span and PROMPT[slice(*t.span)] == "猫"
    ]
    there = [t.position for t in open_trace(tmp_path / "source").tokens() if t.span and other[slice(*t.span)] == "狗"]
    assert np.array_equal(patched[:6], plain[:6])
    expected = source[6, there] if len(there) == len(at) else source[6, there].mean(0)
    assert np.allclose(patched[6, at], expected, atol=1e-6)
    elsewhere = [i for i in range(patched.shape[1]) if i not in at]
    assert np.array_equal(patched[6, elsewhere], plain[6, elsewhere])
    assert not np.array_equal(patched[7, elsewhere], plain[7, elsewhere])
    assert np.array_equal(after.encoder_states("uncond"), before.encoder_states("uncond"))


# --- what it does not do


@pytest.mark.parametrize(
    "nothing",
    [
        Edit(CROSS, word="猫", factor=1.0),
        Edit(CROSS, word="猫", factor=1.0, renormalise=True),
        Edit("encoder.layers.*", head=0, factor=1.0),
        Edit("encoder.layers.3", word="猫", factor=1.0),
    ],
)
def test_a_factor_of_one_changes_nothing(model, nothing):
    free = draw(model)
    with edit(model, nothing):
        assert same(draw(model), free)


def test_patching_a_run_with_itself_changes_nothing(model, tmp_path):
    free, _ = recorded(model, tmp_path / "run", keeping={"dtype": "float32"})
    with edit(model, Edit("encoder.*", "patch", word="月亮", source=tmp_path / "run")):
        assert same(draw(model), free)
    with edit(model, Edit(CROSS, "replace", word="月亮", source=tmp_path / "run")):
        again = draw(model)
    assert np.abs(np.asarray(again, int) - np.asarray(free, int)).max() <= 1


def test_steps_before_an_edit_are_untouched(model, tmp_path):
    _, free = recorded(model, tmp_path / "free", steps=4)
    with edit(model, Edit(CROSS, "zero", word="猫", steps="2:")):
        _, late = recorded(model, tmp_path / "late", steps=4)
    for step in (0, 1):
        assert np.array_equal(free.latent(step), late.latent(step))
    assert not np.array_equal(free.latent(2), late.latent(2))


def test_the_other_branch_is_untouched(model, tmp_path):
    _, free = recorded(model, tmp_path / "free", steps=1)
    with edit(model, Edit("unet.down.0.*", "zero", word="猫")):
        _, edited = recorded(model, tmp_path / "edited", steps=1)
    for branch, equal in (("uncond", True), ("cond", False)):
        one, two = (t.attention(branch=branch, sites="unet.up.1.cross_attention").values for t in (free, edited))
        assert np.array_equal(one, two) is equal


def test_each_picture_of_a_batch_is_edited_at_its_own_word(model):
    prompts = ["一只猫在左边", "右边有一只猫"]
    with edit(model, Edit(CROSS, "zero", word="猫")):
        together = model.sample(prompts, steps=2, seed=[0, 1])
        alone = [model.sample(prompt, steps=2, seed=seed) for seed, prompt in enumerate(prompts)]
    for one, other in zip(together, alone):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_wires_are_gone_afterwards(model):
    free = draw(model)
    with pytest.raises(RuntimeError, match="stop"), edit(model, Edit(CROSS, "zero", word="猫")):
        draw(model)
        raise RuntimeError("stop")
    assert same(draw(model), free) and session_of(model) is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not {"encode_prompt", "denoise"} & set(vars(model)) and "step" not in vars(model.scheduler)


# --- with a recording


def test_edits_and_recording_compose_in_either_order(model, tmp_path):
    edits = [Edit(CROSS, "zero", word="猫", renormalise=True), Edit("encoder.layers.4", "zero", word="月亮")]
    with edit(model, edits):
        free = draw(model)
        with record(model, tmp_path / "inner"):
            inner = draw(model)
    with record(model, tmp_path / "outer"), edit(model, edits):
        outer = draw(model)
    assert same(inner, free) and same(outer, free)
    one, two = open_trace(tmp_path / "inner"), open_trace(tmp_path / "outer")
    assert np.array_equal(one.attention(), two.attention(), equal_nan=True)
    assert np.array_equal(one.encoder_states(), two.encoder_states())
    assert one.verify() == [] and two.verify() == []
    for trace in (one, two):
        assert [raw["word"] for raw in trace.manifest.edits] == ["猫", "月亮"]
    with edit(model, edits_of_manifest(one.manifest.edits)):
        assert same(draw(model), free)


def test_edits_are_json_and_back():
    edits = [
        Edit("unet.*", "scale", word=Word("猫", 3, 4), head=(0, 2), steps=slice(2, None), factor=0.5, renormalise=True),
        Edit("encoder.embed", "patch", word="银行#2", source="runs/a", source_word=(0, 2)),
        Edit(MIDDLE, "zero", head=range(2), branch="uncond", steps=[0, -1]),
    ]
    assert edits_of_manifest(json.loads(json.dumps([one.as_json() for one in edits]))) == edits


@pytest.mark.parametrize(
    "steps, expected", [(None, [0, 1, 2, 3]), (1, [1]), ((0, -1), [0, 3]), ("2:", [2, 3]), (slice(0, 4, 2), [0, 2])]
)
def test_steps(steps, expected):
    one = Edit(MIDDLE, "zero", head=0, steps=steps)
    assert [step for step in range(4) if one.holds_at(step, 4)] == expected


# --- mistakes


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(kind="boost", word="猫"), "scale, zero, keep_only, move, replace, patch"),
        (dict(word="猫", token=3), "not both"),
        (dict(kind="patch", word="猫"), "source"),
        (dict(kind="zero", word="猫", factor=2.0), "only scale"),
        (dict(word="猫", factor=float("nan")), "factor"),
        (dict(head=0, renormalise=True), "remove it from an edit of whole heads"),
        (dict(head=0, steps="a:b"), "steps"),
        (dict(head=0, steps="3"), "steps must be like 3"),
        (dict(head=0, steps=2.5), "steps must be an index"),
        (dict(head="0"), "head must be an index"),
        (dict(token="3"), "token must be a whole number"),
        (dict(kind="function", function=torch.zeros_like, branch="cond"), "select inside the function"),
        (dict(kind="function", function=torch.zeros_like, word="猫"), "select inside the function"),
    ],
)
def test_contradictions_are_refused_when_made(wrong, said):
    with pytest.raises(BadEdit, match=said):
        Edit(MIDDLE, **wrong)


def test_mistakes_about_the_model(model, tmp_path):
    with pytest.raises(UnknownSite, match=r"unet\.middle\.cross_attention"):
        edit(model, Edit("unet.midle.cross_attention", "zero", word="猫"))
    with pytest.raises(BadEdit, match="before the first step"):
        edit(model, Edit("encoder.layers.3", "zero", word="猫", steps="2:"))
    with pytest.raises(BadEdit, match="not an image-to-text site"):
        edit(model, Edit("unet.middle.self_attention", "zero", word="猫"))
    with pytest.raises(BadEdit, match="cond or uncond"):
        edit(model, Edit(MIDDLE, "zero", word="猫", branch="both"))
    with pytest.raises(BadEdit, match="0 to 3"), edit(model, Edit(MIDDLE, "zero", head=9)):
        velocity(model)
    with pytest.raises(UnknownWord), edit(model, Edit(MIDDLE, "zero", word="狗")):
        velocity(model)
    with pytest.raises(AmbiguousWord), edit(model, Edit(MIDDLE, "zero", word="猫")):
        velocity(model, "猫和猫")
    with pytest.raises(BadEdit, match="last is at"), edit(model, Edit(MIDDLE, "zero", token=70)):
        velocity(model)
    with pytest.raises(BadEdit, match="shape"), edit(model, MIDDLE, lambda p: p[:, :1]):
        velocity(model)
    with edit(model, Edit(MIDDLE, "zero", head=0)), pytest.raises(BadEdit, match="already"):
        edit(model, Edit(MIDDLE, "zero", head=1)).__enter__()
    recorded(model, tmp_path / "mean", keeping={"keep": "mean"})
    with (
        pytest.raises(BadEdit, match='keep="heads"'),
        edit(model, Edit(CROSS, "replace", word="猫", source=tmp_path / "mean")),
    ):
        draw(model)


@pytest.mark.parametrize("site", ["encoder.layers.5.attention", "encoder.layers.5"])
def test_rows_that_are_no_texts_of_the_batch_are_refused(model, site):
    """A hook of the user's own repeats the rows, so that it is not known whose they are."""
    repeat = model.get_submodule(site).register_forward_pre_hook(
        lambda _, inputs: tuple(torch.cat([x, x]) for x in inputs)  # states and mask
    )
    expected = rf"{re.escape(site)}: expected 1 rows, one for each text, but 2 came"
    with repeat, pytest.raises(BadEdit, match=expected), edit(model, Edit(site, "scale", word="猫", factor=2.0)):
        velocity(model)


def test_an_edit_that_would_do_nothing_says_so(model):
    end = (len(LONG) - 3, len(LONG) - 1)
    for steps in (9, "3:", (-4, 3)):
        with pytest.raises(BadEdit, match="none of the 3 steps"), edit(model, Edit(CROSS, word="猫", steps=steps)):
            draw(model)
    for site in (CROSS, "encoder.layers.3"):
        with (
            pytest.warns(PromptCut),
            pytest.raises(BadEdit, match="no token of"),
            edit(model, Edit(site, "zero", word=end)),
        ):
            draw(model, LONG)


def test_a_source_that_lacks_what_is_asked_says_so(model, tmp_path):
    with pytest.warns(PromptCut):
        recorded(model, tmp_path / "cut", prompt=LONG)
    recorded(model, tmp_path / "words", keeping={"words": ["猫"]})
    recorded(model, tmp_path / "long", steps=5)
    end = (len(LONG) - 3, len(LONG) - 1)
    for one, said in [
        (Edit(CROSS, "replace", word="月亮", source=tmp_path / "cut", source_word=end), "no token stands for"),
        (Edit("encoder.layers.3", "patch", word="月亮", source=tmp_path / "cut", source_word=end), "no token stands"),
        (Edit(CROSS, "replace", word="月亮", source=tmp_path / "words"), "some words only"),
        (Edit(CROSS, "replace", word="月亮", source=tmp_path / "long"), "sampled in 5 steps, this run has 3"),
    ]:
        with pytest.raises(BadEdit, match=said), edit(model, one):
            draw(model)


def test_an_encoder_trace_is_no_picture_to_take_maps_from(model, tmp_path):
    record_texts(model, ["河边的银行"], tmp_path / "texts")
    with pytest.raises(NotAPicture):
        edit(model, Edit(CROSS, "replace", word="月亮", source=tmp_path / "texts"))


def test_a_head_named_twice_is_edited_once(model):
    with edit(model, Edit(MIDDLE, word="猫", factor=3.0, head=(0, 0))):
        twice = velocity(model)
    with edit(model, Edit(MIDDLE, word="猫", factor=3.0, head=0)):
        assert torch.equal(velocity(model), twice)


def test_function_edits_are_named_but_cannot_be_run_again(model, tmp_path):
    for number, function in enumerate([lambda p: p.clone(), partial(torch.mul, other=1.0), nn.Identity()]):
        with record(model, tmp_path / str(number)), edit(model, MIDDLE, function):
            draw(model)
        (raw,) = open_trace(tmp_path / str(number)).manifest.edits
        assert raw["kind"] == "function" and raw["function"].endswith(("<lambda>", "partial", "Identity"))
    with pytest.raises(BadEdit, match="make it in Python"):
        edits_of_manifest([raw])


# --- keeping one word, moving a map


def probabilities(model, *edits):
    """What a function after these edits gets at the middle site: [row, head, column, cell]."""
    seen = []

    def look(p):
        seen.append(p.clone())
        return p

    with edit(model, [*edits, Edit(MIDDLE, "function", function=look)]):
        velocity(model)
    return seen[0]


def test_keep_only_leaves_the_words_and_the_special_tokens(model):
    kept, plain = probabilities(model, Edit(MIDDLE, "keep_only", word=("猫", "月亮"))), probabilities(model)
    words = columns_of(model, "猫") + columns_of(model, "月亮")
    special = [t.column for t in model.tokenizer.encode(PROMPT).tokens if t.kind != "text"]
    assert torch.equal(kept[:, :, words + special], plain[:, :, words + special])
    others = sorted(set(range(kept.shape[2])) - {*words, *special})
    assert others and not kept[:, :, others].any()


def test_a_moved_map_is_the_shifted_map(model):
    columns, move = columns_of(model, "猫"), Edit(MIDDLE, "move", word="猫", shift=(0, 0.5))
    moved, plain = probabilities(model, move), probabilities(model)
    side = int(plain.shape[-1] ** 0.5)
    expected = plain[:, :, columns].unflatten(-1, (side, side)).roll(side // 2, -1).flatten(-2)
    assert torch.equal(moved[:, :, columns], expected) and not torch.equal(moved, plain)
    assert torch.allclose(moved.sum(-1), plain.sum(-1), atol=1e-5)  # a word keeps its share


def test_a_map_moved_by_the_whole_picture_changes_nothing(model):
    with edit(model, Edit(CROSS, "move", word="猫", shift=(-1, 1), renormalise=True)):
        moved = velocity(model)
    assert torch.equal(moved, velocity(model))


@pytest.mark.parametrize("kind", [{"kind": "keep_only", "word": ("猫", "月亮")}, {"kind": "move", "word": "猫", "shift": (0, 0.5)}])  # fmt: skip
def test_edits_of_maps_come_back_from_json(kind):
    one = Edit(CROSS, **kind)
    assert edits_of_manifest(json.loads(json.dumps([one.as_json()]))) == [one]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"kind": "keep_only"}, "needs a word"),
        ({"kind": "move", "word": "猫"}, "needs shift"),
        ({"kind": "move", "word": "猫", "shift": "left"}, "two numbers"),
        ({"kind": "zero", "word": "猫", "shift": (0, 1)}, "only move"),
        ({"kind": "patch", "word": ("猫", "狗"), "source": "x"}, "one word"),
    ],
)
def test_wrong_edits_of_maps(wrong, message):
    with pytest.raises(BadEdit, match=message):
        Edit(CROSS, **wrong)
