"""The benchmarks measure what they say, and what they measure keeps to its bounds."""

import time

import pytest

from benchmarks import command, exactness, memory
from benchmarks.turns import ratios
from probe.models.mini_unet import MiniUNet


def test_arms_take_turns_and_are_compared_within_their_round():
    order = []

    def arm(name: str, seconds: float):
        return lambda: (order.append(name), time.sleep(seconds))

    rows = ratios({"bare": arm("bare", 0.01), "slow": arm("slow", 0.03)}, rounds=2)
    assert order[2:] in (["bare", "slow", "slow", "bare"], ["slow", "bare", "bare", "slow"])
    assert [row["arm"] for row in rows] == ["bare", "slow"]
    assert rows[0]["ratio"] == 1 and rows[1]["ratio"] > 1.5


def test_what_is_read_is_the_plain_softmax():
    for row in exactness.measure(MiniUNet.tiny(), rounds=1):
        assert row["sites"] >= 17
        assert float(row["difference"]) <= float(row["goal"])
        assert float(row["fp16_storage_adds"]) <= 2.5e-4


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps():
    for row in memory.measure(None, rounds=1):
        assert row["growth"] <= 1.03, row


@pytest.mark.slow
def test_the_command_keeps_to_its_budget():
    bare, recorded = command.measure(None, rounds=1)
    assert recorded["seconds"] <= 15
    assert max(bare["peak_MB"], recorded["peak_MB"]) <= 1536
