"""Places in captions of the scene world, and what is read there: the data of `layer_semantics`.

Three levels. *Words*: which object is this word? The names are Chinese and English, usual and less usual (猫 猫咪 cat,
伞 雨伞 umbrella), and the label is the object, not the spelling. *Phrases*: of two coloured objects, which colour belongs
to this noun, and which noun to this colour? Only the other word tells. *Prompts*: place, layout, style and number of
objects of the whole scene, read at one of its nouns, and at the last token. Labels are about equally frequent by
construction. Captions are those of the scene world, so there are many templates.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from toushi.experiments.scene_world.captions import Caption, Part, describe
from toushi.experiments.scene_world.objects import KINDS, PLAIN
from toushi.experiments.scene_world.scenes import PLACES, STYLES, Object, Scene

COLUMNS = ("task", "level", "where", "text", "start", "end", "label", "type", "template")
LEVELS = ("words", "phrases", "prompts")
NAMED = ("cat", "cow", "koala", "whale", "rooster", "flower", "umbrella", "sunglasses", "shirt", "fire", "car",
         "bicycle", "television", "clock", "airplane", "phone")  # fmt: skip
NOUNS = ("cat", "fish", "bird", "hat", "book", "balloon", "chair", "teapot")
COLOURED = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SIDES = ("left", "right", "top", "bottom")
LAST_TOKEN = -1  # the start of a unit that is the last token, wherever the text ends


def units(pool: str, count: int, seed: int) -> pd.DataFrame:
    """About `count` places for each task of a pool: words, phrases, prompts or numbers."""
    random = np.random.default_rng([seed, list(POOLS).index(pool)])
    return pd.DataFrame(POOLS[pool](count, random), columns=COLUMNS)


def _words(count: int, random: np.random.Generator) -> Iterator[tuple]:
    languages = ("zh", "en")
    names = [(kind, language, name) for kind in NAMED for language in languages for name in KINDS[kind].names(language)]
    for index in range(count):
        kind, language, name = names[index % len(names)]
        others = [other for other in PLAIN if other not in NAMED]

        def scene(kind: str = kind, others: list[str] = others) -> Scene:
            things = [kind, *random.choice(others, size=random.integers(2), replace=False).tolist()]
            random.shuffle(things)
            return _scene(things, random, place=_choose(random, PLACES[:9]))

        caption, part = _describe_until(scene, language, random, lambda _, text, name=name: text == name)
        yield ("object", "words", "word", caption.text, part.start, part.end, kind, name, caption.template)


def _phrases(count: int, random: np.random.Generator) -> Iterator[tuple]:
    for index in range(count // 2):
        kinds = [NOUNS[index % 8], NOUNS[(index + 1 + index // 8 % 7) % 8]]  # each as often as any other
        shades = random.permutation(COLOURED)[:2].tolist()  # whatever the nouns are

        def scene(kinds: list[str] = kinds, shades: list[str] = shades) -> Scene:
            return _scene(kinds, random, colours=shades, layout=_choose(random, ("row", "row", "column")))

        caption, _ = _describe_until(scene, "zh", random, lambda part, _: part.role == "object")
        for thing, (kind, colour) in enumerate(zip(kinds, shades)):
            phrase = f"{colour} {kind}"
            for role, task, label in (("object", "colour", colour), ("colour", "noun", kind)):
                parts = [part for part in caption.parts if part.role == role and part.object == thing]
                part = parts[-1]  # the noun may be named again, without its colour
                yield (task, "phrases", "word", caption.text, part.start, part.end, label, phrase, caption.template)


def _prompts(count: int, random: np.random.Generator) -> Iterator[tuple]:
    kinds = [kind for kind in PLAIN if KINDS[kind].group != "sky"]
    for index in range(count):
        place, style, side = PLACES[1 + index % 9], STYLES[index // 9 % 4], SIDES[index // 36 % 4]

        def scene(place: str = place, style: str = style, side: str = side) -> Scene:
            return _scene([_choose(random, kinds)], random, place=place, style=style, layout=side)

        caption, part = _describe_until(scene, "zh", random, lambda part, _: part.role == "object")
        for task, label in (("place", place), ("style", style), ("layout", side)):
            for where, start, end in (("word", part.start, part.end), ("last token", LAST_TOKEN, LAST_TOKEN)):
                yield (task, "prompts", where, caption.text, start, end, label, caption.text, caption.template)


def _numbers(count: int, random: np.random.Generator) -> Iterator[tuple]:
    for index in range(count):
        number = 1 + index % 3

        def scene(number: int = number) -> Scene:
            return _scene(
                random.choice(PLAIN, size=number, replace=False).tolist(), random, place=_choose(random, PLACES)
            )

        caption, part = _describe_until(scene, "zh", random, lambda part, _: part.role == "object")
        for where, start, end in (("word", part.start, part.end), ("last token", LAST_TOKEN, LAST_TOKEN)):
            label = ("one", "two", "three")[number - 1]
            yield ("number", "prompts", where, caption.text, start, end, label, caption.text, caption.template)


POOLS = {"words": _words, "phrases": _phrases, "prompts": _prompts, "numbers": _numbers}


# --- inside ---------------------------------------------------------------------------------------------


def _choose(random: np.random.Generator, options):
    return options[int(random.integers(len(options)))]


def _scene(
    kinds: list[str],
    random: np.random.Generator,
    *,
    colours: list[str] | None = None,
    place: str = "plain",
    style: str = "flat",
    layout: str | None = None,
) -> Scene:
    """A scene for a description: its objects have no place."""
    shades: Sequence[str | None] = colours or [None] * len(kinds)
    things = tuple(Object(kind, None, colour, "medium", 0, 0, 0) for kind, colour in zip(kinds, shades))
    default = "middle" if len(kinds) == 1 else "row"
    time = "day" if place == "space" else _choose(random, ("day", "day", "dusk", "night"))
    return Scene(things, place, time, style, layout or default)


def _describe_until(
    scene: Callable[[], Scene], language: str, random: np.random.Generator, wanted: Callable[[Part, str], bool]
) -> tuple[Caption, Part]:
    """A caption with a wanted part; if it has several, one of them at random."""
    while True:
        caption = describe(scene(), language, int(random.integers(2**31)))
        parts = [part for part in caption.parts if wanted(part, caption.text[part.start : part.end])]
        if parts:
            return caption, _choose(random, parts)
