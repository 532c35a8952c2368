"""Values of a call as JSON: equal values are described equally, and different ones differently."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from toushi.probe.pipelines.json_values import MAX_LENGTH, json_value, seed_of


@dataclass
class Settings:
    scale: float
    hub_token: str


DIFFERENT = [
    [0.5, 1],
    [0.5, 2],
    float("inf"),
    "a",
    {"scale": 0.3},
    {"scale": 0.4},
    Settings(0.3, "abc"),
    torch.zeros(2, 2),
    torch.zeros(4),
    torch.ones(2, 2),
    torch.ones(2, 2, dtype=torch.bfloat16),
    np.ones((2, 2)),
    Image.new("RGB", (2, 2)),
    Image.new("RGB", (4, 1)),
    [torch.zeros(1)],
    [0] * MAX_LENGTH,
    [1] * MAX_LENGTH,
    torch.Generator().manual_seed(3),
    torch.Generator().manual_seed(4),
    torch.float16,
    print,
    object(),
]


def test_different_values_are_described_differently_and_briefly():
    described = [json.dumps(json_value(value), allow_nan=False) for value in DIFFERENT]
    assert len(set(described)) == len(DIFFERENT) and max(map(len, described)) <= MAX_LENGTH
    assert "abc" not in "".join(described)


@pytest.mark.parametrize(("one", "other"), [((1, 2), [1, 2]), ({3, 1}, {1, 3}), (np.float64(0.5), 0.5)])
def test_equal_values_are_described_equally(one, other):
    assert json_value(one) == json_value(other)


def test_secrets_are_not_shown():
    assert json_value({"token": "abc", "inner": {"api_key": "abc"}}) == {
        "token": "(secret)",
        "inner": {"api_key": "(secret)"},
    }


def test_the_seed_of_a_generator_that_was_used_is_not_known():
    generator = torch.Generator().manual_seed(2**40)
    assert seed_of(generator) == 2**40
    torch.rand(1, generator=generator)
    assert seed_of(generator) is None and seed_of(generator.manual_seed(5)) == 5
    assert json_value(generator)["seed"] == 5
