import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from tests.trace.runs import Run
from toushi.probe.base.atomic_io import safetensors_parts, write_with_digest
from toushi.probe.base.errors import ToushiError
from toushi.probe.trace import trace_format as layout
from toushi.probe.trace import writer as writer_module
from toushi.probe.trace.collection import write_collection
from toushi.probe.trace.image_file import save_picture
from toushi.probe.trace.open import open_collection, open_trace
from toushi.probe.trace.output_dir import check_output_dir, prepare_output_dir
from toushi.probe.trace.trace_errors import BadRecord, DamagedTrace, WriteFailed
from toushi.probe.trace.writer import TOGETHER, TraceWriter

ROOT = Path(__file__).parents[2]


def test_the_manifest_says_incomplete_until_the_end(tmp_path):
    writer = TraceWriter(tmp_path / "run", Run().manifest())
    assert not open_trace(tmp_path / "run").complete
    writer.update(seed=7, note="further fields are kept")
    writer.close(complete=True)
    trace = open_trace(tmp_path / "run")
    assert trace.complete and trace.manifest.seed == 7 and trace.manifest.note


def test_an_exception_leaves_an_incomplete_trace_with_its_finished_steps(tmp_path):
    with pytest.raises(KeyboardInterrupt), TraceWriter(tmp_path / "run", Run().manifest()) as writer:
        writer.write_step(0, Run().tensors(0))
        raise KeyboardInterrupt
    trace = open_trace(tmp_path / "run")
    assert trace.steps == [0] and not trace.complete
    assert trace.verify() == ["The run did not end: 1 of 3 steps are finished."]


def test_no_temporary_file_stays(tmp_path):
    Run().write(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_strided_views_are_stored_as_they_look(tmp_path):
    run, tensors = Run(), Run().tensors(0)
    turned = {k: np.ascontiguousarray(v.swapaxes(-1, -2)).swapaxes(-1, -2) for k, v in tensors.items()}
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        writer.write_step(0, turned)
    file = open_trace(tmp_path / "run").files.step(0)
    for key, value in tensors.items():
        np.testing.assert_array_equal(file.read(key), value)


# --- the queue ------------------------------------------------------------------------------------------


def test_the_sampler_waits_for_a_slow_disk(tmp_path, monkeypatch):
    """At most the queue, the step in writing and the step in hand are alive."""
    gate, begun = threading.Semaphore(0), []
    real = TraceWriter._step

    def slow(self, index, *rest):
        begun.append(index)
        gate.acquire()
        real(self, index, *rest)

    monkeypatch.setattr(TraceWriter, "_step", slow)
    run = Run(steps=12)
    writer = TraceWriter(tmp_path / "run", run.manifest(), queue_size=2, small=0)
    handed = []

    def sample():
        for step in range(12):
            writer.write_step(step, run.tensors(step))
            handed.append(step)

    sampler = threading.Thread(target=sample)
    sampler.start()
    for released in range(12):
        deadline = time.monotonic() + 5
        while len(begun) <= released and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(handed) <= released + 3
        gate.release()
    sampler.join(5)
    writer.close(complete=True)
    assert open_trace(tmp_path / "run").steps == list(range(12))


def test_small_steps_wait_together_and_are_listed_together(tmp_path, monkeypatch):
    """A sampler that is faster than the disk goes on as long as what waits is small."""
    gate, synced, real = threading.Event(), [], writer_module.fsync_folder
    monkeypatch.setattr(writer_module, "fsync_folder", lambda folder: (gate.wait(5), synced.append(1), real(folder)))
    run = Run(steps=12)
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        for step in range(12):
            writer.write_step(step, run.tensors(step))
        gate.set()
    assert open_trace(tmp_path / "run").steps == list(range(12)) and len(synced) <= 4
    assert open_trace(tmp_path / "run").verify() == []


def test_a_step_that_cannot_be_stored_takes_none_with_it(tmp_path, monkeypatch):
    """The ones before it, stored but not listed yet, are listed."""
    gate, real = threading.Event(), TraceWriter._step

    def step(self, index, *rest):
        gate.wait(5)
        if index == 3:
            raise OSError(28, "No space left on device")
        real(self, index, *rest)

    monkeypatch.setattr(TraceWriter, "_step", step)
    run = Run(steps=12)
    writer = TraceWriter(tmp_path / "run", run.manifest())
    for index in range(6):
        writer.write_step(index, run.tensors(index))
    gate.set()
    with pytest.raises(WriteFailed, match=r"step 3 .*No space left.*3 steps are finished"):
        writer.close(complete=True)
    trace = open_trace(tmp_path / "run")
    assert trace.steps == [0, 1, 2] and trace.verify() == ["The run did not end: 3 of 12 steps are finished."]


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_files_are_those_of_the_safetensors_library(tmp_path, monkeypatch, small):
    arrays = {
        "site/条件": np.arange(6, dtype=np.float16).reshape(1, 2, 3),
        "preview": np.full((2, 3, 3), 7, np.uint8),
        "latent": np.ones((0, 3), np.float32),
    }
    monkeypatch.setattr("toushi.probe.base.atomic_io.ONE_WRITE_BYTES", small)
    about = write_with_digest(tmp_path / "ours", safetensors_parts(arrays, {"counts": "{}"}))
    whole = (tmp_path / "ours").read_bytes()
    assert about == {"bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    with safe_open(tmp_path / "ours", framework="np") as file:
        assert file.metadata() == {"counts": "{}"} and set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            read = file.get_tensor(name)
            np.testing.assert_array_equal(read, array)
            assert read.dtype == array.dtype


# --- failures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["heads", "sum"])
def test_a_full_disk_stops_the_run_and_the_finished_steps_stay(tmp_path, keep, monkeypatch):
    """RLIMIT_FSIZE stands in for the full disk: the same write fails, in a process of its own."""
    monkeypatch.setattr(writer_module, "SUMS_PAUSE", 0.0)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = TraceWriter(tmp_path / "run", Run(keep=keep, steps=50).manifest())
    try:
        with pytest.raises(WriteFailed, match="steps are finished and can be read"):
            for step in range(50):
                writer.write_step(step, Run(keep=keep).tensors(step))
                if step == 4:
                    wait_for(lambda: len(writer._finished) == 5)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limit[1]))
        with pytest.raises(WriteFailed):
            writer.write_image(None)
        writer.close(complete=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    trace = open_trace(tmp_path / "run")
    assert trace.steps == [0, 1, 2, 3, 4]
    assert trace.verify() == ["The run did not end: 5 of 50 steps are finished."]
    assert not list((tmp_path / "run").glob("step*.tmp"))


def wait_for(holds, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert holds()


def test_a_removed_folder_is_a_clear_error_also_at_close(tmp_path):
    writer = TraceWriter(tmp_path / "run", Run().manifest())
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    (tmp_path / "run").rmdir()
    writer.write_step(0, Run().tensors(0))
    with pytest.raises(WriteFailed, match="step 0"):
        writer.close(complete=True)
    writer.close(complete=True)


KILLED = """
import sys
from tests.trace.runs import Run
from toushi.probe.trace.image_file import save_picture
from toushi.probe.trace.output_dir import check_output_dir, prepare_output_dir
from toushi.probe.trace.writer import TraceWriter
run = Run(keep=sys.argv[2], steps=5000)
writer = TraceWriter(sys.argv[1], run.manifest())
steps = [run.tensors(step) for step in range(5)]
print("ready", flush=True)
for step in range(5000):
    writer.write_step(step, steps[step % 5])
"""


@pytest.mark.parametrize("keep", ["heads", "sum"])
@pytest.mark.parametrize("delay", [0.005, 0.05, 0.12])
def test_kill_9_leaves_every_listed_step_readable(tmp_path, keep, delay):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), keep], cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ}
    )
    assert process.stdout.readline() == b"ready\n"
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    trace = open_trace(folder)
    assert not trace.complete
    assert [problem for problem in trace.verify() if "did not end" not in problem] == []
    stored = {path.name for path in folder.glob("s*_*.safetensors")}
    listed = {line.file for line in trace.files.lines.values()}
    if keep == "sum":  # at most the listed one and the one that replaces it
        assert len(stored) <= 2 and (not listed or layout.step_file(trace.steps[-1], "sum") in stored)
    else:
        assert trace.steps == list(range(len(trace.steps)))
        assert listed <= stored and len(stored - listed) <= TOGETHER
    if trace.steps:
        assert np.isfinite(trace.attention("猫").mean("head" if keep == "heads" else "step")).all()


def test_a_line_cut_off_at_the_end_does_not_count(tmp_path):
    Run().write(tmp_path / "run")
    path = tmp_path / "run" / layout.STEPS
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1])):
        path.write_bytes(whole[:-cut])
        assert open_trace(tmp_path / "run").steps == ([0, 1, 2] if cut == 1 else [0, 1])
    path.write_bytes(whole[:20] + whole[25:])
    with pytest.raises(DamagedTrace):
        open_trace(tmp_path / "run")


# --- the sum --------------------------------------------------------------------------------------------


def test_the_sum_is_the_float32_sum_of_the_steps(tmp_path):
    run = Run(keep="sum", steps=6)
    run.write(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").glob("*.safetensors")] == ["sum_0005.safetensors"]
    trace = open_trace(tmp_path / "run")
    key = "unet.middle.cross_attention/cond"
    expected = np.sum([run.tensors(step)[key].astype(np.float32) for step in range(6)], 0)
    np.testing.assert_allclose(trace.files.step(5).read(key), expected, rtol=1e-6)


def test_sums_are_written_seldom(tmp_path, monkeypatch):
    written = []
    whole = writer_module.write_with_digest
    monkeypatch.setattr(
        writer_module, "write_with_digest", lambda path, *a, **k: written.append(path) or whole(path, *a, **k)
    )
    run = Run(keep="sum", steps=200)
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        writer.write_step(0, run.tensors(0))
        wait_for(lambda: writer._finished == [0])  # the first at once: a full disk is known early
        for step in range(1, 200):
            writer.write_step(step, run.tensors(step))
    assert [path.name for path in written][:: len(written) - 1] == ["sum_0000.safetensors", "sum_0199.safetensors"]
    assert len(written) <= 4
    trace = open_trace(tmp_path / "run")
    assert trace.steps == list(range(200)) and trace.verify() == []


def test_a_branch_that_stops_is_averaged_over_its_own_steps(tmp_path):
    run = Run(keep="sum", steps=4)
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        for step in range(4):
            tensors = run.tensors(step)
            writer.write_step(step, {k: v for k, v in tensors.items() if step < 2 or "uncond" not in k})
    trace = open_trace(tmp_path / "run")
    assert trace.verify() == []
    mass = trace.mass("uncond")
    assert float(mass.sum()) + mass.attrs["rest"] == pytest.approx(1, abs=1e-3)


# --- what is refused ------------------------------------------------------------------------------------


def test_steps_and_tensors_that_do_not_fit_are_refused_at_once(tmp_path):
    run = Run()
    good = run.tensors(0)
    key = "unet.middle.cross_attention/cond"
    with TraceWriter(tmp_path / "run", run.manifest()) as writer:
        for bad in (
            {"unet.nowhere/cond": good[key]},
            {"unet.middle.cross_attention/other": good[key]},
            {"../" + key: good[key]},
            {key: good[key][:, :, :2]},
            {key: good[key][:, 1:]},
            {key: good[key].astype(np.float64)},
            {"preview": good["latent"]},
        ):
            with pytest.raises(BadRecord, match=r"unet|preview"):
                writer.write_step(0, bad)
        for name, kind in [("state/0", "f4"), ("cond/state/0", "f4"), ("state/0/other", "f4"), ("state/0/cond", "f8")]:
            with pytest.raises(BadRecord, match="encoder"):
                writer.write_encoder({name: np.zeros((2, 3), kind)})
        writer.write_step(1, good)
        for step in (0, 1, 3, -1):
            with pytest.raises(BadRecord, match="in order"):
                writer.write_step(step, good)
        with pytest.raises(BadRecord):
            writer.update(complete=True)
    with pytest.raises(BadRecord, match="closed"):
        writer.write_step(2, good)


@pytest.mark.parametrize(
    "fields", [{"keep": "all"}, {"prompt": 3}, {"branches": None}, {"sites": {"a/b": {}}}, {"seed": float("nan")}]
)
def test_a_manifest_that_could_not_be_read_is_not_written(tmp_path, fields):
    with pytest.raises(ToushiError):
        TraceWriter(tmp_path / "run", {**Run().manifest(), **fields})
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_there_is_not_touched(tmp_path):
    run, folder = Run(), tmp_path / "run"
    run.write(folder)
    with pytest.raises(WriteFailed, match="overwrite"):
        TraceWriter(folder, run.manifest())
    with TraceWriter(folder, run.manifest(), overwrite=True) as writer:
        writer.write_step(0, run.tensors(0))
    assert open_trace(folder).steps == [0]


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["notes.txt", "model.safetensors", "2024/step_0000.safetensors", "timeline.png", "a.tmp"]
)
def test_a_trace_with_somebodys_file_in_it_stays_whole(tmp_path, name):
    Run().write(tmp_path / "run")
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).write_text("mine")
    before = everything(tmp_path)
    for room in (check_output_dir, prepare_output_dir):
        with pytest.raises(WriteFailed, match=name):
            room(tmp_path / "run", overwrite=True)
    assert everything(tmp_path) == before


def test_the_figure_of_a_trace_goes_with_it(tmp_path):
    Run().write(tmp_path / "run")
    (tmp_path / "run" / "words.png").write_bytes(b"drawn by the command")
    prepare_output_dir(tmp_path / "run", overwrite=True)
    assert list((tmp_path / "run").iterdir()) == []


def test_files_that_are_no_trace_are_never_overwritten(tmp_path):
    picture = Image.new("RGB", (4, 4))
    for name in ("web", "photos", "data/000", "words"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "web" / "manifest.json").write_text('{"name": "a web app"}')
    picture.save(tmp_path / "photos" / "image.png")
    picture.save(tmp_path / "data" / "000" / "image.png")
    picture.save(tmp_path / "words" / "words.png")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "000").symlink_to(tmp_path / "data" / "000")
    before = everything(tmp_path)
    for name in ("web", "photos", "data", "words", "linked", "file", "file/below"):
        with pytest.raises(WriteFailed):
            prepare_output_dir(tmp_path / name, overwrite=True)
    assert everything(tmp_path) == before


def test_our_pictures_without_a_trace_may_be_overwritten(tmp_path):
    for name in ("one", "many/000", "many/001"):
        (tmp_path / name).mkdir(parents=True)
        save_picture(Image.new("RGB", (4, 4)), tmp_path / name / "image.png")
    for name in ("one", "many"):
        with pytest.raises(WriteFailed, match="--overwrite"):
            prepare_output_dir(tmp_path / name)
        assert list(prepare_output_dir(tmp_path / name, overwrite=True).iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WriteFailed, match="Permission denied"):
        TraceWriter(tmp_path / "run", Run().manifest())


def test_a_place_that_cannot_be_written():
    with pytest.raises(WriteFailed, match="Cannot write in /proc/run"):
        TraceWriter("/proc/run", Run().manifest())


# --- collections ----------------------------------------------------------------------------------------


def test_a_collection_opens_as_its_members(tmp_path):
    for name in ("000", "001"):
        Run(seed=int(name)).write(tmp_path / "both" / name)
    write_collection(tmp_path / "both", ["000", "001"], prompts="two")
    assert [trace.manifest.seed for trace in open_collection(tmp_path / "both")] == [0, 1]
    with pytest.raises(ToushiError, match=r"000, 001.*open_collection"):
        open_trace(tmp_path / "both")
    with pytest.raises(ToushiError, match="open_trace"):
        open_collection(tmp_path / "both" / "000")
    prepare_output_dir(tmp_path / "both", overwrite=True)
    assert list((tmp_path / "both").iterdir()) == []


@pytest.mark.parametrize("members", [["../x"], ["/etc"], [], "000", ["000", 3], [""], ["000/../.."]])
def test_members_outside_the_folder_are_refused(tmp_path, members):
    with pytest.raises(ToushiError):
        write_collection(tmp_path, members)
    (tmp_path / layout.MEMBERS).write_text(json.dumps({"format": layout.COLLECTION, "version": 1, "members": members}))
    with pytest.raises(ToushiError):
        open_collection(tmp_path)
