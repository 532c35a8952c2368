"""States and attention of a text encoder for texts, layer by layer, by token and by word."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import Span, Token, Word, find_word, token_shares

OTHER, SPECIAL = "(other text)", "(special)"  # keys beside the words: punctuation and spaces; tokens without text


class NotReadable(ToushiError):
    """The attention of this encoder cannot be read."""


@dataclass(frozen=True)
class TextEncoding:
    """One text. Layer 0 is the embeddings; layer k of n turns state k - 1 into state k and has attention k.

    State k is the output of layer k. A norm after the last layer, if the encoder has one, is only in `final`, the output
    of the encoder.
    """

    text: str
    tokens: tuple[Token, ...]
    words: tuple[Word, ...]  # those with a token
    lost: tuple[Word, ...]  # words that were cut, or that the tokenizer leaves out
    unknown: tuple[Word, ...]  # words that the encoder's vocabulary lacks: it gets <unk> in their place
    states: xr.DataArray  # fp32 [layer, token, feature]
    final: xr.DataArray  # fp32 [token, feature]
    blind: dict[int, str] = field(repr=False)  # layers whose attention could not be read, with the reason
    recorded_attention: xr.DataArray | None = field(repr=False)  # None if a layer is blind

    @property
    def attention(self) -> xr.DataArray:
        """Probabilities, fp32 [layer, head, query, token]; layers from 1. Each query's sum to 1."""
        if self.recorded_attention is None:
            layer, why = next(iter(self.blind.items()))
            raise NotReadable(f"the attention of layer {layer} cannot be read: it {why}")
        return self.recorded_attention

    def word_states(self, words: Sequence | None = None) -> xr.DataArray:
        """fp32 [layer, word, feature]: the mean of a word's tokens.

        A token counts with the share of its characters that lie in the word: 河 of a token 河边 weighs one half, each
        of the four tokens of 𰻝 weighs one. `words`: Word, text, "猫#2" or span; all by default.
        """
        spans = self.spans(words)
        pooled = self.means(spans) @ self.states.values.astype(np.float64)
        return xr.DataArray(
            pooled.astype(np.float32),
            dims=("layer", "word", "feature"),
            coords={"layer": self.states["layer"].values, "word": self.names(spans)},
        )

    def word_attention(self, words: Sequence | None = None) -> xr.DataArray:
        """fp32 [layer, head, query, word]: how much each word (`query`) attends to each word, and to all else.

        Attention to a word is the sum over its tokens, each with the share of its characters in the word. Attention of a
        word is the mean over its tokens, as in `word_states`. Two more columns, "(other text)" and "(special)", hold the
        attention to text outside of these words and to tokens that stand for no text. So each row sums to 1, if no two
        words overlap.
        """
        return self.by_word(self.attention.values, words)

    def by_word(self, read: np.ndarray, words: Sequence | None = None) -> xr.DataArray:
        """Attention of tokens to tokens [layer, head, query, token], layers from 1, by word as in `word_attention`."""
        spans = self.spans(words)
        columns = np.array([token_shares(self.tokens, span) for span in spans]).reshape(len(spans), len(self.tokens))
        inside = np.zeros(len(self.text), bool)
        for start, end in spans:
            inside[start:end] = True
        special = np.array([token.span is None or token.span[0] == token.span[1] for token in self.tokens], float)
        free = [
            float((~inside[slice(*token.span)]).mean()) if token.span and not none else 0.0
            for token, none in zip(self.tokens, special)
        ]
        columns = np.concatenate([columns, [free], [special]])
        summed = self.means(spans) @ read.astype(np.float64) @ columns.T
        names = self.names(spans)
        return xr.DataArray(
            summed.astype(np.float32),
            dims=("layer", "head", "query", "word"),
            coords={"layer": np.arange(1, len(read) + 1), "query": names, "word": [*names, OTHER, SPECIAL]},
        )

    def spans(self, words: Sequence | None = None) -> list[Span]:
        """The characters of the words that are asked for, in order; all words of the text by default."""
        if words is None:
            return [word.span for word in self.words]
        if isinstance(words, str | Word):
            raise ToushiError(f"expected a list of words, but {words!r} came; write [{words!r}]")
        return [find_word(self.text, [*self.words, *self.lost], word) for word in words]

    def means(self, spans: Sequence[Span]) -> np.ndarray:
        """[word, token], each row sums to 1."""
        weights = np.array([token_shares(self.tokens, span) for span in spans]).reshape(len(spans), len(self.tokens))
        total = weights.sum(1, keepdims=True)
        for span, own in zip(spans, total[:, 0]):
            if not own:
                word = self.text[slice(*span)]
                raise ToushiError(f"the encoder has no token for {word!r} at {span[0]}–{span[1]} of {self.text!r:.60}")
        return weights / total

    def names(self, spans: Sequence[Span]) -> list[str]:
        """Texts of the spans, numbered (#1, #2, …) where one occurs several times among the words."""
        return span_names(self.text, self.words, spans)


def span_names(text: str, words: Sequence[Word], spans: Sequence[Span]) -> list[str]:
    """Texts of the spans, numbered (#1, #2, …) where one occurs several times among the words and the spans."""
    places: dict[str, list[Span]] = {}
    for span in sorted({word.span for word in words} | set(spans)):
        places.setdefault(text[slice(*span)], []).append(span)
    names = []
    for span in spans:
        name = text[slice(*span)]
        names.append(f"{name}#{places[name].index(span) + 1}" if len(places[name]) > 1 else name)
    return names


@dataclass(frozen=True)
class TextEncodings:
    """States and attention of one encoder for several texts, in their order."""

    encoder: str
    encodings: Sequence[TextEncoding]  # in memory, or read from a trace one by one

    def __len__(self) -> int:
        return len(self.encodings)

    def __iter__(self) -> Iterator[TextEncoding]:
        return iter(self.encodings)

    def __getitem__(self, index: int) -> TextEncoding:
        return self.encodings[index]

    def states_of(self, word: str | Sequence) -> xr.DataArray:
        """fp32 [layer, text, feature]: the same word in every text, or a list with the word of each text."""
        asked = [word] * len(self) if isinstance(word, str) else list(word)
        if len(asked) != len(self):
            raise ToushiError(f"expected one word, or one for each of {len(self)} texts, but {len(asked)} came")
        states = [encoding.word_states([one]).isel(word=0, drop=True) for encoding, one in zip(self, asked)]
        return xr.concat(states, dim="text").transpose("layer", "text", "feature")
