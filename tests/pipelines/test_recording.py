"""Recording diffusers' pipelines: nothing changes, every site is there, every column bears its own token's name."""

import fnmatch
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    AttnProcessor,
    SanaLinearAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)

from tests.pipelines.tiny import HIDDEN, MAKERS, NEGATIVE, PROMPT, QUICK, draw, families, made, scaled
from toushi.hooks.attention import AttentionHook
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import PromptCut
from toushi.probe.pipelines.attention_processors import AttentionSwitched, UnreadableAttention
from toushi.probe.pipelines.family import UnknownFamily, named_modules
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.record import HiddenStatesOnly, record
from toushi.probe.trace.open import open_collection, open_trace
from toushi.probe.trace.trace_errors import NotRecorded

SITES = {  # of the image looking at the text, of it looking at itself, and of the text encoder
    "stable-diffusion": (4, 4, 3),
    "stable-diffusion-xl": (7, 7, 3),
    "kolors": (4, 4, 3),
    "pixart": (2, 2, 2),
    "sana": (2, 0, 3),
    "hunyuan-dit": (4, 4, 3),
    "stable-diffusion-3": (2, 0, 3),
    "z-image": (2, 0, 3),
    "lumina-2": (2, 0, 3),
    "flux": (5, 0, 2),
    "flux-2": (4, 0, 31),
    "flux-2-klein": (4, 0, 28),
    "qwen-image": (2, 0, 2),
    "longcat-image": (3, 0, 2),
    "ovis-image": (3, 0, 3),
    "ernie-image": (2, 0, 3),
    "hunyuan-image": (3, 0, 4),
    "cogview-4": (2, 0, 3),
    "chroma": (3, 0, 2),
    "auraflow": (3, 0, 2),
}
LEFT = ("kolors", "flux-2", "cogview-4")  # padding comes before the text
TEXT_FIRST = (
    "lumina-2",
    "flux",
    "flux-2",
    "flux-2-klein",
    "qwen-image",
    "longcat-image",
    "ovis-image",
    "cogview-4",
    "chroma",
    "auraflow",
)
REGISTERS = {"auraflow": 8}  # learned tokens before the text
FINE = (
    "stable-diffusion",
    "stable-diffusion-xl",
    "kolors",
    "sana",
    "hunyuan-image",
)  # a cell of the grid is one of the latent
TEMPLATES = (
    "z-image",
    "qwen-image",
    "flux-2",
    "flux-2-klein",
    "sana",
    "lumina-2",
    "longcat-image",
    "ovis-image",
    "hunyuan-image",
)
NEGATIVES = dict.fromkeys(MAKERS, NEGATIVE) | {"flux-2-klein": ""}  # Klein's is always the empty one
del NEGATIVES["flux-2"]  # has none: guidance is a number that the model was taught
every = pytest.mark.parametrize("name", families(QUICK))


def cross(trace):
    return [name for name, site in trace.sites.items() if site.kind == "cross"]


def branches(name):
    return ["cond", "uncond"] if name in NEGATIVES else ["cond"]


def masses(trace, branch, step=0):
    """Of each site the text columns and the rest together: [head, y, x]."""
    for site in cross(trace):
        file = trace.files.step(step)
        found = file.read(f"{site}/{branch}").astype(np.float64).sum(1)
        rest = f"{site}/{branch}/rest"
        yield site, found + (file.read(rest) if rest in file.keys else 0)


@every
def test_the_picture_is_the_same_bit_for_bit(pipeline, name, tmp_path):
    plain = draw(pipeline, size=(32, 48), negative=NEGATIVE)[0]
    with record(pipeline, tmp_path / "run"):
        before = torch.get_rng_state()
        picture = draw(pipeline, size=(32, 48), negative=NEGATIVE)[0]
        assert torch.equal(torch.get_rng_state(), before)
    trace = open_trace(tmp_path / "run")
    assert np.array_equal(picture, plain) and np.array_equal(trace.image(), plain)
    assert np.asarray(plain).std() > 5 and trace.complete and not trace.verify()
    assert trace.prompt == PROMPT and trace.manifest.seed == 0
    assert trace.manifest.negative_prompt == NEGATIVES.get(name) and trace.branches == branches(name)
    assert trace.manifest.size == tuple(scaled(pipeline, (32, 48))) and trace.steps == [0, 1]
    assert trace.latent(0).shape[1:] == (16, 24)
    assert len(cross(trace)) == SITES[name][0]
    grid = (16, 24) if name in FINE else (8, 12)
    assert max(trace.sites[site].grid for site in cross(trace)) == grid
    for branch in trace.branches:
        for site, mass in masses(trace, branch):
            assert np.abs(mass - 1).max() < 1e-3, site
    assert trace.heat_map("cat").shape == grid and trace.heat_map("月亮").shape == grid
    assert np.array_equal(draw(pipeline, size=(32, 48), negative=NEGATIVE)[0], plain)


@every
def test_rest_is_what_the_keys_that_are_no_text_got(pipeline, name, tmp_path):
    """Added up key by key from an explicit softmax, where the recorder takes what the text columns leave."""
    sites = {n: site.module for n, site in family_of(pipeline).sites(pipeline).items() if site.kind == "cross"}
    calls = []
    with AttentionHook(sites, calls.append), record(pipeline, tmp_path / "run", dtype="float32", steps=0, pads=True):
        draw(pipeline, guidance=False, steps=1)
    trace = open_trace(tmp_path / "run")
    file = trace.files.step(0)
    assert {call.site for call in calls} == set(cross(trace))
    for call in calls:
        maps = file.read(f"{call.site}/cond")
        heads, columns, *grid = maps.shape
        cells = grid[0] * grid[1]
        scores = call.inputs.query.double() @ call.inputs.key.double().mT * call.inputs.scale
        if call.inputs.mask is not None:
            masked = call.inputs.mask.dtype == torch.bool
            scores = scores.masked_fill(~call.inputs.mask, -torch.inf) if masked else scores + call.inputs.mask
        whole = scores.softmax(-1)[0]
        first = call.shape[2] > cells and name in TEXT_FIRST
        start = REGISTERS.get(name, 0)
        queries = whole[:, start + columns : start + columns + cells] if first else whole[:, :cells]
        last = call.shape[2] > cells and not first
        text = queries[:, :, cells : cells + columns] if last else queries[:, :, start : start + columns]
        others = queries.sum(-1) - text.sum(-1)
        assert np.abs(maps.reshape(heads, columns, cells) - text.mT.numpy()).max() < 1e-5
        rest = f"{call.site}/cond/rest"
        found = file.read(rest).reshape(heads, cells) if rest in file.keys else 0.0
        assert np.abs(found - others.numpy()).max() < 1e-5


@every
def test_pads_are_kept_as_their_sum_unless_they_are_asked_for(pipeline, name, tmp_path):
    traces = {}
    for pads in (True, False):
        with record(pipeline, tmp_path / str(pads), dtype="float32", steps=0, pads=pads):
            draw(pipeline, negative=NEGATIVE, steps=1)
        traces[pads] = open_trace(tmp_path / str(pads))
        assert not traces[pads].verify()
    for branch in traces[True].branches:
        every, summed = (traces[pads].attention(branch=branch, grid="native") for pads in (True, False))
        kinds = next(iter(every.values())).kind.values
        assert (traces[False].manifest.branches[branch].pad_columns is not None) == ("pad" in kinds)
        for site, maps in every.items():
            kept = summed[site]
            assert np.array_equal(kept.sel(token=maps.token[kinds != "pad"]), maps.isel(token=kinds != "pad"))
            if "pad" in kinds:
                assert kept.token[-1] == -1 and kept.sizes["token"] == (kinds != "pad").sum() + 1
                total = maps.isel(token=kinds == "pad").astype(np.float64).sum("token")
                assert np.abs(kept.isel(token=-1) - total).max() < 1e-5


@pytest.mark.parametrize("name", families(QUICK, NEGATIVES))
def test_guidance_off_and_the_negative_prompt_is_never_taken_for_the_prompt(pipeline, name, tmp_path):
    """The maps of each branch are those of its own text, drawn alone from the same noise."""
    with record(pipeline, tmp_path / "both", dtype="float32", steps=0):
        draw(pipeline, negative=NEGATIVE)
    both = open_trace(tmp_path / "both")
    for branch, prompt in (("cond", PROMPT), ("uncond", NEGATIVES[name])):
        how = {"prompt": prompt}
        if name == "sana" and branch == "uncond":
            how["complex_human_instruction"] = []
        if name == "lumina-2" and branch == "uncond":  # whose prompt never comes without its template
            states, mask = pipeline._get_gemma_prompt_embeds(prompt, max_sequence_length=288)
            how = {"prompt": None, "prompt_embeds": states, "prompt_attention_mask": mask}
        plain = draw(pipeline, **how, guidance=False)[0]
        with record(pipeline, tmp_path / branch, dtype="float32", steps=0):
            assert np.array_equal(draw(pipeline, **how, guidance=False)[0], plain)
        alone = open_trace(tmp_path / branch)
        assert alone.branches == ["cond"] and alone.prompt == how["prompt"]
        assert how["prompt"] is None or [t.text for t in alone.tokens() if t.kind == "text"] == [
            t.text for t in both.tokens(branch) if t.kind == "text"
        ]
        for site in cross(alone):
            found = both.attention(branch=branch, sites=site, steps=0, grid="native")[site]
            truth = alone.attention(sites=site, steps=0, grid="native")[site]
            assert np.abs(found.values - truth.values).max() < 1e-5


@every
def test_batches_of_prompts_of_different_lengths(pipeline, name, tmp_path):
    prompts = [PROMPT, "the moon"]
    plain = draw(pipeline, list(prompts), negative=NEGATIVE)
    given = list(prompts)
    with record(pipeline, tmp_path / "run", dtype="float32"):
        pictures = draw(pipeline, given, negative=NEGATIVE)
    traces = open_collection(tmp_path / "run")
    assert [trace.prompt for trace in traces] == prompts
    for trace, picture, before in zip(traces, pictures, plain):
        assert np.array_equal(picture, before) and np.array_equal(trace.image(), before) and not trace.verify()
        assert trace.span("moon") == (trace.prompt.index("moon"), len(trace.prompt))
        for branch in trace.branches:
            assert all(np.abs(mass - 1).max() < 1e-4 for _, mass in masses(trace, branch))


@every
def test_several_pictures_of_one_prompt(pipeline, name, tmp_path):
    plain = draw(pipeline, num_images_per_prompt=2)
    with record(pipeline, tmp_path / "run"):
        pictures = draw(pipeline, num_images_per_prompt=2)
    traces = open_collection(tmp_path / "run")
    assert len(traces) == 2 and not np.array_equal(*plain)
    for trace, picture, before in zip(traces, pictures, plain):
        assert np.array_equal(picture, before) and np.array_equal(trace.image(), before)
        assert trace.prompt == PROMPT and trace.branches == branches(name)
    one, two = (trace.latent(1).values for trace in traces)
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("name", ["stable-diffusion-3", "sana", "hunyuan-dit", "lumina-2", "flux", "qwen-image"])
def test_several_pictures_of_several_prompts(pipeline, name, tmp_path):
    prompts = [PROMPT, "the moon"]
    plain = draw(pipeline, list(prompts), negative=NEGATIVE, num_images_per_prompt=2)
    with record(pipeline, tmp_path / "run", dtype="float32", steps=0):
        pictures = draw(pipeline, list(prompts), negative=NEGATIVE, num_images_per_prompt=2)
    traces = open_collection(tmp_path / "run")
    assert [trace.prompt for trace in traces] == [prompts[0], prompts[0], prompts[1], prompts[1]]
    for trace, picture, before in zip(traces, pictures, plain):
        assert np.array_equal(picture, before) and np.array_equal(trace.image(), before) and not trace.verify()
        assert not [token for token in trace.tokens() if token.kind == "text" and token.id is None]


@every
def test_a_prompt_that_equals_the_negative_one(pipeline, name, tmp_path):
    with record(pipeline, tmp_path / "run"):
        draw(pipeline, PROMPT if NEGATIVES.get(name) else "", negative=PROMPT)
    trace = open_trace(tmp_path / "run")
    assert trace.branches == branches(name) and not trace.verify()
    assert [line.evaluations for line in trace.files.lines.values()] == [1, 1]


# --- labels ---


def first_keys(pipeline, site, prompt):
    """Keys [key, head, feature] of the first call at a site, without guidance; the drawing ends there."""

    class Enough(Exception):
        pass

    calls = []

    def seen(call):
        calls.append(call)
        raise Enough

    with pytest.raises(Enough), AttentionHook({site: family_of(pipeline).sites(pipeline)[site].module}, seen):
        draw(pipeline, prompt, guidance=False, steps=1)
    return calls[0].inputs.key[0].transpose(0, 1)


def disturbing(encoder, position, sequence_first):
    """A hook on the encoder: something is added to what it says of one position."""

    def after(module, arguments, output):
        states = [output.get("last_hidden_state"), *(output.get("hidden_states") or ())]
        seen = set()
        for state in states:
            if state is not None and id(state) not in seen:
                seen.add(id(state))
                state = state.transpose(0, 1) if sequence_first else state
                state[:, position] += torch.linspace(-1, 1, state.shape[-1])
        return output

    return encoder.register_forward_hook(after)


ENCODERS = [(name, "text_encoder_2" if name == "flux" else "text_encoder") for name in MAKERS]


@pytest.mark.parametrize(
    ("name", "encoder"), [*ENCODERS, ("stable-diffusion-3", "text_encoder_3"), ("hunyuan-dit", "text_encoder_2")]
)
def test_a_column_bears_the_name_of_the_token_that_makes_its_key(name, encoder, tmp_path):
    # These mix the caption among itself before their first layer; without that each key is one token's.
    pipeline = made(name, **({"refiners": 0} if name in ("z-image", "lumina-2", "hunyuan-image") else {}))
    prompt = "一只 cat，moon"  # short: the denoiser begins anew for each token
    with record(pipeline, tmp_path / "run", steps=0):
        draw(pipeline, prompt, guidance=False, steps=1)
    trace = open_trace(tmp_path / "run")
    site = cross(trace)[0]
    family = family_of(pipeline)
    start = REGISTERS.get(name, 0)
    if family.name in ("stable-diffusion-3", "z-image", "ernie-image"):  # the image, 8 x 8, comes first
        start = 64
    if family.name == "hunyuan-image":  # 16 x 16
        start = 256
    before = first_keys(pipeline, site, prompt)
    words = [t for t in trace.tokens() if t.kind in ("text", "special") and t.column is not None]
    words = [token for token in words if encoder in token.encoders]
    assert {"cat", "moon"} <= {t.text for t in words} or {"cat", "n"} <= {t.text for t in words}
    for token in words:
        position = token.column if name in LEFT else token.position
        hook = disturbing(getattr(pipeline, encoder), position, family.sequence_first)
        try:
            after = first_keys(pipeline, site, prompt)
        finally:
            hook.remove()
        changed = (after - before).abs().amax((1, 2)) > 1e-6
        assert changed.nonzero()[:, 0].tolist() == [start + token.column], token


@every
def test_filling_and_specials_are_no_words(pipeline, name, tmp_path):
    with record(pipeline, tmp_path / "run", keep="mean"):
        draw(pipeline)
    trace = open_trace(tmp_path / "run")
    tokens = trace.tokens()
    assert all((token.span is None) or token.kind in ("text", "unknown") for token in tokens)
    assert "cat" in [token.text for token in tokens if token.kind == "text"]
    kinds = {token.kind for token in tokens}
    assert "template" in kinds if name in TEMPLATES else "special" in kinds
    columns = sorted(token.column for token in tokens if token.column is not None)
    assert columns == list(range(len(columns)))
    if name == "z-image":
        assert len(columns) % 32 == 0 and tokens[-1].kind == "pad"


@every
def test_a_long_prompt_of_hard_characters(pipeline, name, tmp_path):
    """Rare characters, emoji, full-width punctuation, repeated words, and an end that is cut off."""
    prompt = "龘𰻝，🦉 cat！猫 cat。" * 60
    with pytest.warns(PromptCut, match=r"longer than text_encoder\w* reads; cut: .*cat。$"):
        plain = draw_recorded(pipeline, tmp_path / "run", prompt)
    trace = open_trace(tmp_path / "run")
    assert np.array_equal(trace.image(), plain) and trace.verify() == [] and trace.prompt == prompt
    first, second = trace.heat_map("cat#1"), trace.heat_map("cat#2")
    assert first.max() > 0 and second.max() > 0 and not np.array_equal(first, second)
    assert trace.heat_map("龘#1").max() > 0 and trace.heat_map("𰻝#1").max() > 0
    with pytest.raises(ToushiError, match="it was cut from the prompt"):
        trace.heat_map("cat#120")


def draw_recorded(pipeline, folder, prompt):
    with record(pipeline, folder, keep="mean", steps=0):
        return draw(pipeline, prompt, steps=1, guidance=False)[0]


# --- what else may come ---


@pytest.mark.parametrize("name", ["flux", "z-image", "stable-diffusion-3"])
def test_many_keys_are_read_from_the_fused_kernel(pipeline, name, tmp_path):
    plain = draw(pipeline, size=(96, 96), steps=1)[0]
    with record(pipeline, tmp_path / "run", steps=0):
        picture = draw(pipeline, size=(96, 96), steps=1)[0]
    trace = open_trace(tmp_path / "run")
    assert np.array_equal(picture, plain) and trace.manifest.kernel == "flash-cpu"
    for branch in trace.branches:
        assert all(np.abs(mass - 1).max() < 1e-3 for _, mass in masses(trace, branch))


@every
def test_the_text_encoder_is_recorded(pipeline, name, tmp_path):
    with warnings.catch_warnings(record=True) as said, record(pipeline, tmp_path / "run", steps=0):
        draw(pipeline, negative=NEGATIVE)
    assert [str(one.message) for one in said if one.category is HiddenStatesOnly] == [
        f"{HIDDEN[name]} computes attention by eager, not by scaled_dot_product_attention: its hidden states are kept, its attention is not"
        for _ in range(name in HIDDEN)
    ]
    trace, layers = open_trace(tmp_path / "run"), SITES[name][2]
    for branch in trace.branches:
        states = trace.encoder_states(branch)
        assert states.shape[0] == layers + 1 and np.isfinite(states).all()
        texts = [str(text) for text in states["text"].values]
        own = [t for t in trace.tokens(branch) if t.kind != "pad" and family_of(pipeline).text_encoder in t.encoders]
        assert texts == [token.text for token in own]
        if name in HIDDEN:
            with pytest.raises(ToushiError, match="No attention"):
                trace.encoder_attention(0, branch)
            continue
        attention = trace.encoder_attention(layers - 1, branch)
        assert attention.shape[1] == attention.shape[2] == states.shape[1]
        masked = name not in ("flux", "cogview-4")  # whose encoders look at the padding, too, which is not kept
        assert (np.abs(attention.sum("token") - 1).max() < 1e-5) == masked and attention.sum("token").max() < 1 + 1e-5
        causal = np.abs(np.triu(attention.values[0], 1)).max() == 0
        assert causal == (name not in ("pixart", "hunyuan-dit", "flux", "chroma", "auraflow"))


# --- coverage ---


@contextmanager
def softmaxes(pipeline):
    """The modules, by name, in which a softmax over keys is taken: found without knowing any of them."""
    names = {module: name for name, module in named_modules(pipeline)}
    running, found = [], set()

    def counting(function):
        def softmax(*arguments, **named):
            if running:
                found.add(running[-1])
            return function(*arguments, **named)

        return softmax

    def enter(module, arguments):
        running.append(names.get(module, ""))

    def leave(module, arguments, output):
        running.pop()

    hooks = [
        torch.nn.modules.module.register_module_forward_pre_hook(enter),
        torch.nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for home, name in ((F, "scaled_dot_product_attention"), (F, "softmax"), (torch, "softmax")):
            patch.setattr(home, name, counting(getattr(home, name)))
        patch.setattr(torch.Tensor, "softmax", counting(torch.Tensor.softmax))
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()


@every
def test_every_softmax_is_recorded_or_named_with_the_reason(pipeline, name, tmp_path):
    with softmaxes(pipeline) as attending:
        draw(pipeline, negative=NEGATIVE, steps=1)
    with record(pipeline, tmp_path / "run", sites="*", keep="mean"):
        draw(pipeline, negative=NEGATIVE, steps=1)
    trace = open_trace(tmp_path / "run")
    kinds = [site.kind for site in trace.sites.values()]
    assert tuple(map(kinds.count, ("cross", "self", "encoder"))) == SITES[name] and not trace.verify()
    named = trace.manifest.not_recorded
    for site in attending:
        recorded = any(site == one or site.startswith(f"{one}.") for one in trace.sites)
        assert recorded or any(fnmatch.fnmatchcase(site, glob) for glob in named), site
    assert len(attending) >= sum(SITES[name]) and all(named.values())
    for site in trace.sites:  # nothing is called a site that does not attend
        assert any(one == site or one.startswith(f"{site}.") for one in attending), site


def test_what_cannot_be_recorded_is_refused_with_the_reason(tmp_path):
    pipeline = made("sana")
    reasons = family_of(pipeline).not_recorded(pipeline)
    assert "linear attention" in reasons["transformer.*.attn1"]
    family, other = family_of(made(next(iter(HIDDEN)))), made(next(iter(HIDDEN)))
    assert "hidden states" in family.not_recorded(other)[f"{family.layers}.*.{family.layer_attention}"]
    with pytest.raises(ToushiError, match=r"attn1' cannot be recorded: linear attention"):
        record(pipeline, tmp_path / "run", sites="transformer.transformer_blocks.0.attn1")


@pytest.mark.parametrize("name", ["stable-diffusion", "flux", "z-image"])
def test_embeddings_made_inside_the_recording_keep_their_words(pipeline, name, tmp_path):
    with record(pipeline, tmp_path / "run"):
        if name == "flux":
            states, pooled, _ = pipeline.encode_prompt(PROMPT, max_sequence_length=48)
            draw(pipeline, None, guidance=False, prompt_embeds=states, pooled_prompt_embeds=pooled)
        else:
            more = {"num_images_per_prompt": 1} if name == "stable-diffusion" else {}
            states, negative = pipeline.encode_prompt(
                prompt=PROMPT, device="cpu", do_classifier_free_guidance=True, negative_prompt=NEGATIVE, **more
            )
            draw(pipeline, None, prompt_embeds=states, negative_prompt_embeds=negative)
    trace = open_trace(tmp_path / "run")
    assert trace.prompt == PROMPT and trace.heat_map("cat").shape and not trace.verify()


@pytest.mark.parametrize("name", ["stable-diffusion", "z-image"])
def test_embeddings_from_elsewhere_have_numbers_for_words(pipeline, name, tmp_path):
    more = {"num_images_per_prompt": 1} if name == "stable-diffusion" else {}
    states, negative = pipeline.encode_prompt(
        prompt=PROMPT, device="cpu", do_classifier_free_guidance=True, negative_prompt=NEGATIVE, **more
    )
    with record(pipeline, tmp_path / "run"):
        draw(pipeline, None, prompt_embeds=states, negative_prompt_embeds=negative)
    trace = open_trace(tmp_path / "run")
    assert trace.prompt is None and [t.text for t in trace.tokens()][:2] == ["#0", "#1"] and not trace.verify()


def test_embeddings_beside_an_encoded_negative_prompt_leave_no_empty_states(tmp_path):
    pipeline = made("stable-diffusion")
    how = {"device": "cpu", "do_classifier_free_guidance": False, "num_images_per_prompt": 1}
    states, _ = pipeline.encode_prompt(prompt=PROMPT, **how)
    with record(pipeline, tmp_path / "run"):
        draw(pipeline, None, prompt_embeds=states)  # the negative prompt "" is encoded inside
    trace = open_trace(tmp_path / "run")
    assert not trace.verify() and trace.encoder_states("uncond").size
    with pytest.raises(NotRecorded):
        trace.encoder_states("cond")


@pytest.mark.parametrize("name", ["stable-diffusion-xl"])
def test_a_negative_prompt_that_was_never_encoded(pipeline, name, tmp_path):
    with record(pipeline, tmp_path / "run"):
        draw(pipeline)
    trace = open_trace(tmp_path / "run")
    assert trace.branches == ["cond", "uncond"] and trace.manifest.negative_prompt is None


@pytest.mark.parametrize("name", ["z-image"])
def test_guidance_that_stops_part_way(pipeline, name, tmp_path):
    plain = draw(pipeline, steps=4, negative=NEGATIVE, cfg_truncation=0.5)[0]
    with record(pipeline, tmp_path / "run"):
        picture = draw(pipeline, steps=4, negative=NEGATIVE, cfg_truncation=0.5)[0]
    trace = open_trace(tmp_path / "run")
    assert np.array_equal(picture, plain) and not trace.verify()
    site = cross(trace)[0]
    there = [f"{site}/uncond" in trace.files.step(step).keys for step in trace.steps]
    assert there[0] and not there[-1]


@pytest.mark.parametrize("name", ["stable-diffusion"])
def test_a_callback_that_fails_leaves_everything_as_it_was(pipeline, name, tmp_path):
    def fail(*arguments):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), record(pipeline, tmp_path / "run"):
        draw(pipeline, callback_on_step_end=fail)
    trace = open_trace(tmp_path / "run")
    assert trace.steps == [0] and not trace.complete


# --- refusals ---


@every
def test_attention_that_cannot_be_read_is_refused_before_anything_is_written(name, tmp_path):
    """Each site for itself: one of them that runs elsewhere is enough."""
    pipeline = made(name)
    site, (module, _) = next(item for item in family_of(pipeline).sites(pipeline).items() if item[1].kind == "cross")
    usual = module.processor
    elsewhere = [XFormersAttnProcessor(), SlicedAttnProcessor(2), SanaLinearAttnProcessor2_0(), AttnProcessor()]
    for processor in elsewhere:
        module.processor = processor
        with pytest.raises(UnreadableAttention) as refused:
            record(pipeline, tmp_path / "run").__enter__()
        said = str(refused.value)
        assert (
            site in said and type(processor).__name__ in said and f"set_attn_processor({type(usual).__name__}" in said
        )
    module.processor = usual
    for backend in ("xformers", "sage", "flash", "flex", "_native_npu") if hasattr(usual, "_attention_backend") else ():
        usual._attention_backend = backend
        with pytest.raises(UnreadableAttention, match=rf"'{backend}'.*set_attention_backend\(\"native\"\)"):
            record(pipeline, tmp_path / "run").__enter__()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [SlicedAttnProcessor, AttnProcessor, XFormersAttnProcessor])
def test_attention_that_cannot_be_read_is_switched_on_request(kind, tmp_path):
    pipeline = made("stable-diffusion")
    plain = draw(pipeline, size=(32, 48))
    modules = [
        site.module for site in family_of(pipeline).select_sites(pipeline, None).values() if site.kind == "cross"
    ]
    processors = [kind(2) if kind is SlicedAttnProcessor else kind() for _ in modules]
    for module, processor in zip(modules, processors):
        module.processor = processor
    with pytest.warns(AttentionSwitched, match=f"4 attention modules.*in place of {kind.__name__}"):
        recording = record(pipeline, tmp_path / "run", native_attention=True)
        with recording:
            picture = draw(pipeline, size=(32, 48))
    assert np.array_equal(picture, plain)  # that of PyTorch's attention, with which it was loaded
    assert all(module.processor is processor for module, processor in zip(modules, processors))
    trace = open_trace(tmp_path / "run")
    assert set(trace.manifest.as_dict()["attention_switched"]) == set(cross(trace))


def test_a_backend_is_switched_on_request_and_comes_back(tmp_path):
    pipeline = made("z-image")
    modules = [
        site.module for site in family_of(pipeline).select_sites(pipeline, None).values() if site.kind == "cross"
    ]
    plain = draw(pipeline)
    for module in modules:
        module.processor._attention_backend = "sage"
    with (
        pytest.warns(AttentionSwitched, match="in place of sage"),
        pytest.raises(RuntimeError, match="on purpose"),
        record(pipeline, tmp_path / "run", native_attention=True),
    ):
        assert np.array_equal(draw(pipeline), plain)
        raise RuntimeError("on purpose")
    assert all(module.processor._attention_backend == "sage" for module in modules)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for module in modules:
            module.processor._attention_backend = None
        with record(pipeline, tmp_path / "again", native_attention=True):  # nothing to switch, nothing to say
            draw(pipeline)


def test_a_pipeline_of_no_known_family_is_refused(tmp_path):
    import diffusers

    parts = {name: part for name, part in made("stable-diffusion").components.items() if "text" not in name}
    del parts["tokenizer"]
    other = diffusers.StableDiffusionImageVariationPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(
        UnknownFamily, match=r"StableDiffusionImageVariationPipeline.*no family serves it.*encode_prompt"
    ):
        record(other, tmp_path / "run")
    with pytest.raises(UnknownFamily, match="not their transformer alone"):
        record(made("flux").transformer, tmp_path / "run")
