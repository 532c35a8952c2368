import pytest

from probe.text.bpe import Tokenizer
from tests.text.prompts import TEXTS


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=420)
