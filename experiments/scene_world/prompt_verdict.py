"""What a prompt asks of the scene world, whether its picture has it, and why not.

    prompt_verdict("左边是蓝色的狗", picture).objects[0].reason == "colour"    # no picture of training had a blue dog

Nothing is learnt: the words of a prompt are looked up in the lists from which the captions of training were made.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from types import ModuleType
from typing import Literal

import numpy as np

from toushi.experiments.scene_world import grammar_en, grammar_zh
from toushi.experiments.scene_world.objects import COLOURS, KINDS
from toushi.experiments.scene_world.recogniser import Detection, Recognition, has_colour, recognise
from toushi.experiments.scene_world.scenes import colour_is_held_out, pair_is_held_out
from toushi.experiments.scene_world.senses import SENSES
from toushi.probe.text.alignment import segment, word_class

Reason = Literal["", "chance", "colour", "held_out_colour", "held_out_pair"]


@dataclass(frozen=True)
class AskedObject:
    """An object that the prompt asks for. `kinds` are several for a word with several meanings."""

    word: str
    kinds: tuple[str, ...]
    colour: str | None


@dataclass(frozen=True)
class ObjectVerdict:
    """What the picture has of it. `reason`, if something is wrong:

    colour           no picture of training had this kind in this colour, because the kind takes none
    held_out_colour  the kind takes colours, but this one was kept out of training
    held_out_pair    two kinds of this prompt were never together in training
    chance           nothing of this: the model knows it, and often draws it with another seed
    """

    request: AskedObject
    detection: Detection | None
    right_colour: bool | None  # None if no colour was asked for, or the style has none
    reason: Reason

    @property
    def right(self) -> bool:
        return self.detection is not None and self.right_colour is not False


@dataclass(frozen=True)
class PromptVerdict:
    objects: tuple[ObjectVerdict, ...]
    unknown: dict[str, tuple[str, ...]]  # word that is not of this world -> names of objects that contain it
    extra: tuple[Detection, ...]  # objects that nobody asked for


def prompt_verdict(prompt: str, picture: np.ndarray | Recognition) -> PromptVerdict:
    """The verdict on a picture uint8 [64, 64, 3], or on its recognition."""
    recognition = picture if isinstance(picture, Recognition) else recognise(picture)
    requests, left = asked_objects(prompt), list(recognition.objects)
    matched: dict[int, Detection] = {}
    for needs_colour in (True, False):  # the blue cat goes to who asked for one
        for i, one in enumerate(requests):
            fit = (thing for thing in left if thing.kind in one.kinds)
            fit = (thing for thing in fit if has_colour(thing, one.colour) or not needs_colour)
            if i not in matched and (thing := next(fit, None)) is not None:
                matched[i] = thing
                left.remove(thing)
    verdicts = []
    for i, one in enumerate(requests):
        detection, colour = matched.get(i), None
        if one.colour is not None and recognition.style == "flat":
            colour = detection is not None and has_colour(detection, one.colour)
        right = detection is not None and colour is not False
        verdicts.append(ObjectVerdict(one, detection, colour, "" if right else _reason(one, detection, requests)))
    return PromptVerdict(tuple(verdicts), unknown_words(prompt), tuple(left))


def asked_objects(prompt: str) -> list[AskedObject]:
    """The objects that the prompt names, each with the colour that stands before it in the same part of the sentence."""
    found: list[AskedObject] = []
    colour: str | None = None
    for match in _pattern().finditer(prompt):
        word = match[0].lower()
        if match.lastgroup == "stop":
            colour = None
        elif match.lastgroup == "colour":
            colour = _colours()[word]
        else:
            found.append(AskedObject(match[0], _names()[match["name"].lower()], colour))
            colour = None
    return found


def unknown_words(prompt: str) -> dict[str, tuple[str, ...]]:
    """The nouns, adjectives and Latin words of the prompt that no caption of training had -> names that contain them."""
    covered = [match.span() for match in _pattern().finditer(prompt) if match.lastgroup != "stop"]
    contexts = [sense for sense in SENSES.values() if sense.word.lower() in prompt.lower()]
    known = _words((*_grammar(), *(text for sense in contexts for text in (*sense.before, *sense.after))))
    unknown = {}
    for word in segment(prompt):
        free = all(word.end <= start or end <= word.start for start, end in covered)
        text = word.text.lower()
        if free and text not in known and text.rstrip("s") not in known and word_class(word.text) in "neza":
            noun = (
                re.sub(rf"^[一两三](?:{'|'.join({kind.measure for kind in KINDS.values()})})", "", word.text)
                or word.text
            )
            unknown[noun] = tuple(name for name in _names() if noun in name and not name.isascii())
    return unknown


def _reason(request: AskedObject, detection: Detection | None, everything: list[AskedObject]) -> Reason:
    kinds = [KINDS[kind] for kind in request.kinds]
    if request.colour is not None and not any(kind.colourable for kind in kinds):
        return "colour"
    if all(colour_is_held_out(request.colour, kind.name) for kind in kinds):
        return "held_out_colour"
    pairs = (pair for pair in combinations(everything, 2) if request in pair)
    if detection is None and any(pair_is_held_out(a.kinds[0], b.kinds[0]) for a, b in pairs):
        return "held_out_pair"
    return "chance"


@cache
def _names() -> dict[str, tuple[str, ...]]:
    """Name of an object in either language -> its kinds."""
    names: dict[str, tuple[str, ...]] = {}
    for kind in KINDS.values():
        for name in (*kind.zh, *kind.en):
            names[name.lower()] = (*names.get(name.lower(), ()), kind.name)
    for sense in SENSES.values():
        kinds = names.get(sense.word.lower(), ())
        names[sense.word.lower()] = kinds if sense.kind in kinds else (*kinds, sense.kind)
    return names


@cache
def _colours() -> dict[str, str]:
    chinese = {word: colour for colour, words in grammar_zh.COLOURS.items() for word in words}
    return {colour: colour for colour in COLOURS} | chinese


@cache
def _pattern() -> re.Pattern[str]:
    """The longest names first: 猫头鹰 is no 猫, and hot dog no dog."""

    def either(words: Iterable[str]) -> str:
        longest = sorted(words, key=lambda word: -len(word))
        return "|".join(rf"\b{re.escape(word)}\b" if word.isascii() else re.escape(word) for word in longest)

    plural = "|".join(rf"\b{re.escape(name)}(?=s\b)" for name in _names() if name.isascii())
    return re.compile(
        rf"(?P<name>{either(_names())}|{plural})|(?P<colour>{either(_colours())})|(?P<stop>[，。、；,.;]|\band\b|和)",
        re.IGNORECASE,
    )


@cache
def _grammar() -> tuple[str, ...]:
    """The texts of which captions are made, without names of objects and without the contexts of words with several meanings."""
    constants = (text for module in (grammar_zh, grammar_en) for text in _texts(_constants(module)))
    return tuple(re.sub(r"\{[^}]*\}", " ", text) for text in (*constants, "背景是"))


@cache
def _words(texts: tuple[str, ...]) -> frozenset[str]:
    return frozenset(word.text for text in texts for word in segment(text.lower()))


def _constants(module: ModuleType) -> list[object]:
    """The constants of a module."""
    return [value for name, value in vars(module).items() if name.isupper()]


def _texts(values: Iterable[object]) -> Iterable[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from _texts(value.values())
        elif isinstance(value, tuple):
            yield from _texts(value)
