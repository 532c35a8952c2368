"""Encoders that read a source picture with the prompt: the picture's tokens are no text."""

import numpy as np
import pytest
import torch

from tests.pipelines.tiny import NEGATIVE, PROMPT, draw
from tests.pipelines.variants import picture, variant
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_collection, open_trace

SIZE = (32, 32)
PIPELINES = {"QwenImageEditPipeline": 1, "QwenImageEditPlusPipeline": 2}  # and how many pictures are given
edits = pytest.mark.parametrize("name", PIPELINES)


@pytest.fixture(scope="module")
def pipelines():
    return {name: variant(name) for name in PIPELINES}


def pictures(name, last=5):
    given = [picture(SIZE, seed) for seed in [*range(PIPELINES[name] - 1), last]]
    return given if len(given) > 1 else given[0]


def drawn(pipelines, name, folder, **how):
    with record(pipelines[name], folder, dtype="float32", steps=0, **how):
        draw(pipelines[name], negative=NEGATIVE, image=pictures(name), size=SIZE)
    return open_trace(folder)


@edits
def test_the_tokens_of_a_picture_are_apart_from_the_text(pipelines, name, tmp_path):
    trace = drawn(pipelines, name, tmp_path / "run")
    assert trace.branches == ["cond", "uncond"] and not trace.verify()
    for branch, prompt in (("cond", PROMPT), ("uncond", NEGATIVE)):
        tokens = [token for token in trace.tokens(branch) if token.column is not None]
        assert [token.column for token in tokens] == list(range(len(tokens)))
        own = [token for token in tokens if token.kind == "image"]
        assert len(own) == PIPELINES[name] * 16 and all(t.text == "<|image_pad|>" and t.span is None for t in own)
        spelled = {index for token in tokens if token.span for index in range(*token.span)}
        assert not [c for index, c in enumerate(prompt) if index not in spelled and c != " "]
        assert trace.places(branch)[-1].text == "(image)"
    assert trace.heat_map("月亮").max() > 0 and "(image)" in trace.box(0, 0, 8, 8)


@edits
def test_the_sum_over_a_picture_is_that_of_its_columns(pipelines, name, tmp_path):
    summed, every = drawn(pipelines, name, tmp_path / "sum"), drawn(pipelines, name, tmp_path / "all", pads=True)
    for branch in every.branches:
        whole, kept = (trace.attention(branch=branch, grid="native") for trace in (every, summed))
        for site, maps in whole.items():
            own = maps.isel(token=maps.kind.values == "image")
            assert own.sizes["token"] == PIPELINES[name] * 16
            assert np.abs(kept[site].isel(token=-1) - own.sum("token")).max() < 1e-5


@edits
def test_a_picture_moves_its_own_columns(pipelines, name, tmp_path):
    """The encoder reads from left to right: another last picture changes no key before it."""
    keys = []

    def note(module, arguments, named):
        keys.append(named["encoder_hidden_states"].clone())

    handle = pipelines[name].transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        trace = drawn(pipelines, name, tmp_path / "run")
        draw(pipelines[name], negative=NEGATIVE, image=pictures(name, last=9), size=SIZE)
    finally:
        handle.remove()
    changed = (keys[0] - keys[4]).abs().amax((0, 2)) > 0
    first = [token.column for token in trace.tokens() if token.kind == "image"][-16]
    assert changed.nonzero()[0].item() == first


def test_a_batch_has_a_picture_for_each_prompt(pipelines, tmp_path):
    pipeline, prompts = pipelines["QwenImageEditPipeline"], [PROMPT, "the moon"]
    how = {"negative": NEGATIVE, "image": [picture(SIZE, 0), picture(SIZE, 1)], "size": SIZE}
    plain = draw(pipeline, prompts, **how)
    with record(pipeline, tmp_path / "run"):
        drawn = draw(pipeline, prompts, **how)
    for trace, prompt, before, after in zip(open_collection(tmp_path / "run"), prompts, plain, drawn):
        assert np.array_equal(before, after) and trace.prompt == prompt and not trace.verify()
        assert sum(token.kind == "image" for token in trace.tokens()) == 16 and trace.heat_map("moon").max() > 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_z_image_omni_reads_the_prompt_in_parts(count, tmp_path):
    """Among all columns, only that of a token gets another key if the encoder's state of this token is changed."""
    pipeline, keys = variant("ZImageOmniPipeline"), []
    how = {"size": SIZE, "guidance": False, "steps": 1} | ({"image": [picture((64, 64))] * count} if count else {})
    with record(pipeline, tmp_path / "run"):
        draw(pipeline, **how)
    trace = open_trace(tmp_path / "run")
    tokens = [token for token in trace.tokens() if token.column is not None]
    parts = count + 2 if count else 1
    assert [token.column for token in tokens] == list(range(len(tokens))) and not trace.verify()
    assert len(tokens) % 32 == 0 and len(tokens) >= 32 * parts and trace.prompt == PROMPT

    def note(module, inputs, output):
        keys.append(output[0].detach().clone())

    cat = next(token for token in tokens if token.text == "cat")

    def disturb(module, arguments, output):
        output["hidden_states"][-2][max(parts - 2, 0), cat.position] += torch.linspace(-1, 1, 16)

    hooks = [pipeline.transformer.layers[0].attention.to_k.register_forward_hook(note)]
    draw(pipeline, **how)
    hooks.append(pipeline.text_encoder.register_forward_hook(disturb))
    draw(pipeline, **how)
    for hook in hooks:
        hook.remove()
    changed = (keys[1] - keys[0]).abs().amax(-1) > 1e-6
    assert changed.nonzero()[:, 0].tolist() == [cat.column]
