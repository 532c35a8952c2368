import pytest

from tests.text.prompts import TEXTS
from toushi.probe.text.bpe import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=420)
