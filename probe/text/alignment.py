"""From tokens to words: which characters of the prompt a token stands for, and how much a word owns.

Every position is a code point of the raw prompt, so `prompt[start:end]` is always the text that is meant.
"""

import difflib
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np

from toushi.probe.base.errors import ToushiError

Span = tuple[int, int]


class UnreadablePrompt(ToushiError):
    """The prompt is not text that can be encoded."""


class UnknownWord(ToushiError):
    """The word that was asked for is not in the prompt, or lies inside a longer word."""


class AmbiguousWord(ToushiError):
    """The text that was asked for stands for several places; `spans` has them in order."""

    def __init__(self, message: str, spans: Sequence[Span]):
        super().__init__(message)
        self.spans = tuple(spans)


@dataclass(frozen=True)
class Token:
    id: int | None  # in the encoder's vocabulary; None where it is not known
    text: str  # as a reader wants it: the characters of the span, never the bytes
    span: Span | None  # characters of the raw prompt; None for what the prompt does not contain
    kind: str  # text | template | special | pad
    encoders: tuple[str, ...]
    position: int  # in the encoder's sequence
    column: int | None  # in the denoiser's text keys; None when the pipeline drops the token


@dataclass(frozen=True)
class Word:
    text: str
    start: int
    end: int

    @property
    def span(self) -> Span:
        return self.start, self.end


WordSpec = str | Word | Span  # a word as users ask for it: "猫", "猫#2", a Word, or its characters


def readable(prompt: object) -> str:
    """The prompt itself, when it is text that every encoder can take (a str without lone surrogates)."""
    if not isinstance(prompt, str):
        raise UnreadablePrompt(f"A prompt must be a str, but {type(prompt).__name__} came: {prompt!r:.80}.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UnreadablePrompt(
            f"Character {error.start} of the prompt is a lone surrogate, U+{ord(prompt[error.start]):04X}; "
            "it is half of a character. Decode the text as UTF-8 and pass it again."
        ) from None
    return prompt


# --- words ----------------------------------------------------------------------------------------------


def _shape(character: str) -> str:
    """One letter for the sort of a character: H han, L letter, D digit, M mark, E emoji, R flag half,
    V emoji modifier, J joiner, S space, or punctuation (- . ' as themselves, else P)."""
    code, category = ord(character), unicodedata.category(character)
    if character in "-_":
        return "-"
    if character in ".'":
        return character
    if character == "’":
        return "'"
    if code == 0x200D:
        return "J"
    if code in (0xFE0E, 0xFE0F, 0x20E3) or 0x1F3FB <= code <= 0x1F3FF or 0xE0020 <= code <= 0xE007F:
        return "V"
    if 0x1F1E6 <= code <= 0x1F1FF:
        return "R"
    # Characters younger than Python's tables are "Cn"; planes 2 and 3 hold nothing but Han.
    if 0x20000 <= code <= 0x3FFFF or character in "〇々" or "CJK" in unicodedata.name(character, ""):
        return "H" if category[0] in "LNC" else "P"
    if category == "Nd":
        return "D"
    if category[0] in "LN":
        return "L"
    if category[0] == "M":
        return "M"
    if category == "So" or 0x1F000 <= code <= 0x1FAFF:
        return "E"
    return "S" if character.isspace() else "P"


# rjieba cuts every letter outside a-z and every emoji apart; no word begins strictly inside one of these.
_WHOLE = re.compile(r"[LDEHP](?:V|JE)+|RR|HM+|(?<=[LDM])'[LM]+|(?:[LDM]|(?<=[LDM])[-J](?=[LD])|(?<=D)\.(?=D))+")


def segment(prompt: str) -> list[Word]:
    """The words of a prompt in order. Punctuation and spaces are no words; an emoji is one.

    Only words of rjieba's dictionary are joined: its hidden Markov model would invent others, and then a
    plain 鹅 could not be asked for. `cat's` is the words `cat` and `'s`.
    """
    import rjieba

    prompt = readable(prompt)
    starts = {start for _, start, _ in rjieba.tokenize(prompt, hmm=False)}
    shapes = "".join(map(_shape, prompt))
    for whole in _WHOLE.finditer(shapes):
        starts -= set(range(whole.start() + 1, whole.end()))
    edges = sorted(starts | {0, len(prompt)})
    return [
        Word(prompt[start:end], start, end)
        for start, end in itertools.pairwise(edges)
        if set(shapes[start:end]) & set("HLDER")
    ]


@lru_cache
def segmenter() -> dict[str, str]:
    """What `segment` is, for the manifest. The dictionary is compiled into rjieba, so its file is hashed."""
    import rjieba

    binary = next(Path(rjieba.__file__).parent.glob("rjieba.*[sd]*"))
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    return {"name": "rjieba", "version": metadata.version("rjieba"), "dictionary_sha256": digest}


# --- finding a word -------------------------------------------------------------------------------------


def listed(words: Sequence[Word], most: int = 12) -> str:
    """The words in one line for people, each once: 猫、狗; of many the first ones and how many more there are."""
    texts = list(dict.fromkeys(word.text for word in words))
    return "、".join(texts[:most]) + (f" … and {len(texts) - most} more" if len(texts) > most else "")


def find(prompt: str, words: Sequence[Word], asked: WordSpec) -> Span:
    """The span that `asked` means: a Word, a span, or text ("猫", or "猫#2" for the second 猫).

    Text means a word that equals it; if there is none, a stretch of whole words ("红色的猫") or what lies
    between words ("，"). 猫 is never the 猫 in 猫头鹰. Raises UnknownWord and AmbiguousWord.
    """
    if isinstance(asked, Word):
        if prompt[asked.start : asked.end] != asked.text or not asked.text:
            raise UnknownWord(f"{asked} comes from another prompt; this one is {prompt!r:.80}.")
        return asked.span
    if isinstance(asked, str):
        return _find_text(prompt, words, asked)
    try:
        start, end = asked
        start, end = start.__index__(), end.__index__()
    except (TypeError, ValueError, AttributeError):
        raise UnknownWord(
            f"A word is asked for by text, by Word, or by span (start, end); {asked!r:.80} came."
        ) from None
    if not 0 <= start < end <= len(prompt):
        raise UnknownWord(
            f"The span ({start}, {end}) does not lie in the prompt, which has {len(prompt)} characters; "
            "expected 0 <= start < end <= that."
        )
    return start, end


def _find_text(prompt: str, words: Sequence[Word], asked: str) -> Span:
    spans = _places(prompt, words, asked)
    if len(spans) == 1:
        return spans[0]
    if spans:
        listed = ", ".join(f"{asked}#{n} at {a}–{b}" for n, (a, b) in enumerate(spans, 1))
        raise AmbiguousWord(
            f"{asked!r} stands {len(spans)} times in the prompt: {listed}. "
            f'Say which: "{asked}#1", or the span {spans[0]}.',
            spans,
        )
    numbered = re.fullmatch(r"(.+)#(\d{1,6})", asked, re.DOTALL)
    if numbered:
        text, number = numbered[1], int(numbered[2])
        spans = _places(prompt, words, text)
        if 1 <= number <= len(spans):
            return spans[number - 1]
        if spans:
            raise UnknownWord(f"{text!r} stands {len(spans)} times in the prompt, so there is no {asked!r}.")
        asked = text
    raise UnknownWord(_not_there(prompt, words, asked))


def _places(prompt: str, words: Sequence[Word], text: str) -> list[Span]:
    exact = [word.span for word in words if word.text == text]
    if exact or not text:
        return exact
    found, start = [], prompt.find(text)
    while start >= 0:
        end = start + len(text)
        # A word that reaches across either border is a longer word: this is not the text that was meant.
        if all(w.end <= start or end <= w.start or (start <= w.start and w.end <= end) for w in words):
            found.append((start, end))
        start = prompt.find(text, end)
    return found


def _not_there(prompt: str, words: Sequence[Word], asked: str) -> str:
    if not words:
        return f"The prompt {prompt!r:.40} has no words, so {asked!r} is not in it."
    names = list(dict.fromkeys(word.text for word in words))
    near = difflib.get_close_matches(asked, names, n=3, cutoff=0.5)
    near += [name for name in names if name not in near and set(name.lower()) & set(asked.lower())][:3]
    hint = f"Nearest words: {'、'.join(near[:5])}." if near else f"Its words: {'、'.join(names[:12])}."
    start = prompt.find(asked) if asked else -1
    if start < 0:
        return f"{asked!r} is not in the prompt. {hint}"
    end = start + len(asked)
    holders = "、".join(word.text for word in words if word.start < end and start < word.end)
    return (
        f"{asked!r} is no word of the prompt: there it is only part of {holders}. "
        f"Ask for that word, or for the span ({start}, {end})."
    )


def labels(words: Sequence[Word], among: Sequence[Word]) -> list[str]:
    """What each word is called: its text, with #1, #2, … where the text is more than one of the words `among`."""
    places: dict[str, list[tuple[int, int]]] = {}
    for word in among:
        places.setdefault(word.text, []).append(word.span)
    named = []
    for word in words:
        spans = places.get(word.text, [])
        number = f"#{spans.index(word.span) + 1}" if len(spans) > 1 and word.span in spans else ""
        named.append(word.text + number)
    return named


# --- sharing out mass -----------------------------------------------------------------------------------


def shares(tokens: Sequence[Token], span: Span) -> np.ndarray:
    """float64 [len(tokens)], 0..1: the part of each token's characters that lies inside `span`.

    Over spans that partition the prompt the shares of a token add up to 1, so mass is conserved. Several
    tokens may stand for one character (the four bytes of 𰻝): each counts fully. Tokens without a span,
    such as <bos>, belong to no word.
    """
    start, end = span
    result = np.zeros(len(tokens))
    for index, token in enumerate(tokens):
        if token.span is not None and token.span[0] < token.span[1]:
            first, last = token.span
            result[index] = max(0, min(end, last) - max(start, first)) / (last - first)
    return result
