"""Edits of diffusers' pipelines: against the same thing computed by hand, and what holds for every family."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.pipelines.diffusers_since import older_than
from tests.pipelines.tiny import NEGATIVE, PROMPT, QUICK, draw, families, made
from toushi.probe.editing.editing import BadEdit, Edit, edit, edits_of_manifest
from toushi.probe.pipelines.family import UnknownSite
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.record import record
from toushi.probe.session.sampling_session import session_of
from toushi.probe.text.alignment import UnknownWord
from toushi.probe.trace.open import open_trace

SDPA = F.scaled_dot_product_attention
every = pytest.mark.parametrize("name", families(QUICK))
CELLS = 64  # of a picture of 32 x 32 in transformers


def cross(pipeline):
    return next(name for name, site in family_of(pipeline).sites(pipeline).items() if site.kind == "cross")


def all_cross(pipeline):
    return family_of(pipeline).cross_attention[0]


def latents(pipeline, **named):
    return draw(pipeline, output_type="latent", **named)


def columns_of(pipeline, word, folder):
    with record(pipeline, folder, steps=0):
        draw(pipeline, guidance=False, steps=1)
    trace = open_trace(folder)
    start, end = trace.span(word)
    return [t.column for t in trace.tokens() if t.span and t.span[0] >= start and t.span[1] <= end]


def by_hand(knocked, image, text, row, renormalise):
    """Attention of the denoiser with an explicit softmax, in which image cells do not see some text columns.

    `knocked` says for each call (q, k) whether it is the image looking at the text; `image` and `text` give its
    queries and the first text key.
    """

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        columns = knocked(query, key)
        if not columns:
            return SDPA(query, key, value, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
        scores = query.double() @ key.double().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            masked = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
        p = scores.softmax(-1)
        for column in columns:
            p[row, :, image(query), text(key) + column] = 0
        if renormalise:
            p = p / p.sum(-1, keepdim=True)
        return (p @ value.double()).to(query.dtype)

    return attention


CASES = {  # whether a call is the image looking at the text; its image queries; its first text key
    "stable-diffusion": (
        lambda columns: lambda query, key: columns if key.shape[2] == 77 else [],
        lambda query: slice(None),
        lambda key: 0,
    ),
    "stable-diffusion-3": (
        lambda columns: lambda query, key: columns if query.shape[2] == key.shape[2] > CELLS else [],
        lambda query: slice(0, CELLS),
        lambda key: CELLS,
    ),
    "flux": (
        lambda columns: lambda query, key: columns if query.shape[2] == key.shape[2] > CELLS else [],
        lambda query: slice(query.shape[2] - CELLS, None),
        lambda key: 0,
    ),
    "z-image": (
        lambda columns: lambda query, key: columns if query.shape[2] == key.shape[2] > CELLS + 32 else [],
        lambda query: slice(0, CELLS),
        lambda key: CELLS,
    ),
}


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_word_that_is_knocked_out(pipeline, name, renormalise, tmp_path):
    """At every site and step; with guidance only the row that bears the prompt."""
    knocked, image, text = CASES[name]
    columns = columns_of(pipeline, "cat", tmp_path / "run")
    assert columns  # SD3's words are in both of its texts
    guided = name.startswith("stable")
    denoiser = pipeline.unet if name == "stable-diffusion" else pipeline.transformer
    inside = by_hand(knocked(columns), image, text, 1 if guided else 0, renormalise)
    with edit(pipeline, [Edit(glob, "zero", word="cat", renormalise=renormalise) for glob in globs(pipeline)]):
        found = latents(pipeline, guidance=guided)
    enter = denoiser.register_forward_pre_hook(lambda *_: setattr(F, "scaled_dot_product_attention", inside))
    leave = denoiser.register_forward_hook(lambda *_: setattr(F, "scaled_dot_product_attention", SDPA))
    try:
        expected = latents(pipeline, guidance=guided)
    finally:
        enter.remove(), leave.remove()
        F.scaled_dot_product_attention = SDPA
    plain = latents(pipeline, guidance=guided)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    assert (plain - expected).abs().max() > 1e-4 * expected.abs().max()


def globs(pipeline):
    return family_of(pipeline).cross_attention


@every
def test_what_changes_nothing_changes_nothing_and_steps_and_branches_are_kept_to(pipeline, name, tmp_path):
    if name == "z-image" and older_than("0.39"):
        pytest.skip("the last of two steps goes from 0 to 0 in ZImagePipeline before diffusers 0.39")
    plain = draw(pipeline, negative=NEGATIVE)[0]
    glob = all_cross(pipeline)
    with record(pipeline, tmp_path / "plain", dtype="float32"):
        draw(pipeline, negative=NEGATIVE)
    with edit(pipeline, Edit(glob, word="cat", factor=1.0)):
        assert np.array_equal(draw(pipeline, negative=NEGATIVE)[0], plain)
    late = Edit(glob, "zero", word="cat", steps=1, head=0)
    with edit(pipeline, late), record(pipeline, tmp_path / "late", dtype="float32"):
        picture = draw(pipeline, negative=NEGATIVE)[0]
    before, after = open_trace(tmp_path / "plain"), open_trace(tmp_path / "late")
    assert np.array_equal(before.latent(0), after.latent(0)) and not np.array_equal(before.latent(1), after.latent(1))
    assert after.manifest.edits == [late.as_json()] and session_of(pipeline) is None
    with edit(pipeline, edits_of_manifest(after.manifest.edits)):
        assert np.array_equal(draw(pipeline, negative=NEGATIVE)[0], picture)
    # What is recorded at the first site is its own softmax, before the edit.
    site = cross(pipeline)
    for branch in before.branches:
        one, two = (t.attention(branch=branch, sites=site, steps=1, grid="native")[site] for t in (before, after))
        assert np.array_equal(one, two)
    if before.branches == ["cond"]:  # guidance is a number that this model is given
        return
    token = before.tokens("uncond")[-1].position
    alone = draw(pipeline, guidance=False)[0]
    with edit(pipeline, Edit(glob, token=token, branch="uncond", factor=3.0)):
        assert np.array_equal(draw(pipeline, guidance=False)[0], alone)
        changed = latents(pipeline, negative=NEGATIVE)
    assert not torch.equal(changed, latents(pipeline, negative=NEGATIVE))
    assert np.array_equal(draw(pipeline, negative=NEGATIVE)[0], plain)


@every
def test_a_run_is_not_changed_by_what_itself_recorded(pipeline, name, tmp_path):
    """Attention replaced by its own maps, up to rounding; a state by itself, bit for bit."""
    with record(pipeline, tmp_path / "run", dtype="float32"):
        plain = latents(pipeline, negative=NEGATIVE)
    own = Edit(all_cross(pipeline), "replace", word="cat", source=tmp_path / "run")
    with edit(pipeline, own):
        found = latents(pipeline, negative=NEGATIVE)
    assert (found - plain).abs().max() < 1e-4 * plain.abs().max()
    family = family_of(pipeline)
    layers = family.encoder_layers(pipeline)
    if not layers:
        pytest.skip("the layers of its text encoder are not known")
    middle = f"{family.layers}.{len(layers) // 2}"
    with edit(pipeline, Edit(middle, "patch", word="cat", source=tmp_path / "run")):
        assert torch.equal(latents(pipeline, negative=NEGATIVE), plain)


@every
def test_a_state_of_the_encoder(pipeline, name):
    """A word's state made larger, against a hook on the module that does the same to the rows of the prompt."""
    family = family_of(pipeline)
    if not family.encoder_layers(pipeline):
        pytest.skip("the layers of its text encoder are not known")
    site = f"{family.layers}.0"
    states = []
    with edit(pipeline, site, lambda state: states.append(state.clone()) or state * 1.5):
        found = latents(pipeline, guidance=False)
    module = family.encoder_layers(pipeline)[0]

    def larger(module, arguments, output):
        return (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5

    handle = module.register_forward_hook(larger)
    try:
        expected = latents(pipeline, guidance=False)
    finally:
        handle.remove()
    assert states and torch.equal(found, expected)
    with edit(pipeline, Edit(site, word="cat", factor=4.0)):
        word = latents(pipeline, guidance=False)
    plain = latents(pipeline, guidance=False)
    assert not torch.equal(word, plain) and not torch.equal(word, found)


def test_a_head_that_is_knocked_out():
    pipeline = made("stable-diffusion")
    site = cross(pipeline)
    module = pipeline.unet.get_submodule(site.removeprefix("unet."))
    with edit(pipeline, Edit(site, "zero", head=0)):
        found = latents(pipeline)
    width = module.to_out[0].weight.shape[1] // module.heads
    module.to_out[0].weight[:, :width] = 0
    assert torch.allclose(found, latents(pipeline), atol=1e-5)


def test_a_batch_and_pictures_of_one_prompt():
    """Each picture by its own words."""
    pipeline = made("z-image")
    prompts = [PROMPT, "the moon"]
    with edit(pipeline, Edit(all_cross(pipeline), "zero", word="moon")):
        together = latents(pipeline, prompt=list(prompts), negative=NEGATIVE)
    plain = latents(pipeline, prompt=list(prompts), negative=NEGATIVE)
    assert all(not torch.equal(one, other) for one, other in zip(together, plain))
    with pytest.raises(UnknownWord, match="cat"), edit(pipeline, Edit(all_cross(pipeline), "zero", word="cat")):
        latents(pipeline, prompt=list(prompts))


def test_what_cannot_be_edited_says_why():
    pipeline = made("flux")
    with pytest.raises(UnknownSite, match="names such as transformer"):
        edit(pipeline, Edit("transformer.nowhere", word="cat"))
    with pytest.raises(UnknownSite, match="its output is one vector"):
        edit(pipeline, Edit("text_encoder.encoder.layers.0", word="cat"))
    with pytest.raises(UnknownSite, match="decodes the latents"):
        edit(pipeline, Edit("vae.decoder", "zero"))
    with (
        pytest.raises(BadEdit, match="steps=7 selects none"),
        edit(pipeline, Edit(all_cross(pipeline), word="cat", steps=7)),
    ):
        draw(pipeline)
    with edit(pipeline, Edit(all_cross(pipeline), "zero", word="cat")):
        with pytest.raises(BadEdit, match="being edited already"):
            edit(pipeline, Edit(all_cross(pipeline), "zero", word="cat")).__enter__()
        with pytest.raises(BadEdit, match="prompt is not known"):
            embeddings, pooled, _ = made("flux").encode_prompt(PROMPT, None, max_sequence_length=48)
            draw(pipeline, None, guidance=False, prompt_embeds=embeddings, pooled_prompt_embeds=pooled)
    states, _ = (sd := made("stable-diffusion")).encode_prompt(PROMPT, "cpu", 1, False)
    layer, attention = "text_encoder.*.layers.1", "text_encoder.*.self_attn"
    zeros = [(Edit(glob, "zero", word="cat"),) for glob in (layer, attention)]
    for what in (*zeros, (layer, lambda state: state * 0.5)):  # the function changes both, but finds the negative one
        with pytest.raises(BadEdit, match="changed nothing: the text encoder did not read the prompt"), edit(sd, *what):
            draw(sd, None, prompt_embeds=states)  # only the negative prompt is read inside
    twice = edit(sd, *zeros[0])
    with twice:
        draw(sd)
    with pytest.raises(BadEdit, match="changed nothing"), twice:
        draw(sd, None, prompt_embeds=states)
    assert F.scaled_dot_product_attention is SDPA
