"""Byte-level BPE for Chinese and English: any text can be encoded, nothing is ever unknown.

The vocabulary begins with <bos>, <eos>, <pad> and the 256 bytes. There is no normaliser, so the tokens of a prompt,
joined, are its UTF-8 bytes. Spans follow from that.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from toushi.probe.base.atomic_io import write_atomic
from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import Span, Token, Word, segment, validate_prompt

SPECIALS = ("<bos>", "<eos>", "<pad>")

# Merges stay inside a match: Han, other letters, one digit, punctuation, each with one space before it.
PIECES = r"'\p{L}+| ?\p{Han}+| ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+"


class BadTokenizer(ToushiError):
    """A tokenizer file that cannot be used, or a vocabulary that cannot be trained."""


@dataclass(frozen=True)
class Encoding:
    prompt: str
    ids: tuple[int, ...]  # <bos> … <eos>, no padding, at most Tokenizer.length
    tokens: tuple[Token, ...]
    lost: tuple[Word, ...]  # words that were cut, whole or in part

    @property
    def cut(self) -> int | None:
        """The first character of the words that were cut; None if there are none."""
        return self.lost[0].start if self.lost else None


class Tokenizer:
    length = 77

    def __init__(self, inner: tokenizers.Tokenizer):
        vocabulary = inner.get_vocab()
        missing = [entry for entry in (*SPECIALS, *pre_tokenizers.ByteLevel.alphabet()) if entry not in vocabulary]
        if missing:
            raise BadTokenizer(f"The vocabulary lacks {' '.join(missing[:8])}: not a tokenizer of this project.")
        # "<eos>" in a prompt means these five characters.
        inner.encode_special_tokens = True
        self._inner = inner
        self.vocab_size = inner.get_vocab_size()
        self.bos, self.eos, self.pad = (vocabulary[name] for name in SPECIALS)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """A tokenizer with at most `vocab_size` entries; fewer when the texts have no more pairs to merge.

        Pairs are counted inside words, so that no learned merge crosses a word: captions from templates would otherwise
        make 左边是 one token. In use, merges run over matches of PIECES, as in other BPE.
        """
        smallest = len(SPECIALS) + 256
        if vocab_size < smallest:
            raise BadTokenizer(f"vocab_size must be at least {smallest} (bytes and specials); {vocab_size} came.")
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator((list(_by_word(text)) for text in texts), trainer)
        return cls(inner)

    def __reduce__(self):
        return _from_text, (self._inner.to_str(),)

    def save(self, path: str | Path) -> None:
        """Writes tokenizer.json."""
        write_atomic(Path(path), self._inner.to_str(pretty=True))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer of a tokenizer.json that `save` wrote. Raises BadTokenizer."""
        try:
            text = Path(path).read_text(encoding="utf-8")
            json.loads(text)
            inner = tokenizers.Tokenizer.from_str(text)
        except FileNotFoundError:
            raise BadTokenizer(f"No tokenizer at {path}; expected a tokenizer.json saved by Toushi.") from None
        except Exception as error:  # `tokenizers` raises plain Exception
            raise BadTokenizer(f"{path} is not a readable tokenizer.json: {error}") from None
        return cls(inner)

    def encode(self, prompt: str) -> Encoding:
        """The prompt between <bos> and <eos>, cut at a whole character. `lost` has the words that did not fit."""
        prompt = validate_prompt(prompt)
        pieces = self._inner.encode(prompt, add_special_tokens=False)
        spans = _character_spans(prompt, pieces.tokens)
        count = min(len(spans), self.length - 2)
        while 0 < count < len(spans) and spans[count][0] < spans[count - 1][1]:
            count -= 1
        end = spans[count][0] if count < len(spans) else len(prompt)
        ids = (self.bos, *pieces.ids[:count], self.eos)
        tokens = (
            _special_token(self.bos, SPECIALS[0], 0),
            *(_text_token(pieces.ids[i], prompt, spans[i], i + 1) for i in range(count)),
            _special_token(self.eos, SPECIALS[1], count + 1),
        )
        lost = tuple(word for word in segment(prompt) if word.end > end) if end < len(prompt) else ()
        return Encoding(prompt, ids, tokens, lost)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids without specials. Bytes that make no whole character become U+FFFD."""
        specials = {self.bos, self.eos, self.pad}
        return self._inner.decode([id for id in ids if id not in specials], skip_special_tokens=False)


def _from_text(text: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text))


def _special_token(id: int, text: str, position: int) -> Token:
    return Token(id, text, None, "special", encoders=("encoder",), position=position, column=position)


def _text_token(id: int, prompt: str, span: Span, position: int) -> Token:
    # " red" stands for "red". With the space, a quarter of its mass would belong to no word.
    start, end = span
    text = prompt[start:end]
    if text.strip():
        start, end = start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())
    return Token(id, prompt[start:end], (start, end), "text", ("encoder",), position, position)


def _by_word(text: str) -> Iterator[str]:
    """The text cut after each word. Spaces and punctuation belong to the word behind them."""
    start = 0
    for word in segment(text):
        yield text[start : word.end]
        start = word.end
    yield text[start:]


def _character_spans(prompt: str, pieces: Sequence[str]) -> list[Span]:
    """The characters that each token touches. In the byte alphabet one character is one byte."""
    owner = [index for index, character in enumerate(prompt) for _ in character.encode()]
    if sum(map(len, pieces)) != len(owner):
        raise BadTokenizer("The tokens do not add up to the bytes of the prompt: the tokenizer has a normaliser.")
    spans, start = [], 0
    for piece in pieces:
        spans.append((owner[start], owner[start + len(piece) - 1] + 1))
        start += len(piece)
    return spans
