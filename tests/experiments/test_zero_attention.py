"""A column for each word, each drawn without it."""

import numpy as np

from toushi.experiments.measures.zero_attention import Config, pictures
from toushi.probe.models.mini_unet import MiniUNet


def test_every_word_has_its_column():
    config = Config("猫和月亮，猫", seeds=2, steps=2)
    found = pictures(MiniUNet.tiny(), config)
    assert [name for _, name in found] == ["as it is", "without 猫", "without 和", "without 月亮", "without 猫"]
    (whole,), *without = [column for column, _ in found]
    assert whole.shape == (128, 64, 3) and all(not np.array_equal(whole, one) for (one,) in without)
    assert [name for _, name in pictures(MiniUNet.tiny(), Config("猫", words=("猫",), seeds=1, steps=1))] == [
        "as it is",
        "without 猫",
    ]
