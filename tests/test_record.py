"""The laws of recording, on a tiny model: nothing changes, nothing is mixed up, nothing is missed in silence."""

import json
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hooks.attention import _stack
from probe.errors import ToushiError
from probe.models.families import UnknownFamily, UnknownSite, family_of
from probe.models.mini_unet import MiniUNet, PromptCut
from probe.models.preview import preview
from probe.record import _recorded, record
from probe.recording.branches import BranchMismatch, places
from probe.recording.forecast import OverBudget, forecast
from probe.recording.policy import Policy
from probe.recording.run import Unrecordable, grid_of
from probe.text.alignment import UnknownWord
from probe.trace.reader import NoTrace, open_collection, open_trace
from probe.trace.writer import TraceWriter, WriteFailed

SDPA = F.scaled_dot_product_attention
PROMPT = "左边是猫，右边是月亮，夜晚"
LONG = "左边是猫头鹰，右边是月亮，" * 12


@pytest.fixture(scope="module")
def shared():
    return MiniUNet.tiny()


@pytest.fixture
def model(shared):
    """Fresh as from a shelf, and left as it was found."""
    shared.embedding_cache.clear()
    yield shared
    assert F.scaled_dot_product_attention is SDPA and not _stack() and not _recorded
    for module in shared.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert "forward" not in vars(module)
    assert not {"sample", "denoise", "encode_prompt"} & set(vars(shared))
    assert not {"step", "set_timesteps"} & set(vars(shared.scheduler))


def draw(model, prompt=PROMPT, *, steps=3, **named):
    return model.sample(prompt, steps=steps, **named)


def recorded(model, folder, prompt=PROMPT, *, steps=3, keeping=None, **named):
    with record(model, folder, **(keeping or {})):
        picture = draw(model, prompt, steps=steps, **named)
    return picture, open_trace(folder)


def same(one, two):
    return np.array_equal(one, two, equal_nan=True)  # NaN where a site has fewer heads than another


def explicit(model, branch_text, latents, time, site):
    """Attention of one site from its own weights, in fp64: [head, token, cell]."""
    kept = {}
    module = model.get_submodule(site)

    def hook(module, arguments):
        kept["x"], (kept["k"], _), kept["mask"] = arguments

    handle = module.register_forward_pre_hook(hook)
    model.denoise(latents, time, branch_text)
    handle.remove()
    q = module.to_q(kept["x"]).unflatten(-1, (module.heads, -1)).transpose(1, 2).double()
    scores = q @ kept["k"].double().mT * q.shape[-1] ** -0.5
    return scores.masked_fill(~kept["mask"], -torch.inf).softmax(-1).mT[0]


# --- nothing changes ---


@pytest.mark.parametrize("keep", ["heads", "mean", "sum"])
@pytest.mark.parametrize("how", [{}, {"guidance": 1.0}, {"sampler": "heun"}, {"size": (48, 80)}, {"negative": "夜晚"}])
def test_the_picture_is_the_same_bit_for_bit(model, tmp_path, keep, how):
    plain = draw(model, **how)
    generator = torch.get_rng_state()
    picture, trace = recorded(model, tmp_path / "run", keeping={"keep": keep}, **how)
    assert np.array_equal(picture, plain)
    assert torch.equal(torch.get_rng_state(), generator)
    assert np.array_equal(trace.image(), plain)
    assert np.array_equal(draw(model, **how), plain)
    assert trace.complete and not trace.verify()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_same_too(tmp_path, dtype):
    model = MiniUNet.tiny().to(dtype)
    plain = draw(model)
    picture, trace = recorded(model, tmp_path / "run")
    assert np.array_equal(picture, plain) and not trace.verify()
    assert trace.manifest["dtype"] == str(dtype).removeprefix("torch.")


def test_latents_and_noise_are_the_same(model, tmp_path):
    after = [[], []]
    draw(model, callback=lambda index, latents: after[0].append(latents))
    with record(model, tmp_path / "run"):
        draw(model, callback=lambda index, latents: after[1].append(latents))
    trace = open_trace(tmp_path / "run")
    for index, (one, two) in enumerate(zip(*after)):
        assert torch.equal(one, two)
        assert np.array_equal(trace.latent(index).values, two[0].numpy())


def test_an_encoded_prompt_from_the_cache_is_recorded_all_the_same(model, tmp_path):
    plain = draw(model)
    cache = dict(model.embedding_cache)
    assert cache
    picture, trace = recorded(model, tmp_path / "run")
    assert np.array_equal(picture, plain)
    assert trace.encoder_states().shape[0] == 13
    for key, text in cache.items():
        assert model.embedding_cache[key] is text


def test_a_compiled_model_is_covered(tmp_path):
    model = MiniUNet.tiny()
    plain = draw(model)
    model.unet = torch.compile(model.unet, backend="eager")
    model.encoder = torch.compile(model.encoder, backend="eager")
    draw(model)
    picture, trace = recorded(model, tmp_path / "run")
    assert np.array_equal(picture, plain) and not trace.verify()
    assert "unet.middle.cross_attention" in trace.sites and trace.encoder_attention(0).size


# --- what is recorded is what happened ---


def test_maps_are_the_models_attention(model, tmp_path):
    time = 0.7
    latents = model.noise(1, 64, 64, seed=3)
    with record(model, tmp_path / "run", dtype="float32"):
        model.denoise(latents, time, PROMPT)
    trace = open_trace(tmp_path / "run")
    assert trace.times == [time] and trace.complete
    for site, found in trace.attention(grid="native").items():
        truth = explicit(model, PROMPT, latents, time, site)
        assert np.abs(found.values[0].reshape(truth.shape) - truth.numpy()).max() < 2e-6


def test_text_columns_sum_to_one(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run")
    for branch in trace.branches:
        for found in trace.attention(branch=branch, grid="native").values():
            assert np.abs(found.sum("token") - 1).max() < 1e-3
        assert abs(float(trace.mass(branch).sum()) + trace.mass(branch).attrs["rest"] - 1) < 1e-3


def test_every_site_and_step_is_there(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", steps=4)
    cross = {name: site for name, site in trace.sites.items() if site["kind"] == "cross"}
    assert [tuple(site["grid"]) for site in cross.values()] == [(16, 16), (8, 8), (4, 4), (8, 8), (16, 16)]
    assert list(cross) == [
        "unet.down.0.cross_attention",
        "unet.down.1.cross_attention",
        "unet.middle.cross_attention",
        "unet.up.0.cross_attention",
        "unet.up.1.cross_attention",
    ]
    assert trace.steps == [0, 1, 2, 3]
    assert trace.times == model.scheduler.times[:-1].tolist()
    assert trace.preview(0).shape == (64, 64, 3)


def test_conditional_and_unconditional_are_told_apart(model, tmp_path):
    """The maps of each branch are those of its own text, evaluated alone at the same latents."""
    negative = "一只猫头鹰"
    _, trace = recorded(model, tmp_path / "run", negative=negative, keeping={"dtype": "float32"})
    assert [token.text for token in trace.tokens("uncond")][1:-1] == [
        token.text for token in model.tokenizer.encode(negative).tokens
    ][1:-1]
    assert trace.manifest["prompt"] == PROMPT and trace.manifest["negative_prompt"] == negative
    latents = model.noise(1, 64, 64, seed=0)
    for branch, text in (("cond", PROMPT), ("uncond", negative)):
        for site, found in trace.attention(branch=branch, steps=0, grid="native").items():
            truth = explicit(model, text, latents, 1.0, site)
            assert np.abs(found.values[0].reshape(truth.shape) - truth.numpy()).max() < 1e-5


def test_without_guidance_there_is_no_second_branch(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", guidance=1.0)
    assert trace.branches == ["cond"] and trace.manifest["negative_prompt"] is None


@pytest.mark.parametrize("prompt", ["", "𰻝龘", "🦉 owl，猫", "猫" * 20, "  ", "a red circle"])
def test_hard_prompts(model, tmp_path, prompt):
    plain = draw(model, prompt)
    picture, trace = recorded(model, tmp_path / "run", prompt)
    assert np.array_equal(picture, plain) and not trace.verify()
    assert trace.prompt == prompt and len(trace.tokens()) == len(model.tokenizer.encode(prompt).ids)


def test_a_prompt_that_equals_the_negative_one(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", PROMPT, negative=PROMPT)
    assert trace.branches == ["cond", "uncond"]
    a, b = (trace.attention(branch=branch) for branch in trace.branches)
    assert np.allclose(a, b, atol=1e-6, equal_nan=True)


def test_a_prompt_that_is_cut(model, tmp_path):
    with pytest.warns(PromptCut, match="cut: .*猫头鹰"), record(model, tmp_path / "run"):
        draw(model, LONG)
    trace = open_trace(tmp_path / "run")
    assert 74 <= len(trace.tokens()) <= 77 and trace.prompt == LONG and not trace.verify()


def test_of_two_evaluations_in_a_step_the_first_is_kept(model, tmp_path):
    _, euler = recorded(model, tmp_path / "euler", steps=2)
    _, heun = recorded(model, tmp_path / "heun", steps=2, sampler="heun")
    assert heun.manifest["evaluations"] == 2 and heun.manifest["kept_evaluation"] == "first"
    assert euler.manifest["evaluations"] == 1
    assert [line["evaluations"] for line in heun.files.lines.values()] == [2, 1]
    # Both begin at the same noise, so only what came first is the same.
    assert same(euler.attention(steps=0), heun.attention(steps=0))
    assert not same(euler.attention(steps=1), heun.attention(steps=1))
    assert np.array_equal(euler.preview(0), heun.preview(0))


@pytest.mark.parametrize("size", [(32, 96), (96, 32), (48, 80), (16, 16), (16, 112)])
def test_pictures_that_are_not_square(model, tmp_path, size):
    picture, trace = recorded(model, tmp_path / "run", size=size)
    assert (picture.height, picture.width) == size == tuple(trace.manifest["size"])
    grids = [site["grid"] for site in trace.sites.values() if site["kind"] == "cross"]
    assert grids[0] == [size[0] // 4, size[1] // 4] and grids[2] == [size[0] // 16, size[1] // 16]
    assert trace.preview(0).shape == (*size, 3) and not trace.verify()


def test_the_encoders_layers_are_recorded(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", negative="夜晚")
    text = model.encode_text([PROMPT])
    states = trace.encoder_states()
    assert states.shape == (13, len(text.encodings[0].ids), 32)
    ids = torch.tensor([text.encodings[0].ids])
    assert np.array_equal(states[0], model.encoder.embed(ids)[0])
    torch.testing.assert_close(model.encoder.norm(torch.from_numpy(states.values[-1])), text.states[0])
    for layer in (0, 11):
        attention = trace.encoder_attention(layer, "uncond")
        length = len(model.tokenizer.encode("夜晚").ids)
        assert attention.shape == (2, length, length)
        assert np.abs(attention.sum("token") - 1).max() < 1e-5
    layer = model.encoder.layers[4].attention
    x = model.encoder.layers[4].attention_norm(torch.from_numpy(states.values[4]))
    q, k, _ = layer.to_qkv(x).unflatten(-1, (3, 2, -1)).permute(1, 2, 0, 3).double()
    truth = (q @ k.mT * 16**-0.5).softmax(-1)
    assert np.abs(trace.encoder_attention(4).values - truth.numpy()).max() < 2e-6


def test_the_manifest_says_how_to_do_it_again(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", seed=5, guidance=2.5, sampler="heun")
    manifest = trace.manifest
    assert (manifest["seed"], manifest["guidance"], manifest["sampler"]) == (5, 2.5, "heun")
    assert manifest["size"] == [64, 64] and manifest["device"] == "cpu" and manifest["dtype"] == "float32"
    assert manifest["kernel"] == "flash-cpu" and manifest["threads"] == torch.get_num_threads()
    assert manifest["model"]["name"] == "mini-unet" and manifest["versions"]["torch"] == torch.__version__
    assert manifest["edits"] == [] and isinstance(manifest["argv"], list) and "git" in manifest
    assert trace.span("猫") == (3, 4)


# --- what to keep ---


def test_the_policies_agree(model, tmp_path):
    traces = {keep: recorded(model, tmp_path / keep, keeping={"keep": keep})[1] for keep in ("heads", "mean", "sum")}
    heads = traces["heads"].attention("猫", grid="native")
    mean = traces["mean"].attention("猫", grid="native")
    summed = traces["sum"].attention("猫", grid="native")
    for site in heads:
        assert np.abs(heads[site].mean("head") - mean[site]).max() < 1e-3
        assert np.abs(mean[site].mean("step") - summed[site][0]).max() < 1e-3
    assert np.abs(traces["heads"].heat_map("猫") - traces["sum"].heat_map("猫")).max() < 1e-3


@pytest.mark.parametrize(
    "steps, expected",
    [(0, [0]), (-1, [4]), ([1, 3], [1, 3]), (slice(None, None, 2), [0, 2, 4]), (range(1, 3), [1, 2])],
)
def test_some_steps(model, tmp_path, steps, expected):
    _, whole = recorded(model, tmp_path / "whole", steps=5)
    _, trace = recorded(model, tmp_path / "run", steps=5, keeping={"steps": steps})
    assert trace.steps == expected and trace.complete and not trace.verify()
    assert same(trace.attention(), whole.attention(steps=expected))


def test_some_words(model, tmp_path):
    _, whole = recorded(model, tmp_path / "whole")
    _, trace = recorded(model, tmp_path / "run", keeping={"words": ["猫", "夜晚"]})
    assert same(trace.attention("夜晚"), whole.attention("夜晚"))
    assert same(trace.attention(branch="uncond"), whole.attention(branch="uncond"))
    assert trace.attention().sizes["token"] == len(trace.manifest["branches"]["cond"]["columns"]) < 8
    assert not trace.verify()
    with pytest.raises(ToushiError):
        trace.attention("月亮")


def test_words_may_be_given_alone_or_by_span(model, tmp_path):
    for number, words in enumerate(["猫", (3, 4), [(3, 4)]]):
        _, trace = recorded(model, tmp_path / str(number), keeping={"words": words})
        assert [trace.tokens()[c].text for c in trace.manifest["branches"]["cond"]["columns"]] == ["猫"]


@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_one_branch(model, tmp_path, branch):
    _, whole = recorded(model, tmp_path / "whole")
    _, trace = recorded(model, tmp_path / "run", keeping={"branches": branch})
    assert trace.branches == [branch] and not trace.verify()
    assert same(trace.attention(branch=branch), whole.attention(branch=branch))


def test_some_sites(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", keeping={"sites": ["unet.up.*.cross_attention"]})
    assert list(trace.sites) == ["unet.up.0.cross_attention", "unet.up.1.cross_attention"]
    with pytest.raises(ToushiError):
        trace.encoder_states()


def test_image_self_attention_where_it_is_named(model, tmp_path):
    _, trace = recorded(model, tmp_path / "run", keeping={"sites": "unet.middle.*_attention"})
    assert trace.sites["unet.middle.self_attention"]["kind"] == "self"
    found = trace.attention(sites="unet.middle.self_attention", grid="native")["unet.middle.self_attention"]
    assert found.sizes["key"] == 16 and np.abs(found.sum("key") - 1).max() < 1e-3
    assert not trace.verify()


def test_some_layers_of_the_encoder(model, tmp_path):
    _, trace = recorded(
        model, tmp_path / "run", keeping={"sites": ["encoder.layers.3.attention", "unet.middle.cross*"]}
    )
    assert list(trace.encoder_states().layer) == [0, 4] and trace.encoder_attention(3).size


# --- many pictures ---


def test_a_batch_of_prompts_of_different_lengths(model, tmp_path):
    prompts = ["一只猫头鹰", PROMPT, "一只猫头鹰"]
    plain = draw(model, prompts)
    with record(model, tmp_path / "run") as recording:
        pictures = draw(model, prompts)
    assert all(map(np.array_equal, pictures, plain))
    assert [path.name for path in recording.traces] == ["000", "001", "002"]
    traces = open_collection(tmp_path / "run")
    latents = model.noise(1, 64, 64, seed=0)
    for trace, prompt, picture in zip(traces, prompts, plain):
        assert trace.prompt == prompt and not trace.verify() and np.array_equal(trace.image(), picture)
        assert len(trace.tokens()) == len(model.tokenizer.encode(prompt).ids) == trace.encoder_states().sizes["token"]
        site = "unet.up.1.cross_attention"
        found = trace.attention(sites=site, steps=0, grid="native")[site].values[0]
        truth = explicit(model, prompt, latents, 1.0, site).reshape(found.shape)
        assert np.abs(found - truth.numpy()).max() < 1e-3
    with pytest.raises(NoTrace, match="collection"):
        open_trace(tmp_path / "run")


def test_several_runs_in_one_recording(model, tmp_path):
    with record(model, tmp_path / "run") as recording:
        draw(model, "一只猫头鹰")
        assert recording.traces == [tmp_path / "run"] and open_trace(tmp_path / "run").complete
        draw(model, ["夜晚", PROMPT])
        model.denoise(model.noise(1, 64, 64, 0), 0.5, PROMPT)
    traces = open_collection(tmp_path / "run")
    assert [trace.folder for trace in traces] == recording.traces
    assert [trace.prompt for trace in traces] == ["一只猫头鹰", "夜晚", PROMPT, PROMPT]
    assert not any(trace.verify() for trace in traces)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"000", "001", "002", "003", "collection.json"}


def test_scenes_noised_to_several_times_in_one_batch(model, tmp_path):
    times = torch.tensor([0.9, 0.5, 0.1])
    latents = torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = model.denoise(latents, times, PROMPT)
    with record(model, tmp_path / "run", sites="unet.*cross_attention"):
        assert torch.equal(model.denoise(latents, times, PROMPT), plain)
    traces = open_collection(tmp_path / "run")
    assert [trace.times for trace in traces] == [[pytest.approx(time)] for time in times.tolist()]
    for trace, latent in zip(traces, latents):
        assert np.array_equal(trace.latent(0).values, latent) and not trace.verify()
    assert not same(traces[0].attention(), traces[1].attention())


def test_recording_twice_and_overwriting(model, tmp_path):
    first = recorded(model, tmp_path / "run")[1].attention()
    with pytest.raises(WriteFailed, match="overwrite"), record(model, tmp_path / "run"):
        pass
    draw(model, ["a", "b"])
    with record(model, tmp_path / "run", overwrite=True):
        draw(model, ["a", "b"])
    assert len(open_collection(tmp_path / "run")) == 2
    with record(model, tmp_path / "run", overwrite=True):
        draw(model)
    assert same(open_trace(tmp_path / "run").attention(), first)
    assert not (tmp_path / "run/000").exists()


def test_two_models_recorded_at_once(model, tmp_path):
    other = MiniUNet.tiny(seed=1)
    alone = [recorded(one, tmp_path / f"alone{i}")[1].attention() for i, one in enumerate((model, other))]
    with record(model, tmp_path / "a"), record(other, tmp_path / "b"):
        draw(other)
        draw(model)
    for name, expected in zip("ab", alone):
        trace = open_trace(tmp_path / name)
        assert same(trace.attention(), expected) and not trace.verify()


def test_two_models_in_two_threads(model, tmp_path):
    models = [model, MiniUNet.tiny(seed=1)]
    alone = [recorded(one, tmp_path / f"alone{i}")[1].attention() for i, one in enumerate(models)]
    failures = []

    def work(number):
        try:
            recorded(models[number], tmp_path / f"threads{number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for number, expected in enumerate(alone):
        assert np.allclose(open_trace(tmp_path / f"threads{number}").attention(), expected, atol=1e-3, equal_nan=True)


def test_one_model_is_recorded_once_at_a_time(model, tmp_path):
    with record(model, tmp_path / "a"):
        with pytest.raises(ToushiError, match="being recorded"), record(model, tmp_path / "b"):
            pass
        draw(model)
    assert open_trace(tmp_path / "a").complete


def test_one_model_run_from_two_threads_is_refused(model, tmp_path):
    failures = []

    def evaluate():
        try:
            model.unet(model.noise(1, 64, 64, 0), torch.ones(1), model.encode_text([PROMPT]))
        except ToushiError as error:
            failures.append(error)

    def callback(index, latents):
        thread = threading.Thread(target=evaluate)
        thread.start()
        thread.join()

    with record(model, tmp_path / "run"):
        draw(model, callback=callback)
    assert len(failures) == 3 and "thread" in str(failures[0])
    assert not open_trace(tmp_path / "run").verify()


def test_a_loop_of_ones_own(model, tmp_path):
    """Without `sample`: encode, set_timesteps, step."""
    with record(model, tmp_path / "run"):
        text, _ = model.encode_prompt([PROMPT], None)
        model.scheduler.set_timesteps(3)
        latents = model.noise(1, 64, 64, 0)
        for index in range(3):
            latents = model.scheduler.step(lambda x, time: model.unet(x, torch.full((1,), time), text), latents, index)
    trace = open_trace(tmp_path / "run")
    assert trace.complete and trace.steps == [0, 1, 2] and trace.image() is None and not trace.verify()


def test_what_runs_outside_of_the_recording_is_not_in_it(model, tmp_path):
    recorded(model, tmp_path / "run")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir())
    draw(model, "夜晚")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()) == before


def test_an_evaluation_between_two_steps_is_no_part_of_the_run(model, tmp_path):
    def callback(index, latents):
        model.denoise(latents, 0.3, "夜晚")

    plain = draw(model)
    _, alone = recorded(model, tmp_path / "alone")
    picture, trace = recorded(model, tmp_path / "run", callback=callback)
    assert np.array_equal(picture, plain) and same(trace.attention(), alone.attention())
    assert [line["evaluations"] for line in trace.files.lines.values()] == [1, 1, 1] and trace.prompt == PROMPT


def test_latents_that_are_changed_afterwards(model, tmp_path):
    latents = model.noise(1, 64, 64, 0)
    before = latents.clone()
    with record(model, tmp_path / "run"):
        model.denoise(latents, 0.5, PROMPT)
        latents.zero_()
    assert np.array_equal(open_trace(tmp_path / "run").latent(0).values, before[0])


# --- trouble ---


@pytest.mark.parametrize("trouble", [ValueError("inside"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [0, 2])
def test_a_run_that_is_broken_off(model, tmp_path, trouble, at):
    plain = draw(model)

    def callback(index, latents):
        if index == at:
            raise trouble

    with pytest.raises(type(trouble)), record(model, tmp_path / "run"):
        draw(model, steps=5, callback=callback)
    trace = open_trace(tmp_path / "run")
    assert not trace.complete and trace.steps == list(range(at + 1)) and trace.image() is None
    assert trace.verify() == [f"The run did not end: {at + 1} of 5 steps are finished."]
    assert np.array_equal(draw(model), plain)


def test_an_exception_inside_the_denoiser(model, tmp_path, monkeypatch):
    plain, calls = draw(model), []

    def forward(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return type(model.unet.middle).forward(model.unet.middle, *arguments)

    monkeypatch.setattr(model.unet.middle, "forward", forward)
    with pytest.raises(RuntimeError, match="out of memory"), record(model, tmp_path / "run"):
        draw(model, steps=5)
    monkeypatch.undo()
    vars(model.unet.middle).pop("forward", None)
    trace = open_trace(tmp_path / "run")
    assert trace.steps == [0, 1] and not trace.complete
    assert np.array_equal(draw(model), plain)


def test_a_run_after_one_that_failed_in_the_same_recording(model, tmp_path):
    def fail(index, latents):
        raise ValueError

    with record(model, tmp_path / "run"):
        with pytest.raises(ValueError):
            draw(model, callback=fail)
        draw(model)
    first, second = open_collection(tmp_path / "run")
    assert not first.complete and second.complete and not second.verify()


def test_the_disk_gives_out(model, tmp_path, monkeypatch):
    store = TraceWriter._stored

    def full(self, name, save):
        if name == "step_0001.safetensors":
            raise OSError(28, "No space left on device")
        return store(self, name, save)

    monkeypatch.setattr(TraceWriter, "_stored", full)
    with pytest.raises(WriteFailed, match="No space left"), record(model, tmp_path / "run"):
        draw(model, steps=8)
    trace = open_trace(tmp_path / "run")
    assert trace.steps == [0] and not trace.complete


def test_a_site_that_does_not_exist(model, tmp_path):
    with pytest.raises(UnknownSite, match=r"unet\.down\.0\.cross_attention"):
        record(model, tmp_path / "run", sites="unet.down.0.cros_attention")
    with pytest.raises(UnknownSite):
        record(model, tmp_path / "run", sites=[])
    assert not (tmp_path / "run").exists()


def test_a_word_that_is_not_in_the_prompt(model, tmp_path):
    with pytest.raises(UnknownWord, match="猫"), record(model, tmp_path / "run", words="猫头鹰"):
        draw(model)


@pytest.mark.parametrize(
    "wrong",
    [{"keep": "all"}, {"branches": "negative"}, {"dtype": "int8"}, {"words": []}, {"steps": []}, {"branches": []}],
)
def test_wrong_arguments(model, tmp_path, wrong):
    with pytest.raises(ToushiError):
        record(model, tmp_path / "run", **wrong)


def test_a_branch_that_the_run_does_not_have(model, tmp_path):
    with pytest.raises(Unrecordable, match="uncond.*has cond"), record(model, tmp_path / "run", branches="uncond"):
        draw(model, guidance=1.0)


def test_a_step_that_the_run_does_not_have(model, tmp_path):
    with pytest.raises(ToushiError, match="no step 7"), record(model, tmp_path / "run", steps=7):
        draw(model, steps=3)


def test_a_model_of_no_family(tmp_path):
    with pytest.raises(UnknownFamily, match="mini-unet"):
        record(torch.nn.Linear(2, 2), tmp_path / "run")


def test_nothing_drawn_is_said(model, tmp_path):
    with pytest.raises(ToushiError, match="nothing was drawn"), record(model, tmp_path / "run"):
        pass


def test_a_folder_with_other_files_is_left_alone(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(WriteFailed), record(model, tmp_path, overwrite=True):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_queries_that_are_changed_in_place_are_refused(model, tmp_path, monkeypatch):
    import probe.models.unet as unet

    class Namespace:
        def __getattr__(self, name):
            return getattr(F, name)

        @staticmethod
        def scaled_dot_product_attention(q, k, v, attn_mask=None):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
            q.zero_()
            return out

    monkeypatch.setattr(unet, "F", Namespace())
    with pytest.raises(Unrecordable, match="changed in place"), record(model, tmp_path / "run"):
        draw(model)


@pytest.mark.parametrize("held", [0, 20_000])
def test_reading_at_once_or_at_the_end_is_the_same(model, tmp_path, monkeypatch, held):
    _, late = recorded(model, tmp_path / "late")
    monkeypatch.setattr("probe.recording.run.HELD", held)
    _, early = recorded(model, tmp_path / "early")
    assert same(early.attention(), late.attention()) and list(early.sites) == list(late.sites)


def test_attention_that_cannot_be_read_is_refused(model, tmp_path, monkeypatch):
    import probe.models.unet as unet

    def explicit_attention(q, k, v, attn_mask=None):
        scores = q @ k.mT * q.shape[-1] ** -0.5
        return scores.masked_fill(~attn_mask, -torch.inf).softmax(-1) @ v

    class Namespace:
        scaled_dot_product_attention = staticmethod(explicit_attention)

        def __getattr__(self, name):
            return getattr(F, name)

    monkeypatch.setattr(unet, "F", Namespace())
    with pytest.raises(Unrecordable, match="scaled_dot_product_attention"), record(model, tmp_path / "run"):
        draw(model)
    assert not (tmp_path / "run/manifest.json").exists()


def test_a_text_that_was_not_encoded_inside_is_refused(model, tmp_path):
    text = model.encode_text([PROMPT])
    with pytest.raises(BranchMismatch, match="Encode the prompts inside"), record(model, tmp_path / "run"):
        model.scheduler.set_timesteps(1)
        model.scheduler.step(lambda x, time: model.unet(x, torch.full((1,), time), text), model.noise(1, 64, 64, 0), 0)


def test_texts_are_matched_by_value_and_a_mismatch_names_both_shapes():
    a, b, c = (torch.full((n, 4), float(n)) for n in (3, 5, 7))
    texts = {"cond": [a], "uncond": [b]}
    assert places([b, a], texts, ("uncond", "cond")) == [("uncond", 0), ("cond", 0)]
    assert places([a, b], texts, ("uncond", "cond")) == [("cond", 0), ("uncond", 0)]
    assert places([a], texts, ("uncond", "cond")) == [("cond", 0)]
    with pytest.raises(BranchMismatch, match=r"\(7, 4\).*cond \(3, 4\), uncond \(5, 4\)"):
        places([c], texts, ("uncond", "cond"))


def test_equal_texts_follow_the_familys_order():
    a, b = torch.ones(3, 4), torch.zeros(3, 4)
    both = {"cond": [a, b], "uncond": [a, a]}
    rows = [a, a, a, b]
    assert places(rows, both, ("uncond", "cond")) == [("uncond", 0), ("uncond", 1), ("cond", 0), ("cond", 1)]
    assert places([a, b], both, ("uncond", "cond")) == [("cond", 0), ("cond", 1)]
    assert places([a, b, a, a], both, ("cond", "uncond")) == [("cond", 0), ("cond", 1), ("uncond", 0), ("uncond", 1)]
    with pytest.raises(BranchMismatch, match="several pictures of one prompt"):
        places([a] * 4, {"cond": [a]}, ("cond",))


@pytest.mark.parametrize(
    "latent, cells, grid",
    [
        ((16, 16), 256, (16, 16)),
        ((16, 16), 16, (4, 4)),
        ((8, 24), 48, (4, 12)),
        ((9, 15), 40, (5, 8)),
        ((4, 28), 7, (1, 7)),
    ],
)
def test_the_grid_is_found_from_the_latent(latent, cells, grid):
    assert grid_of(latent, cells) == grid


def test_a_grid_that_is_none_is_refused():
    with pytest.raises(Unrecordable):
        grid_of((16, 16), 77)


# --- size ---


@pytest.mark.parametrize("keep", ["heads", "mean", "sum"])
def test_the_forecast_is_near_the_truth(model, tmp_path, keep):
    said = forecast(model, PROMPT, steps=6)
    _, _ = recorded(model, tmp_path / "run", steps=6, keeping={"keep": keep})
    written = sum(p.stat().st_size for p in (tmp_path / "run").iterdir() if p.name.startswith(("step_", "sum_")))
    assert 0.8 < said.disk[keep] / written < 1.2


def test_the_forecast_knows_words_branches_and_sites(model):
    whole = forecast(model, PROMPT)
    assert forecast(model, PROMPT, policy=Policy(words=("猫",))).disk["heads"] < whole.disk["heads"]
    assert forecast(model, PROMPT, policy=Policy(branches=("cond",))).disk["heads"] < whole.disk["heads"]
    assert forecast(model, PROMPT, sites="*").disk["heads"] > whole.disk["heads"]
    assert forecast(model, PROMPT, policy=Policy(steps=0)).disk["heads"] * 20 == whole.disk["heads"]
    assert "heads: " in str(whole)


def test_over_the_budget_the_run_is_refused_with_the_cheaper_sizes(model, tmp_path):
    with (
        pytest.raises(OverBudget, match=r'keep="mean" .*B, keep="sum" .*B'),
        record(model, tmp_path / "run", budget=100_000),
    ):
        draw(model, steps=20)
    assert not (tmp_path / "run/manifest.json").exists()
    said = forecast(model, PROMPT, steps=20)
    with record(model, tmp_path / "run", keep="sum", budget=said.disk["sum"] + 1000):
        draw(model, steps=20)


# --- previews ---


def test_a_preview_is_the_same_each_time_and_draws_no_random_numbers(model):
    latents = model.noise(2, 64, 48, 0)
    generator = torch.get_rng_state()
    one = preview(model.vae, 4, latents)
    assert one.shape == (2, 64, 48, 3) and one.dtype == torch.uint8
    assert torch.equal(one, preview(model.vae, 4, latents))
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_preview_is_what_a_linear_decoder_would_show():
    """A VAE that is linear is followed exactly, up to the ridge and the rounding to bytes."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(48, 48, generator=torch.Generator().manual_seed(0)) / 7)

        def encode(self, pictures):
            return F.conv2d(F.pixel_unshuffle(pictures, 4), self.weight[:, :, None, None])

        def decode(self, latents):
            return F.pixel_shuffle(F.conv2d(latents, self.weight.inverse()[:, :, None, None]), 4)

    vae = Linear()
    picture = F.interpolate(torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)), size=(32, 32)) * 2 - 1
    with torch.no_grad():
        shown = preview(vae, 4, vae.encode(picture)).permute(0, 3, 1, 2) / 127.5 - 1
    assert (shown - picture).abs().mean() < 0.15


def test_large_pictures_get_small_previews(model):
    assert preview(model.vae, 4, torch.zeros(1, 8, 64, 40)).shape == (1, 128, 80, 3)


# --- the family table ---


def test_sites_by_name_and_kind(model):
    sites = family_of(model).sites(model)
    kinds = [site.kind for site in sites.values()]
    assert kinds.count("encoder") == 12 and kinds.count("cross") == 5 and kinds.count("self") == 3
    assert sites["unet.down.1.self_attention"].module is model.unet.down[1].self_attention


def test_the_manifest_is_plain_json(model, tmp_path):
    recorded(model, tmp_path / "run")
    json.loads((tmp_path / "run/manifest.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_trace(tmp_path / "run")
