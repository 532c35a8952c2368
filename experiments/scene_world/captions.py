"""Captions of a scene, in Chinese or English, with the span of every part that means something.

A sentence is put together from a core (grammar_zh, grammar_en), which names the objects, and from place, time and
style, which stand before it, behind it, or inside. A polysemous word gets a context before it, after it, or both;
only its first meaning may also stand without one.
"""

import re
from dataclasses import dataclass
from functools import cache

from toushi.experiments.scene_world import grammar_en, grammar_zh
from toushi.experiments.scene_world.objects import KINDS
from toushi.experiments.scene_world.scenes import Object, Pick, Scene, sense_of
from toushi.experiments.scene_world.senses import DEFAULT

LANGUAGES = ("zh", "en")
ROLES = ("object", "colour", "size", "position", "place", "time", "style", "context")
_GRAMMAR = {"zh": grammar_zh, "en": grammar_en}
_SLOT = re.compile(r"\{([@~%]?)([A-CPTabc])([01!]?)\}")

_ORDER = re.compile("从左到右|从上到下|from left to right|from top to bottom")


@dataclass(frozen=True)
class Part:
    """Characters `start` to `end` of the raw caption, their role, and the index of their object, if they are about one."""

    start: int
    end: int
    role: str
    object: int | None


@dataclass(frozen=True)
class Caption:
    """`template` is the core sentence with its slots, for studies that hold templates out."""

    text: str
    parts: tuple[Part, ...]
    language: str
    template: str


class _Writer:
    def __init__(self):
        self.text, self.parts = "", []

    def say(self, text: str, role: str | None = None, thing: int | None = None):
        if role and text:
            self.parts.append(Part(len(self.text), len(self.text) + len(text), role, thing))
        self.text += text


@cache
def _pieces(template: str) -> tuple[tuple[str, str, str, str], ...]:
    """(literal text, mark, letter, number); the last has an empty letter."""
    pieces, at = [], 0
    for slot in _SLOT.finditer(template):
        pieces.append((template[at : slot.start()], *slot.groups()))
        at = slot.end()
    return (*pieces, (template[at:], "", "", ""))


@cache
def _templates(language: str, group: str, place: bool, time: bool, held_out: bool) -> tuple[str, ...]:
    grammar = _GRAMMAR[language]
    return tuple(t for t in getattr(grammar, group)
                 if ("{P}" not in t or place) and ("{T}" not in t or time) and (t in grammar.HELD_OUT) == held_out)  # fmt: skip


def describe(scene: Scene, language: str = "zh", seed: int = 0) -> Caption:
    """A caption of the scene. The seed chooses one of the many that are true."""
    if language not in LANGUAGES:
        raise ValueError(f"language is one of {', '.join(LANGUAGES)}, not {language!r}")
    pick = Pick(seed, 20 + LANGUAGES.index(language))
    template, order = _choose_template(pick, scene, language)
    return _Sentence(pick, scene, language, template, order).caption()


def _choose_template(pick: Pick, scene: Scene, language: str) -> tuple[str, list[int]]:
    count, fixed = len(scene.objects), False
    if count == 3:
        group = "THREE"
    elif count == 2:
        fixed = pick.chance(0.3 if scene.layout == "row" else 0.15)  # positions unsaid, or said by order alone
        group = ("ROW" if scene.layout == "row" else "COLUMN") if fixed else "PAIR"
    else:
        group = "MIDDLE" if scene.layout == "middle" else "ASIDE"
    time = scene.time != "day"
    place = scene.place != "plain"
    held_out = "template" in scene.held_out and count < 3
    if held_out and group == "COLUMN":
        group, fixed = "PAIR", False
    options = _templates(language, group, place, time, held_out)
    order = list(range(count))
    if count == 2 and not fixed and pick.chance(0.4):
        order.reverse()
    return pick.choose(options), order


_ENDS = {"row": ("left", "right"), "column": ("top", "bottom")}
_BARE_COLOURS = {"car", "umbrella", "flower", "balloon", "cat", "fish", "bird", "hat", "circle", "star"}


class _Sentence:
    """A caption while it is written: the choices for the whole sentence, and the writer."""

    def __init__(self, pick: Pick, scene: Scene, language: str, template: str, order: list[int]):
        self.pick, self.scene, self.language, self.template, self.order = (pick, scene, language, template, order)
        self.grammar = _GRAMMAR[language]
        self.out = _Writer()
        self.senses = [sense_of(thing, language) for thing in scene.objects]
        self.context = [self._contexts(i) for i in range(len(scene.objects))]
        self.nouns = [self._noun(i, KINDS[thing.kind].names(language)) for i, thing in enumerate(scene.objects)]
        # A style paints in its own tones: nobody would call its circle blue.
        self.colours = [thing.colour if scene.style == "flat" else None for thing in scene.objects]
        self.words: dict[str, str] = {}  # a position keeps its word within a sentence

    def _noun(self, index: int, names: tuple[str, ...]) -> str:
        sense = self.senses[index]
        if sense is not None:
            return sense.word
        return names[0] if len(names) == 1 or self.pick.chance(0.75) else self.pick.choose(names[1:])

    def _contexts(self, index: int) -> tuple[str | None, str | None]:
        """The phrase before and the clause after a polysemous word."""
        sense = self.senses[index]
        if sense is None:
            return None, None
        draw = self.pick.random()
        letter = "abc"[self.order.index(index)]
        if DEFAULT[sense.word] == sense.name and draw < 0.06:
            return None, None
        behind = "{" + letter + "}" in self.template
        before = draw < 0.55 or not behind
        after = behind and (draw >= 0.55 or draw < 0.14)
        return self.pick.choose(sense.before) if before else None, self.pick.choose(sense.after) if after else None

    def caption(self) -> Caption:
        scene, pick, out, grammar = self.scene, self.pick, self.out, self.grammar
        zh = self.language == "zh"
        comma = "，" if zh else ", "
        says_time = "{T}" not in self.template and (
            scene.time != "day" or (scene.place != "space" and pick.chance(0.08))
        )
        says_place = "{P}" not in self.template and (scene.place != "plain" or pick.chance(0.06))
        style_first = pick.chance(0.5)
        place_first = says_place and scene.place != "plain" and pick.chance(0.5)
        time_first = says_time and pick.chance(0.45)

        if scene.style != "flat" and style_first:
            lead = pick.choose(grammar.STYLE_BEFORE[scene.style])
            bare = lead.rstrip("：:，, ")
            bare = bare[:-3] if bare.endswith(" of") else bare
            article = "an " if bare.startswith("an ") else "a " if bare.startswith("a ") else ""
            article = article or next((m for m in ("一幅", "一张") if bare.startswith(m)), "")
            # "an ink wash painting of" needs a noun to follow it
            starts_with_noun = _pieces(self.template)[0][0] == "" and _pieces(self.template)[0][1:3] == ("", "A")
            if lead.endswith(" of ") and (time_first or place_first or not starts_with_noun):
                lead = bare + ": "
            out.say(article)
            out.say(bare[len(article) :], "style")
            out.say(lead[len(bare) :])
        if time_first and place_first and zh and pick.chance(0.5):
            self._time()
            out.say("的")
            self._place()
            out.say(comma)
        else:
            firsts = [self._time] * time_first + [self._place] * place_first
            if pick.chance(0.3):
                firsts.reverse()
            for say in firsts:
                say()
                out.say(comma)
        self._core()
        if says_place and not place_first:
            if zh:
                self._place_behind(comma)
            else:
                out.say(pick.choose((" ", comma)) if scene.place != "plain" else comma)
                self._place()
        if says_time and not time_first:
            out.say(comma if zh or pick.chance(0.6) else " ")
            self._time()
        if scene.style != "flat" and not style_first:
            tail = pick.choose(grammar.STYLE_AFTER[scene.style])
            word = tail.lstrip("，, ")
            word = word.removeprefix("画成").removeprefix("as a ")
            out.say(tail[: len(tail) - len(word)])
            out.say(word, "style")
        if (pick.chance(0.25) and zh) or (not zh and pick.chance(0.2)):
            out.say("。" if zh else ".")
        return Caption(out.text, tuple(out.parts), self.language, self.template)

    def _time(self):
        self.out.say(self.pick.choose(self.grammar.TIMES[self.scene.time]), "time")

    def _place(self):
        self.out.say(self.pick.choose(self.grammar.PLACES[self.scene.place]), "place")

    def _place_behind(self, comma: str):
        name = self.grammar.PLACE_NAMES[self.scene.place]
        if self.scene.place == "plain":
            self.out.say(comma)
            self.out.say("白色背景", "place")
        elif self.pick.chance(0.5):
            self.out.say(comma + "背景是")
            self.out.say(name, "place")
        else:
            self.out.say(comma + self.pick.choose(("在", "")))
            self._place()

    def _core(self):
        out = self.out
        for literal, mark, letter, number in _pieces(self.template):
            order = _ORDER.match(literal)
            if order:
                out.say(order[0], "position")
            out.say(literal[order.end() if order else 0 :])
            if not letter:
                continue
            if letter in "PT":
                self._place() if letter == "P" else self._time()
                continue
            index = self.order["ABC".index(letter.upper())]
            if mark == "@" or mark == "%":
                self._position(index, relative=mark == "%")
            elif mark == "~":
                out.say(self.pick.choose(self.grammar.VERBS[KINDS[self.scene.objects[index].kind].group]))
            elif letter.islower():
                clause = self.context[index][1]
                if clause:
                    out.say("，" if self.language == "zh" else ", ")
                    out.say(clause, "context", index)
            elif number == "!":
                self._again(index)
            else:
                (self._name_zh if self.language == "zh" else self._name_en)(index, number)

    def _position(self, index: int, relative: bool):
        layout, count = self.scene.layout, len(self.scene.objects)
        if count == 1:
            side = layout
        elif count == 3:
            side = ("left", "middle", "right")[index]
        else:
            side = _ENDS[layout][index]
        table = self.grammar.RELATIVE if relative else self.grammar.POSITIONS
        if side not in self.words:
            self.words[side] = self.pick.choose(table[side])
        self.out.say(self.words[side], "position", index)

    def _again(self, index: int):
        """The noun again, with its colour if the noun alone is ambiguous."""
        twins = sum(other == self.nouns[index] for other in self.nouns) > 1
        if self.language == "en":
            self.out.say("the ")
        if twins and (colour := self.colours[index]) is not None:
            self.out.say(grammar_zh.COLOURS[colour][0] if self.language == "zh" else colour, "colour", index)
            self.out.say("的" if self.language == "zh" else " ")
        self.out.say(self.nouns[index], "object", index)

    def _name_zh(self, index: int, number: str):
        out, pick, thing, sense = self.out, self.pick, self.scene.objects[index], self.senses[index]
        measure = sense.measure if sense else KINDS[thing.kind].measure
        counted = number == "1" or (number == "" and pick.chance(0.5))
        before, noun = self.context[index][0], self.nouns[index]
        outside = before is not None and pick.chance(0.35)  # 河边的一家银行 beside 一家河边的银行
        if before is not None and outside:
            self._context_zh(before, index)
        if counted:
            out.say("一" + measure)
        if before is not None and not outside:
            self._context_zh(before, index)
        size = self._size_zh(thing, noun)
        if size and size.endswith("的"):
            out.say(size[:-1], "size", index)
            out.say("的")
        if (colour := self.colours[index]) is not None:
            full, short = grammar_zh.COLOURS[colour]
            if size == "大" or size == "小":
                out.say(full, "colour", index)
                out.say("的")
            elif thing.kind in _BARE_COLOURS and not short.endswith("色") and pick.chance(0.25):
                out.say(short, "colour", index)
            else:
                out.say(short if short.endswith("色") and pick.chance(0.3) else full, "colour", index)
                out.say("的")
        if size and not size.endswith("的"):
            out.say(size, "size", index)
        out.say(noun, "object", index)

    def _context_zh(self, before: str, index: int):
        self.out.say(before[:-1], "context", index)
        self.out.say("的")

    def _size_zh(self, thing: Object, noun: str) -> str | None:
        if thing.size == "medium":
            return None
        words = grammar_zh.SIZES[thing.size]
        short = len(noun) <= 2 and noun[0] not in "大小老" and self.pick.chance(0.55)
        return words[0] if short else self.pick.choose(words[1:])

    def _name_en(self, index: int, number: str):
        out, pick, thing = self.out, self.pick, self.scene.objects[index]
        size = pick.choose(grammar_en.SIZES[thing.size]) if thing.size != "medium" else None
        parts = ((size, "size"), (self.context[index][0], "context"), (self.colours[index], "colour"))
        words = [*((text, role) for text, role in parts if text is not None), (self.nouns[index], "object")]
        if number != "0":
            first = words[0][0]
            vowel = first[0].lower() in "aeiou" and not first.startswith(("one", "uni", "USB"))
            out.say("an " if vowel else "a ")
        for i, (word, role) in enumerate(words):
            out.say(word, role, index)
            if i < len(words) - 1:
                out.say(" ")
