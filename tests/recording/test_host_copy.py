"""How a step's tensors come to the CPU, and that recording asks a GPU for nothing else while it samples."""

import sys
import threading

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pipelines.tiny import PROMPT, draw, made
from toushi.hooks import kernels
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.recording import run_recorder, step_maps
from toushi.probe.recording.host_copy import GpuBatch, copy_to_host, pack, row_of
from toushi.probe.recording.provenance import gpu_facts
from toushi.probe.recording.record import record
from toushi.probe.trace.open import open_trace

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
FAMILIES = ("stable-diffusion", "stable-diffusion-3", "flux", "z-image", "lumina-2", "qwen-image", "pixart")
WAITS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__")  # each would stop a GPU


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 5, 4, 4, generator=generator)
    levels = torch.randint(0, 256, (7, 3), dtype=torch.uint8, generator=generator)
    return [levels, maps.half()[:, 1:4], maps[..., 0], levels[:, 1], maps.half()[0], torch.zeros(0, 4)]


class Arrived:
    """Stands in for the copy from a GPU: it notes who waits for it."""

    def __init__(self, packed: Tensor):
        self.bytes, self.threads = packed.numpy(), []

    def wait(self) -> np.ndarray:
        self.threads.append(threading.current_thread().name)
        return self.bytes


def test_what_is_packed_comes_out_the_same():
    packed, starts = pack(tensors())
    copy = Arrived(packed)
    for tensor, start in zip(tensors(), starts):
        batch = GpuBatch(copy, start, tuple(tensor.shape), tensor.dtype)
        assert start % tensor.element_size() == 0
        for number, expected in enumerate(tensor.numpy()):
            row, waited = row_of(batch, number), len(copy.threads)
            assert (row.shape, row.dtype, row.nbytes) == (expected.shape, expected.dtype, expected.nbytes)
            assert len(copy.threads) == waited  # none of them needs the values
            np.testing.assert_array_equal(np.asarray(row), expected)
            assert np.asarray(row).dtype == expected.dtype
    assert copy.threads


def test_a_row_has_its_own_places():
    maps = torch.rand(2, 5, 4, 3, 3)
    packed, (start,) = pack([maps])
    batch = GpuBatch(Arrived(packed), start, tuple(maps.shape), maps.dtype)
    for places in ([0, 1, 2, 3], [1], [0, 3], [0, 1, 3]):
        expected, row = maps[1][:, places].numpy(), row_of(batch, 1, places)
        assert (row.shape, row.nbytes) == (expected.shape, expected.nbytes)
        np.testing.assert_array_equal(np.asarray(row), expected)
        np.testing.assert_array_equal(row_of(copy_to_host([maps])[0], 1, places), expected)


def test_a_cpu_shares_its_memory():
    tensor = torch.zeros(1, 3)
    (batch,) = copy_to_host([tensor])
    tensor += 1
    assert row_of(batch, 0).tolist() == [1, 1, 1] and copy_to_host([]) == []


@cuda
def test_a_gpu_copies_all_at_once():
    there = [tensor.cuda() for tensor in tensors()]
    for batch, tensor in zip(copy_to_host(there), tensors()):
        for number, expected in enumerate(tensor.numpy()):
            np.testing.assert_array_equal(np.asarray(row_of(batch, number)), expected)


def test_only_the_writing_thread_waits(tmp_path, monkeypatch):
    copies: list[Arrived] = []

    def packed_copy(tensors):
        packed, starts = pack(tensors)
        copies.append(Arrived(packed))
        return [GpuBatch(copies[-1], start, tuple(one.shape), one.dtype) for one, start in zip(tensors, starts)]

    model = MiniUNet.tiny(layers=2)
    with record(model, tmp_path / "plain"):
        model.sample(["猫", "a red cat"], steps=3, seed=0)
    monkeypatch.setattr(step_maps, "copy_to_host", packed_copy)
    with record(model, tmp_path / "packed"):
        model.sample(["猫", "a red cat"], steps=3, seed=0)
    assert len(copies) == 3  # one a step, for all sites, branches and pictures
    assert all(copy.threads and all(name.startswith("trace ") for name in copy.threads) for copy in copies)
    for picture in ("000", "001"):
        for step in range(3):
            name = f"{picture}/step_{step:04}.safetensors"
            assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()


@pytest.mark.parametrize("name", FAMILIES)
def test_no_step_after_the_first_reads_a_number_from_a_tensor(name, tmp_path, monkeypatch):
    """Counted in our own code: what a pipeline itself waits for is its own."""
    pipeline, waits, real = made(name), [], {}

    def counted(method):
        def call(self, *args, **kwargs):
            caller = sys._getframe(1)
            file = caller.f_code.co_filename
            ours = "/toushi/probe/" in file or "/toushi/hooks/" in file
            if ours and self is not None and "host_copy" not in file and self.dim() >= 0:
                waits.append(f"{method} in {file.rpartition('/toushi/')[2]}:{caller.f_lineno}")
            return real[method](self, *args, **kwargs)

        return call

    steps, finish = [], run_recorder.RunRecorder.finish_step

    def finish_step(self, *args, **kwargs):
        result = finish(self, *args, **kwargs)
        steps.append(len(waits))
        return result

    for method in WAITS:
        real[method] = getattr(Tensor, method)
        monkeypatch.setattr(Tensor, method, counted(method))
    monkeypatch.setattr(run_recorder.RunRecorder, "finish_step", finish_step)
    with record(pipeline, tmp_path / "run", keep="mean"):
        draw(pipeline, PROMPT, steps=4)
    assert len(steps) == 4 and open_trace(tmp_path / "run").complete
    assert steps[-1] == steps[0], waits[steps[0] :]
    assert steps[0] > 0  # before the first step there is something to read, so that the count counts


class Operations(TorchDispatchMode):
    """Counts what a device would be asked to do."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("keep", ["heads", "mean"])
def test_many_pictures_ask_for_no_more_operations_than_one(tmp_path, monkeypatch, keep):
    monkeypatch.setattr(kernels, "ROW_BY_ROW", set())
    monkeypatch.setattr(kernels, "CPU_BLOCK_SCORES", kernels.BLOCK_SCORES)
    model = MiniUNet.tiny(layers=2)

    def operations_of_a_step(prompts):
        counts = []
        for number, steps in enumerate((1, 1, 2)):  # the first one makes what is kept for all runs
            with record(model, tmp_path / f"{len(prompts)} {number}", keep=keep), Operations() as operations:
                model.sample(prompts, steps=steps, seed=0)
            counts.append(operations.count)
        return counts[2] - counts[1]

    prompts = ["猫", "a red cat", "左边是猫，右边是月亮", "a dog", "夜晚"]
    assert operations_of_a_step(prompts) == operations_of_a_step(prompts[:2]) > 100


@cuda
def test_the_card_is_named():
    facts = gpu_facts(torch.device("cuda"))
    assert facts["name"] == torch.cuda.get_device_name() and facts["cuda"] and facts["cudnn"]


def test_a_run_on_a_cpu_names_no_card(tmp_path):
    model = MiniUNet.tiny(layers=2)
    with record(model, tmp_path / "run"):
        model.sample("猫", steps=1, seed=0)
    assert open_trace(tmp_path / "run").manifest.gpu is None
