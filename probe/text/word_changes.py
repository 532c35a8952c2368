"""The text of a prompt with some of its words left out or replaced."""

import itertools
from collections.abc import Iterable

from toushi.probe.base.errors import ToushiError
from toushi.probe.text.alignment import WordSpec, find_word, segment


class OverlappingWords(ToushiError):
    """Two changes of one place of a prompt."""


def replace_words(prompt: str, changes: Iterable[tuple[WordSpec, str]]) -> str:
    """The prompt in which each of these words is the text beside it; an empty text leaves the word out.

    A word that is left out between two spaces, or at an end of the prompt, takes one space with it. Raises UnknownWord
    and AmbiguousWord for a word that the prompt does not have once, and OverlappingWords.
    """
    words = segment(prompt)
    places = sorted((find_word(prompt, words, word), text) for word, text in changes)
    for ((_, end), _), ((start, other), _) in itertools.pairwise(places):
        if start < end:
            raise OverlappingWords(f"two changes meet at {prompt[start:other]!r}: name each word once")
    for (start, end), text in reversed(places):
        before, after = prompt[:start], prompt[end:]
        if not text and after.startswith(" ") and (not before or before.endswith(" ")):
            after = after[1:]
        elif not text and not after and before.endswith(" "):
            before = before[:-1]
        prompt = before + text + after
    return prompt
