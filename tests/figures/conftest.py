import numpy as np
import pytest

from tests.figures.tiny_traces import made_trace
from toushi.probe.text.alignment import Word
from toushi.probe.trace.picture_trace import Trace

PICTURE = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
LEFT = np.zeros((64, 64), bool)
LEFT[20:44, 4:28] = True
PROMPT = "左边是猫，右边是月亮，夜晚"


@pytest.fixture(scope="session")
def trace(tmp_path_factory) -> Trace:
    return made_trace(tmp_path_factory.mktemp("made") / "run", PROMPT, PICTURE, {Word("猫", 3, 4): LEFT}, steps=4)


@pytest.fixture
def traced(tmp_path):
    """traced(prompt, **options) -> a small trace of that prompt."""

    def make(prompt: str, picture=PICTURE, **options) -> Trace:
        return made_trace(tmp_path / "run", prompt, picture, {}, **({"steps": 2} | options))

    return make
