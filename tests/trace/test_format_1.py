"""Traces of format version 1 open, verify and give the same maps.

format_1/ was written by the code of version 1 with MiniUNet.tiny(): `picture` by `record(…, keep="mean", steps=[0, 2])`,
`encoder` by what is now `record_texts`. expected.npz holds what that code read from them.
"""

from pathlib import Path

import numpy as np
import pytest

from toushi.probe.trace.open import open_encoder_trace, open_trace

FOLDER = Path(__file__).parent / "format_1"


@pytest.fixture(scope="module")
def expected():
    with np.load(FOLDER / "expected.npz") as data:
        return dict(data)


def test_a_picture(expected):
    trace = open_trace(FOLDER / "picture")
    assert trace.manifest.version == 1 and trace.complete and trace.verify() == []
    assert [word.text for word in trace.words()] == ["左边", "是", "猫", "月亮"] and trace.steps == [0, 2]
    found = {f"heat_map/{word.text}": trace.heat_map(word) for word in trace.words()}
    found |= {f"mass/{branch}": trace.mass(branch) for branch in trace.branches}
    found |= {"attention": trace.attention("猫"), "encoder_states": trace.encoder_states()}
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert trace.image().shape == (32, 16, 3) and trace.preview(2).dtype == np.uint8


def test_texts(expected):
    trace = open_encoder_trace(FOLDER / "encoder")
    assert trace.manifest.version == 1 and trace.complete and trace.verify() == []
    assert trace.texts == ["河边", "a cat"]
    for number in range(len(trace)):
        encoding = trace.encoding(number)
        np.testing.assert_array_equal(encoding.word_states(), expected[f"states/{number}"])
        np.testing.assert_array_equal(encoding.word_attention(), expected[f"word_attention/{number}"])
