"""Instructions that change a scene: what is said, the scene before and the scene after.

Both scenes differ in what the instruction names and in nothing else, so that "the rest stayed" can be measured to the
pixel. About one in ten combinations never occurs in training, as in scenes.py: a kind replaced by another, a colour of
a kind, and some sentence forms.
"""

from dataclasses import dataclass, replace

import numpy as np

from toushi.experiments.scene_world import grammar_zh
from toushi.experiments.scene_world.draw import render
from toushi.experiments.scene_world.objects import COLOURABLE, COLOURS, KINDS, PLAIN, SHAPES
from toushi.experiments.scene_world.scenes import (
    CENTRES,
    PLACES,
    STYLES,
    TIMES,
    Object,
    Pick,
    Scene,
    colour_is_held_out,
    draw_scene,
    held_out,
    is_invisible,
    pair_is_held_out,
)

ACTIONS = ("replace", "colour", "move", "swap", "remove", "time", "place", "style")

# {a} is the object as it is named, {b} what it becomes; {@} a position, {c} a colour, {t} time, {p} place, {s} style.
# The last form of each action is held out.
FORMS = {
    "zh": {
        "replace": ("把{a}换成{b}", "将{a}换成{b}", "把{a}变成{b}", "{a}换成{b}", "用{b}替换{a}", "让{a}变成{b}"),
        "colour": ("让{a}变成{c}", "把{a}变成{c}", "把{a}涂成{c}", "{a}改成{c}", "将{a}染成{c}"),
        "move": ("把{a}移到{@}", "将{a}移到{@}", "把{a}放到{@}", "让{a}移到{@}", "{a}挪到{@}"),
        "swap": ("交换{a}和{b}的位置", "把{a}和{b}交换位置", "让{a}和{b}互换位置", "{a}与{b}对调"),
        "remove": ("去掉{a}", "删除{a}", "把{a}去掉", "移除{a}", "不要{a}", "擦掉{a}"),
        "time": ("换成{t}", "改成{t}", "变成{t}", "让时间变成{t}", "把时间改成{t}"),
        "place": ("把背景换成{p}", "背景改成{p}", "背景换成{p}", "将背景变成{p}"),
        "style": ("改成{s}", "换成{s}风格", "画成{s}", "变成{s}风格"),
    },
    "en": {
        "replace": (
            "replace the {a} with {b}",
            "turn the {a} into {b}",
            "swap the {a} for {b}",
            "change the {a} to {b}",
            "make the {a} {b}",
        ),
        "colour": ("make the {a} {c}", "turn the {a} {c}", "paint the {a} {c}", "change the {a} to {c}"),
        "move": ("move the {a} {@}", "put the {a} {@}", "place the {a} {@}", "shift the {a} {@}"),
        "swap": ("swap the {a} and the {b}", "exchange the {a} and the {b}", "let the {a} and the {b} change places"),
        "remove": ("remove the {a}", "delete the {a}", "take away the {a}", "erase the {a}"),
        "time": ("make it {t}", "change it to {t}", "turn it into {t}"),
        "place": ("change the background to {p}", "set the background to {p}", "make the background {p}"),
        "style": ("make it {s}", "turn it into {s}", "redraw it as {s}"),
    },
}
TIME_NAMES = {
    "zh": {"day": ("白天",), "dusk": ("黄昏", "傍晚"), "night": ("夜晚", "夜里")},
    "en": {"day": ("day", "daytime"), "dusk": ("dusk", "sunset"), "night": ("night", "night time")},
}
PLACE_NAMES = {
    "zh": grammar_zh.PLACE_NAMES | {"plain": "白色"},
    "en": {
        "plain": "plain white", "grass": "grass", "beach": "a beach", "desert": "a desert", "snow": "snow",
        "city": "a city", "room": "a room", "sea": "the sea", "forest": "a forest", "space": "space",
    },
}  # fmt: skip
STYLE_NAMES = {
    "zh": {"flat": "彩色", "ink": "水墨画", "blueprint": "蓝图", "sepia": "老照片"},
    "en": {"flat": "a flat colour picture", "ink": "an ink wash painting", "blueprint": "a blueprint", "sepia": "an old photo"},
}  # fmt: skip
POSITION_NAMES = {
    "zh": grammar_zh.POSITIONS,
    "en": {side: (f"to the {side}",) for side in ("left", "right", "top", "bottom", "middle")},
}


@dataclass(frozen=True)
class Instruction:
    """`object` is the index in `before` of the object that the instruction names, None if it names none; `held_out`
    says which rules, of pair, colour and form, keep it out of training."""

    action: str
    text: str
    language: str
    before: Scene
    after: Scene
    object: int | None
    held_out: tuple[str, ...]

    def pictures(self) -> tuple[np.ndarray, np.ndarray]:
        """Before and after, uint8 [64, 64, 3] each."""
        return render(self.before)[0], render(self.after)[0]


def draw_instruction(seed: int, split: str = "train") -> Instruction:
    """The instruction of this seed. In `held_out` at least one rule keeps it out of training; in `train` and `test`
    none does."""
    pick = Pick(seed, 40 + ("train", "test", "held_out").index(split))
    action, language = pick.choose(ACTIONS), "zh" if pick.chance(0.72) else "en"
    rule = None
    if split == "held_out":
        rules = {"replace": ("pair", "form"), "colour": ("colour", "form")}.get(action, ("form",))
        rule = pick.choose(rules)
    for attempt in range(10_000):
        scene = draw_scene(seed * 10_000 + attempt, "test" if split == "held_out" else split)
        instruction = _change(pick, scene, action, language, rule == "form")
        if instruction is not None and (rule in instruction.held_out if rule else not instruction.held_out):
            return instruction
    raise RuntimeError(f"no scene for seed {seed} of {split}")  # about one scene in twenty fits the rarest action


def _change(pick: Pick, before: Scene, action: str, language: str, held_out_form: bool) -> Instruction | None:
    """The instruction, or None where this action makes no sense in this scene."""
    kinds = [thing.kind for thing in before.objects]
    if len(set(kinds)) < len(kinds) or any(not KINDS[kind].alone for kind in kinds):
        return None  # a bare name would not say which, or would not be the usual one
    index = pick.integer(0, len(kinds) - 1)
    thing, rules, words = before.objects[index], [], {}
    after = before
    if action == "replace":
        kind = pick.choose(PLAIN)
        if kind in kinds:
            return None
        after = _with(before, index, replace(thing, kind=kind, sense=None, colour=None))
        words["b"] = _name(pick, kind, language, article=True)
        rules += ["pair"] * pair_is_held_out(thing.kind, kind)
    elif action == "colour":
        colour = pick.choose(tuple(COLOURS))
        usable = thing.kind in COLOURABLE and before.style == "flat" and colour != thing.colour
        if not usable or is_invisible(colour, before.place, before.time):
            return None
        after = _with(before, index, replace(thing, colour=colour))
        words["c"] = grammar_zh.COLOURS[colour][0] if language == "zh" else colour
        rules += ["colour"] * colour_is_held_out(colour, thing.kind)
    elif action == "move":
        side = pick.choose(("left", "right", "top", "bottom", "middle"))
        if len(kinds) > 1 or side == before.layout:
            return None
        x, y = CENTRES[side][0]
        after = replace(_with(before, index, replace(thing, x=x, y=y)), layout=side)
        words["@"] = pick.choose(POSITION_NAMES[language][side])
    elif action == "swap":
        if len(kinds) != 2:
            return None
        first, second = before.objects
        places = replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)
        after = replace(before, objects=places[::-1])  # in reading order
        index = 0
        words["b"] = _name(pick, second.kind, language)
        thing = first
    elif action == "remove":
        after = replace(before, objects=before.objects[:index] + before.objects[index + 1 :])
    else:
        names = {"time": TIME_NAMES, "place": PLACE_NAMES, "style": STYLE_NAMES}[action]
        value = pick.choose({"time": TIMES, "place": PLACES, "style": STYLES}[action])
        after = replace(before, **{action: value})
        if value == getattr(before, action) or not _is_drawable(before) or not _is_drawable(after):
            return None
        name = names[language][value]
        words[action[0]] = name if isinstance(name, str) else pick.choose(name)
        index = None
    forms = FORMS[language][action]
    form = forms[-1] if held_out_form else pick.choose(forms[:-1])
    rules += ["form"] * (form == forms[-1])
    if held_out(after.objects) and "pair" not in rules and "colour" not in rules:
        rules.append("colour" if "colour" in held_out(after.objects) else "pair")
    text = form.replace("{a}", _name(pick, thing.kind, language))
    for slot, word in words.items():
        text = text.replace("{" + slot + "}", word)
    return Instruction(action, text, language, before, after, index, tuple(dict.fromkeys(rules)))


def _with(scene: Scene, index: int, thing: Object) -> Scene:
    return replace(scene, objects=(*scene.objects[:index], thing, *scene.objects[index + 1 :]))


def _name(pick: Pick, kind: str, language: str, article: bool = False) -> str:
    names = KINDS[kind].names(language)
    name = names[0] if pick.chance(0.85) else pick.choose(names)
    if language == "zh" or not article:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _is_drawable(scene: Scene) -> bool:
    """Whether every colour can be seen there, and no colour is hidden that another style would show."""
    shapes = any(thing.kind in SHAPES for thing in scene.objects)
    coloured = any(thing.colour is not None for thing in scene.objects)
    if scene.place == "space" and scene.time != "day":
        return False
    if (coloured or shapes) and scene.style != "flat":
        return False
    return not any(thing.colour and is_invisible(thing.colour, scene.place, scene.time) for thing in scene.objects)
