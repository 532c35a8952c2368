"""Batches, several runs, several models and threads: nothing is mixed up."""

import threading

import numpy as np
import pytest
import torch

from tests.recording.tiny_runs import PROMPT, draw, explicit, recorded, same
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.recording.provenance import entry_of_picture
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_collection, open_trace
from toushi.probe.trace.trace_errors import NoTrace, WriteFailed


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


def test_each_picture_has_its_own_seed_whatever_holds_them(model, tmp_path):
    for number, seed in enumerate(([4, 5], range(4, 6))):
        with record(model, tmp_path / str(number)) as recording:
            model.sample(["猫", "狗"], seed=seed, steps=1)
        assert [open_trace(folder).manifest.seed for folder in recording.traces] == [4, 5]
    assert [entry_of_picture(["a", "b"], item, 4) for item in range(4)] == ["a", "a", "b", "b"]
    assert entry_of_picture("猫", 1, 2) == "猫" and entry_of_picture([], 1, 2) == [] and entry_of_picture(7, 1, 2) == 7


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
    assert [line.evaluations for line in trace.files.lines.values()] == [1, 1, 1] and trace.prompt == PROMPT


def test_latents_that_are_changed_afterwards(model, tmp_path):
    latents = model.noise(1, 64, 64, 0)
    before = latents.clone()
    with record(model, tmp_path / "run"):
        model.denoise(latents, 0.5, PROMPT)
        latents.zero_()
    assert np.array_equal(open_trace(tmp_path / "run").latent(0).values, before[0])


def test_calls_read_together_are_what_each_alone_would_give(model):
    """Sites of one shape, with the mask of a shorter text, all rows or some."""
    from toushi.hooks.attention import AttentionHook, probabilities_of
    from toushi.probe.pipelines.registry import family_of

    calls = []
    sites = {n: s.module for n, s in family_of(model).sites(model).items() if s.kind == "cross"}
    with AttentionHook(sites, calls.append):
        model.sample([PROMPT, "猫"], steps=2)
    assert len({call.shape for call in calls}) < len(sites) < len(calls)
    for rows in (None, [3, 0]):
        for mean, dtype in ((True, torch.float16), (False, torch.float32)):
            found = probabilities_of(calls, slice(0, 5), rows, mean, dtype)
            for call, alone in zip(calls, found):
                assert torch.equal(alone, call.probabilities(slice(0, 5), rows, None, mean, dtype))
