"""The English sentences; the slots are those of grammar_zh.py.

{A} is "a red cat", {A0} "red cat", {A!} "the cat" again; {@A} "on the left", {%A} "to the left of" (A, seen from the
other object); {a} stands after the object's clause; {~A} is "sits quietly".
"""

POSITIONS = {
    "left": ("on the left", "on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right", "on the right side", "at the right"),
    "top": ("at the top", "at the top", "in the upper part"),
    "bottom": ("at the bottom", "at the bottom", "in the lower part"),
    "middle": ("in the middle", "in the middle", "in the center"),
}
RELATIVE = {"left": ("to the left of", "left of"), "right": ("to the right of", "right of"),
            "top": ("above", "over"), "bottom": ("below", "under")}  # fmt: skip

PLACES = {
    "grass": ("on the grass", "in a meadow"),
    "beach": ("on the beach", "at the beach"),
    "desert": ("in the desert",),
    "snow": ("in the snow", "on the snow"),
    "city": ("in the city", "on a city street"),
    "room": ("in a room", "indoors"),
    "sea": ("at sea", "on the sea"),
    "forest": ("in the forest", "in the woods"),
    "space": ("in space", "among the stars"),
    "plain": ("on a white background",),
}

TIMES = {
    "day": ("by day", "in daylight"),
    "dusk": ("at dusk", "at sunset", "in the evening light"),
    "night": ("at night", "in the moonlight", "by night"),
}

STYLE_BEFORE = {
    "ink": ("ink wash painting: ", "an ink wash painting of "),
    "blueprint": ("blueprint: ", "a blueprint of "),
    "sepia": ("old photo: ", "an old photo of "),
}
STYLE_AFTER = {
    "ink": (", ink wash style", ", ink wash painting"),
    "blueprint": (", blueprint style", ", as a blueprint"),
    "sepia": (", sepia", ", old photo style"),
}

SIZES = {"large": ("big", "large", "huge"), "small": ("small", "little", "tiny")}

VERBS = {
    "animal": ("rests quietly", "sits still", "waits"),
    "plant": ("grows quietly", "stands"),
    "food": ("lies", "is placed"),
    "thing": ("lies", "is placed"),
    "vehicle": ("is parked", "stands still"),
    "building": ("stands", "stands quietly"),
    "sky": ("hangs", "hangs quietly"),
    "shape": ("floats", "is drawn"),
}

MIDDLE = (
    "{A}{a}", "{A}{a}", "{A0}{a}", "there is {A}{a}", "a picture of {A}{a}", "{A} {@A}{a}", "{@A} there is {A}{a}",
    "this is {A}{a}", "draw {A}{a}", "{A} {~A}{a}", "{A} all alone{a}", "I can see {A}{a}", "{A} {P}{a}",
    "{T}, {A} {~A} {P}{a}", "{P}, {A} {~A}{a}", "{A} {P} {T}{a}",
)  # fmt: skip

ASIDE = (
    "{A} {@A}{a}", "{@A} is {A}{a}", "there is {A} {@A}{a}", "{A} {~A} {@A}{a}", "{@A}, {A}{a}",
    "{P}, {A} {@A}{a}", "{T} {A} {~A} {@A}{a}", "look {@A}: {A}{a}",
)  # fmt: skip

PAIR = (
    "{A} {@A}{a}, {B} {@B}{b}", "{A} {@A} and {B} {@B}", "{@A} is {A}{a}, {@B} is {B}{b}", "{A} {%A} {B}",
    "there is {A} {@A} and {B} {@B}", "{A} is {%A} {B}", "{A0} {@A}, {B0} {@B}", "{A} {~A} {@A}{a}, {B} {~B} {@B}{b}",
    "{A} and {B}, {A!} is {@A}", "{@A}, {A}{a}; {@B}, {B}{b}", "put {A} {@A} and {B} {@B}",
    "{A}, and {%B} it {B}", "a picture with {A} {@A} and {B} {@B}", "{P}, {A} {@A}, {B} {@B}",
    "{T}, {A} {~A} {@A}, {B} {@B}",
)  # fmt: skip

ROW = ("{A} and {B}", "{A} next to {B}", "{A}, {B}", "there are {A} and {B}", "{A} beside {B}", "{P}, {A} and {B}",
       "{A} with {B}", "from left to right: {A}, {B}")  # fmt: skip
COLUMN = ("from top to bottom: {A}, {B}", "{A} {%A} {B}", "{B}, and {%A} it {A}")

THREE = ("{A}, {B} and {C}", "from left to right: {A}, {B}, {C}", "{A} {@A}, {B} {@B}, {C} {@C}",
         "{@A} {A}, {@B} {B}, {@C} {C}", "there are {A}, {B} and {C}", "{C} {@C}, {B} {@B} and {A} {@A}")  # fmt: skip

HELD_OUT = ("{A} with {B}", "a picture with {A} {@A} and {B} {@B}", "I can see {A}{a}", "look {@A}: {A}{a}")
