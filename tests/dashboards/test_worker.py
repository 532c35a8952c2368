"""The thread that makes a new trace, with a model of random weights."""

import gc
import time

import pytest

from toushi.dashboards import sampling_worker as worker
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines import generate as generate_module
from toushi.probe.trace.open import open_trace

LOAD = worker._model


@pytest.fixture(scope="module")
def tiny():
    return MiniUNet.tiny()


@pytest.fixture(autouse=True)
def no_weights_from_disk(tiny, monkeypatch):
    monkeypatch.setattr(worker, "_model", lambda name: tiny)


def finished(job):
    for _ in range(600):
        if not job.running:
            return job
        time.sleep(0.05)
    raise AssertionError(f"still at {job.state}, step {job.step}")


def test_a_new_trace_is_what_was_ordered(tmp_path):
    order = worker.Order("左边是猫", negative="模糊", steps=3, guidance=2.0, seed=7, sampler="heun")
    job = finished(worker.start(order, tmp_path))
    assert (job.state, job.step, job.error, job.cut) == ("done", 3, "", [])
    trace = open_trace(job.folder)
    assert trace.complete and trace.prompt == "左边是猫" and trace.steps == [0, 1, 2]
    kept = [getattr(trace.manifest, name) for name in ("negative_prompt", "guidance", "seed", "sampler")]
    assert kept == ["模糊", 2.0, 7, "heun"]
    assert trace.manifest.threads == 1


def test_words_that_were_cut_are_named(tmp_path):
    job = finished(worker.start(worker.Order("一只猫和" * 40, steps=1), tmp_path))
    (cut,) = job.cut
    assert job.state == "done" and cut.limit == 77 and "猫" in cut.lost


def test_the_picture_is_asked_for_as_everywhere(tmp_path, monkeypatch):
    def refuse(model, prompt, negative, **settings):
        raise ToushiError(f"{negative} with guidance {settings['guidance']}")

    monkeypatch.setattr(generate_module, "generate", refuse)
    job = finished(worker.start(worker.Order("猫", negative="模糊", guidance=1.0), tmp_path))
    assert (job.state, job.error) == ("failed", "模糊 with guidance 1.0")


def test_stopping_leaves_the_finished_steps(tmp_path):
    job = worker.start(worker.Order("猫", steps=200), tmp_path)
    while job.step < 2 and job.running:
        time.sleep(0.01)
    job.cancel()
    assert finished(job).state == "stopped"
    trace = open_trace(job.folder)
    assert not trace.complete and len(trace.steps) >= 2
    assert finished(worker.start(worker.Order("狗", steps=1), tmp_path)).state == "done"


def test_two_at_once_are_made_one_after_the_other(tmp_path):
    first, second = (worker.start(worker.Order("猫", steps=steps), tmp_path) for steps in (300, 1))
    assert first.folder != second.folder, "both were asked for within one second"
    while first.state in ("wait", "load"):
        time.sleep(0.01)
    assert second.state == "wait" and worker.running() is first
    first.cancel()
    assert finished(second).state == "done" and first.state == "stopped"
    assert open_trace(second.folder).complete and worker.running() is None


def test_what_waits_can_be_stopped_and_many_are_refused(tmp_path):
    first, *others = (worker.start(worker.Order("猫", steps=2000), tmp_path) for _ in range(1 + worker.MAX_WAITING))
    with pytest.raises(worker.Busy, match="waiting already"):
        worker.start(worker.Order("狗"), tmp_path)
    for job in (*others, first):
        job.cancel()
    assert all(job.state == "stopped" and not job.folder.exists() for job in others)
    assert finished(first).state == "stopped"
    assert finished(worker.start(worker.Order("狗", steps=1), tmp_path)).state == "done"


def test_what_goes_wrong_is_told(tmp_path):
    job = finished(worker.start(worker.Order("猫", sampler="nonsense"), tmp_path))
    assert job.state == "failed" and "nonsense" in job.error


def test_no_garbage_collection_walks_what_is_loaded():
    """Streamlit collects after each rerun of each session, and the worker waits for it."""
    gc.unfreeze()
    before = len(gc.get_objects())
    try:
        LOAD("mini-unet")
        assert gc.get_freeze_count() > 0.9 * before and len(gc.get_objects()) < 0.1 * before
    finally:
        gc.unfreeze()
        LOAD.cache_clear()
