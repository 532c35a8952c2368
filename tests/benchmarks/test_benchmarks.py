"""The benchmarks measure what they say, and what they measure keeps to its bounds."""

import json
import sys
import time

import pytest
import torch

from benchmarks import command, exactness, gpu, memory, peer
from benchmarks.__main__ import PARTS, Config, main
from benchmarks.interleaved import ratios
from benchmarks.shapes import SMALL
from toushi.probe.models.mini_unet import MiniUNet


def test_arms_take_turns_and_are_compared_within_their_round():
    order = []

    def arm(name: str, seconds: float):
        return lambda: (order.append(name), time.sleep(seconds))

    rows = ratios({"bare": arm("bare", 0.01), "slow": arm("slow", 0.03)}, rounds=2)
    assert order[2:] in (["bare", "slow", "slow", "bare"], ["slow", "bare", "bare", "slow"])
    assert [row["arm"] for row in rows] == ["bare", "slow"]
    assert rows[0]["ratio"] == 1 and rows[1]["ratio"] > 1.5


def test_no_round_begins_when_the_time_is_up_but_three_are_done():
    rows = ratios({"bare": lambda: time.sleep(0.01)}, rounds=50, between=lambda: None, seconds=0.02)
    assert rows[0]["rounds"] == 3


@pytest.mark.slow
def test_what_is_read_is_the_plain_softmax():
    rows = exactness.measure(MiniUNet.tiny(), rounds=1, quick=True)
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"} and len({row["model"] for row in rows}) == 4
    for row in rows:
        assert row["sites"] >= 17 or row["model"].startswith("z-image")
        assert float(row["difference"]) <= float(row["goal"]), row
        assert float(row["fp16_storage_adds"]) <= 2.5e-4
        assert not row["from_the_peer"] or float(row["from_the_peer"]) <= 1e-4


def test_a_small_process_is_small_whoever_measures_it():
    held = b"x" * 150_000_000
    memory_of_little, ended = memory.peak_memory(sys.executable, "-S", "-c", "raise SystemExit(3)")
    assert memory_of_little < 50 < len(held) / 2**20 and ended == 3
    assert 100 < memory.peak_memory(sys.executable, "-S", "-c", "x = b'x' * 100_000_000")[0] < 150


@pytest.mark.parametrize("only", ["kernels", "sdxl", "flux", "z-image"])
def test_the_check_for_a_gpu_runs_at_toy_sizes(only, tmp_path):
    rows = gpu.main(gpu.GPUConfig(only=only, small=True, steps=2, rounds=1, device="cpu", out=tmp_path / "rows.jsonl"))
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    measured = rows[1:]
    assert measured and not [row for row in measured if "broken" in row or "refused" in row]
    if only == "kernels":
        assert all(row["identical"] for row in measured) and {row["kernel"] for row in measured} == {
            "flash-cpu",
            "math",
        }
        assert all(row["difference"] <= row["goal"] for row in measured)
    else:
        assert [row["arm"] for row in measured] == ["bare", "bare again", "mean"]
        assert all(row["ms_a_step"] > 0 and row["ratio"] > 0 for row in measured)


def test_a_gpu_is_asked_for():
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="there is no GPU here.*--small"):
            gpu.main(gpu.GPUConfig())


@pytest.mark.slow
def test_every_part_runs(tmp_path):
    main(Config(quick=True, out=tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(PARTS) <= set(found)
    assert {row["model"] for row in found["overhead"]} == {"mini-unet", *list(SMALL)[:2]}
    assert {row["arm"] for row in found["overhead"]} >= {"bare", "bare again", "sum", "mean", "heads"}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps():
    for row in memory.measure(None, rounds=1):
        assert (row["growth"] > 1.1) if row["arm"] == peer.NAME else (row["growth"] <= 1.03), row


@pytest.mark.slow
def test_the_command_keeps_to_its_budget():
    bare, recorded = command.measure(None, rounds=1)
    assert recorded["seconds"] <= 15
    assert max(bare["peak_MB"], recorded["peak_MB"]) <= 1536
