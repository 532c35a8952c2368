"""Tokens and words of a prompt: spans of its characters, and the share of each token that belongs to a word.

Positions count code points of the raw prompt, so a span (start, end) is always the text `prompt[start:end]`.
"""

import difflib
import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Float

from toushi.probe.base.errors import ToushiError

Span = tuple[int, int]

FOLDER = Path(__file__).parent


class UnreadablePrompt(ToushiError):
    """The prompt is not text that can be encoded."""


class UnknownWord(ToushiError):
    """The word is not in the prompt, or only a part of a longer word."""


class AmbiguousWord(ToushiError):
    """The text occurs several times in the prompt; `spans` has its places in order."""

    def __init__(self, message: str, spans: Sequence[Span]):
        super().__init__(message)
        self.spans = tuple(spans)


@dataclass(frozen=True)
class Token:
    """A piece of text as a tokenizer cuts it, and its places in the text encoder and among the denoiser's text keys."""

    id: int | None  # in the encoder's vocabulary; None where it is not known
    text: str  # for readers: the characters of the span, never the bytes
    span: Span | None  # characters of the raw prompt; None for what the prompt does not contain
    # text | unknown (the vocabulary lacks it; several words may share it) | template | special | pad | image (a part of a
    # picture that the encoder reads)
    kind: str
    encoders: tuple[str, ...]
    position: int  # in the encoder's sequence
    column: int | None  # in the denoiser's text keys; None when the pipeline drops the token

    @property
    def is_text(self) -> bool:
        """Whether it stands for text of the prompt, known to the vocabulary or not."""
        return self.kind in ("text", "unknown")


@dataclass(frozen=True)
class Word:
    """A word of a prompt: `text` is `prompt[start:end]`."""

    text: str
    start: int
    end: int

    @property
    def span(self) -> Span:
        return self.start, self.end


WordSpec = str | Word | Span  # a word as users ask for it: "猫", "猫#2", a Word, or its characters


def validate_prompt(prompt: object) -> str:
    """The prompt itself, a str without lone surrogates, which every encoder can read. Raises UnreadablePrompt."""
    if not isinstance(prompt, str):
        raise UnreadablePrompt(f"A prompt must be a str, but {type(prompt).__name__} came: {prompt!r:.80}.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UnreadablePrompt(
            f"Character {error.start} of the prompt is a lone surrogate, U+{ord(prompt[error.start]):04X}, "
            "half of a character. Decode the text as UTF-8 and pass it again."
        ) from None
    return prompt


# --- words ----------------------------------------------------------------------------------------------


def _character_class(character: str) -> str:
    """One letter for the class of a character.

    H han, L letter, D digit, M mark, E emoji, R half of a flag, V emoji modifier, J joiner, S space; punctuation is P,
    but - . ' , : / are themselves.
    """
    code, category = ord(character), unicodedata.category(character)
    if character in "-_\u2010\u2011":
        return "-"
    if character in ".',:/":
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


# rjieba separates all letters outside a-z and all parts of an emoji. Inside a match of this no word begins.
_UNDIVIDED = re.compile(
    r"[LDEHP,:/](?:V|JE)+|RR|HM+|(?<=[LDM])'[LM]+|"
    r"(?:[LDM]|(?<=[LDM])[-J](?=[LD])|(?<=D)[.:/](?=D)|(?<=D),(?=DDD(?!D)))+"
)


def segment(prompt: str) -> list[Word]:
    """The words of a prompt in order. Punctuation and spaces belong to no word. An emoji is a word.

    Only words of rjieba's dictionary are joined. Its hidden Markov model would invent others, and then a plain 鹅 would
    be no word. Traditional characters are looked up as their simplified forms, which that dictionary has. `cat's` has two
    words, `cat` and `'s`. Raises UnreadablePrompt.
    """
    import rjieba

    prompt = validate_prompt(prompt)
    starts = {start for _, start, _ in rjieba.tokenize(prompt.translate(_simplified_forms()), hmm=False)}
    classes = "".join(map(_character_class, prompt))
    for match in _UNDIVIDED.finditer(classes):
        starts -= set(range(match.start() + 1, match.end()))
    edges = sorted(starts | {0, len(prompt)})
    return [
        Word(prompt[start:end], start, end)
        for start, end in itertools.pairwise(edges)
        if set(classes[start:end]) & set("HLDER")
    ]


@lru_cache
def _simplified_forms() -> dict[int, int]:
    """Traditional character -> simplified one. None of them is in GB 2312, so a simplified prompt stays as it is."""
    traditional, simplified = (FOLDER / "opencc/traditional_to_simplified.txt").read_text(encoding="utf-8").splitlines()
    return str.maketrans(traditional, simplified)


@lru_cache
def segmenter() -> dict[str, str]:
    """Name, version and dictionary of what `segment` uses. The dictionary is compiled into rjieba, whose file is hashed."""
    import rjieba

    binary = next(Path(str(rjieba.__file__)).parent.glob("rjieba.*[sd]*"))
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    return {"name": "rjieba", "version": metadata.version("rjieba"), "dictionary_sha256": digest}


def word_class(text: str) -> str:
    """The part of speech of a word in rjieba's dictionary: n noun, v verb, a adjective, …; e for every Latin word."""
    import rjieba

    return rjieba.tag(text.translate(_simplified_forms()))[0][1][:1] if text else ""


# --- words by name --------------------------------------------------------------------------------------


def join_words(words: Sequence[Word], most: int = 12) -> str:
    """The words in one line for people, each once: 猫、狗. Of many words, the first `most` and the number of the others."""
    texts = list(dict.fromkeys(word.text for word in words))
    return "、".join(texts[:most]) + (f" … and {len(texts) - most} more" if len(texts) > most else "")


def list_words(words: WordSpec | Iterable[WordSpec]) -> list[WordSpec]:
    """Several words as a list. A text, a Word or a span is one word."""
    is_span = isinstance(words, tuple) and bool(words) and all(isinstance(index, int) for index in words)
    if isinstance(words, str | Word) or is_span:
        return [cast(WordSpec, words)]
    return list(cast(Iterable[WordSpec], words))  # a span is a tuple, too, so its type does not tell them apart


def find_word(prompt: str, words: Sequence[Word], word: WordSpec) -> Span:
    """The span of a word, which is given as a Word, a span, or text ("猫", or "猫#2" for the second 猫).

    Text means a word that equals it. If there is none, it means several whole words ("红色的猫"), or what stands
    between words ("，"). 猫 is never the 猫 in 猫头鹰. Raises UnknownWord and AmbiguousWord.
    """
    if isinstance(word, Word):
        if prompt[word.start : word.end] != word.text or not word.text:
            raise UnknownWord(f"{word} comes from another prompt; this one is {prompt!r:.80}.")
        return word.span
    if isinstance(word, str):
        return _find_text(prompt, words, word)
    try:
        start, end = word
        start, end = start.__index__(), end.__index__()
    except (TypeError, ValueError, AttributeError):
        raise UnknownWord(f"A word is text, a Word, or a span (start, end); {word!r:.80} came.") from None
    if not 0 <= start < end <= len(prompt):
        raise UnknownWord(
            f"The span ({start}, {end}) does not lie in the prompt, which has {len(prompt)} characters; "
            f"expected 0 <= start < end <= {len(prompt)}."
        )
    return start, end


def _find_text(prompt: str, words: Sequence[Word], text: str) -> Span:
    spans = _occurrences(prompt, words, text)
    if len(spans) == 1:
        return spans[0]
    if spans:
        places = ", ".join(f"{text}#{n} at {a}–{b}" for n, (a, b) in enumerate(spans, 1))
        raise AmbiguousWord(
            f"{text!r} occurs {len(spans)} times in the prompt: {places}. "
            f'Choose one: "{text}#1", or the span {spans[0]}.',
            spans,
        )
    numbered = re.fullmatch(r"(.+)#(\d{1,6})", text, re.DOTALL)
    if numbered:
        plain, number = numbered[1], int(numbered[2])
        spans = _occurrences(prompt, words, plain)
        if 1 <= number <= len(spans):
            return spans[number - 1]
        if spans:
            count = len(spans)
            many = f"{plain!r} occurs {count} times: write {plain}#1 to {plain}#{count}."
            most = many if count > 1 else f"It occurs once: write {plain!r}."
            raise UnknownWord(f"There is no {text!r} in the prompt. {most}")
        text = plain
    raise UnknownWord(_why_unknown(prompt, words, text))


def _occurrences(prompt: str, words: Sequence[Word], text: str) -> list[Span]:
    wanted = unicodedata.normalize("NFC", text)  # canonically equal text is the same text
    exact = [word.span for word in words if unicodedata.normalize("NFC", word.text) == wanted]
    if exact or not text:
        return exact
    if text not in prompt:
        text = unicodedata.normalize("NFD" if wanted not in prompt else "NFC", text)
    spans, start = [], prompt.find(text)
    while start >= 0:
        end = start + len(text)
        # A word across either end is a longer word: 猫 in 猫头鹰.
        if all(w.end <= start or end <= w.start or (start <= w.start and w.end <= end) for w in words):
            spans.append((start, end))
        start = prompt.find(text, end)
    return spans


def _why_unknown(prompt: str, words: Sequence[Word], text: str) -> str:
    if not words:
        return f"The prompt {prompt!r:.40} has no words, so {text!r} is not in it."
    names = list(dict.fromkeys(word.text for word in words))
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    near += [name for name in names if name not in near and set(name.lower()) & set(text.lower())][:3]
    hint = f"Nearest words: {'、'.join(near[:5])}." if near else f"Its words: {'、'.join(names[:12])}."
    start = prompt.find(text) if text else -1
    if start < 0:
        return f"{text!r} is not in the prompt. {hint}"
    end = start + len(text)
    longer = "、".join(word.text for word in words if word.start < end and start < word.end)
    return (
        f"{text!r} is no word of the prompt, only part of {longer}. "
        f"Ask for that word, or for the span ({start}, {end})."
    )


def occurrences(words: Sequence[Word], prompt_words: Sequence[Word]) -> list[int]:
    """1, 2, … for each word of which the prompt has several; 0 for the others. Canonically equal text is equal."""
    places: dict[str, list[Span]] = {}
    for word in prompt_words:
        places.setdefault(unicodedata.normalize("NFC", word.text), []).append(word.span)
    same = [places.get(unicodedata.normalize("NFC", word.text), []) for word in words]
    return [
        spans.index(word.span) + 1 if len(spans) > 1 and word.span in spans else 0 for word, spans in zip(words, same)
    ]


def word_labels(words: Sequence[Word], prompt_words: Sequence[Word]) -> list[str]:
    """The name of each word: its text, with #1, #2, … where several words of the prompt have that text."""
    return [word.text + f"#{number}" * (number > 0) for word, number in zip(words, occurrences(words, prompt_words))]


# --- shares of tokens -----------------------------------------------------------------------------------


def token_shares(tokens: Sequence[Token], span: Span) -> Float[np.ndarray, " token"]:
    """The share of each token's characters that lies inside `span`, 0..1.

    Over spans that partition the prompt the shares of a token add up to 1, so mass is conserved. Several tokens may
    stand for one character, such as the four bytes of 𰻝: each counts fully. Tokens without a span, such as <bos>,
    belong to no word.
    """
    start, end = span
    result = np.zeros(len(tokens))
    for index, token in enumerate(tokens):
        if token.span is not None and token.span[0] < token.span[1]:
            first, last = token.span
            result[index] = max(0, min(end, last) - max(start, first)) / (last - first)
    return result


def unknown_words(words: Sequence[Word], tokens: Sequence[Token]) -> list[Word]:
    """The words that have tokens, all of the kind `unknown`: the encoder reads <unk> in their place."""
    return [word for word in words if _unknown_tokens(tokens, word.span)]


def same_unknown(words: Sequence[Word], tokens: Sequence[Token], span: Span) -> list[Word]:
    """The words that share unknown tokens with these characters, whose tokens are all unknown. They have one map."""
    own = _unknown_tokens(tokens, span)
    return [word for word in words if own & _unknown_tokens(tokens, word.span)]


def _unknown_tokens(tokens: Sequence[Token], span: Span) -> set[int]:
    """The places among `tokens` of those that have a share in the span, if all of them are unknown."""
    own = [index for index, share in enumerate(token_shares(tokens, span)) if share]
    return set(own) if all(tokens[index].kind == "unknown" for index in own) else set()
