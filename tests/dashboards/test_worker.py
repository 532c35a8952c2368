"""The process that makes new traces, with a model of random weights."""

import os
import signal
import time

import pytest

from toushi.dashboards import sampling_worker as worker
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.trace.open import open_trace


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    MiniUNet.tiny().save(folder)
    return str(folder)


@pytest.fixture
def start(tiny, tmp_path):
    def start(prompt="猫", is_wanted=lambda: True, **settings):
        return worker.start(worker.Order(prompt, model=tiny, **settings), tmp_path, is_wanted)

    return start


def wait_for(condition, seconds=60):
    for _ in range(seconds * 50):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError([(job.state, job.step) for job in worker.running()])


def finished(job):
    wait_for(lambda: not job.running)
    return job


def sampling(job):
    wait_for(lambda: job.step >= 2 or not job.running)
    return job


def test_a_new_trace_is_what_was_ordered(start):
    job = finished(start("左边是猫", negative="模糊", steps=3, guidance=2.0, seed=7, sampler="heun"))
    assert (job.state, job.step, job.error, job.cut) == ("done", 3, "", [])
    trace = open_trace(job.folder)
    assert trace.complete and trace.prompt == "左边是猫" and trace.steps == [0, 1, 2]
    kept = [getattr(trace.manifest, name) for name in ("negative_prompt", "guidance", "seed", "sampler")]
    assert kept == ["模糊", 2.0, 7, "heun"]
    assert trace.manifest.threads == 1


def test_words_that_were_cut_are_named(start):
    job = finished(start("一只猫和" * 40, steps=1))
    ((limit, lost),) = job.cut
    assert job.state == "done" and limit == 77 and "猫" in lost


def test_an_edited_trace(tmp_path):
    first = finished(worker.start(worker.Order("左边是猫", steps=2), tmp_path))
    order = worker.EditOrder(str(first.folder), {"remove": ["猫"]}, steps=2, seed=0)
    job = finished(worker.start(order, tmp_path))
    assert job.state == "done", job.error
    edited = open_trace(job.folder).manifest
    assert edited.edits and edited.parent and edited.parent.name == first.folder.name


def test_stopping_leaves_the_finished_steps(start):
    job = sampling(start(steps=2000))
    job.cancel()
    assert finished(job).state == "stopped"
    trace = open_trace(job.folder)
    assert not trace.complete and len(trace.steps) >= 2
    assert finished(start("狗", steps=1)).state == "done"


def test_one_after_the_other_and_each_knows_its_place(start):
    first, second, third = (start(steps=steps) for steps in (2000, 1, 1))
    assert len({first.folder, second.folder, third.folder}) == 3, "all were asked for within one second"
    sampling(first)
    assert [worker.place(job) for job in (first, second, third)] == [0, 1, 2] and second.state == "wait"
    second.cancel()
    assert worker.place(third) == 1
    first.cancel()
    assert finished(third).state == "done" and first.state == second.state == "stopped"
    assert not second.folder.exists() and worker.running() == []


def test_the_queue_is_bounded(start):
    first, *others = (start(steps=2000) for _ in range(1 + worker.MAX_WAITING))
    with pytest.raises(worker.Busy, match="waiting already"):
        start("狗")
    for job in (*others, first):
        job.cancel()
    assert finished(first).state == "stopped" and finished(start("狗", steps=1)).state == "done"


def test_a_job_that_nobody_waits_for_ends(start):
    away = set()
    first, second, third = (start(is_wanted=lambda n=n: n not in away, steps=(2000, 2000, 1)[n]) for n in range(3))
    sampling(first)
    away.update([0, 1])
    left = time.monotonic()
    assert finished(third).state == "done" and first.state == second.state == "stopped"
    assert time.monotonic() - left < 3 and not second.folder.exists()


@pytest.mark.slow  # two processes start
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_that_does_not_answer_is_replaced(start):
    job = sampling(start(steps=2000))
    process = worker._process()
    process.send_signal(signal.SIGSTOP)
    job.cancel()
    assert finished(job).state == "stopped" and process.poll() is not None
    job = sampling(start(steps=2000))
    worker._process().kill()  # as the system does when memory is short
    assert finished(job).state == "failed" and "has ended" in job.error
    assert finished(start(steps=1)).state == "done"


def test_what_goes_wrong_is_told(start):
    job = finished(start(sampler="nonsense"))
    assert job.state == "failed" and "nonsense" in job.error and "ToushiError" in job.error_kinds


def test_the_process_ends_with_the_explorer():
    process = worker._process()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 0
