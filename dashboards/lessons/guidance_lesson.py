"""Guidance: a subtraction that can be seen, and multiplied with a slider."""

import numpy as np
from jaxtyping import Float, UInt8

from toushi.dashboards.lessons import live_runs as runs
from toushi.dashboards.lessons.lesson import Answer, Control, Lesson, Question, Values
from toushi.dashboards.lessons.lesson_state import lesson_text

Levels = Float[np.ndarray, "y x 3"]


def verdict(values: Values) -> tuple[str, dict[str, object]]:
    prompt = str(values["prompt"])
    unguided, asked, empty = runs.record(prompt, guidance=0.0), runs.record(prompt), runs.record("", guidance=1.0)
    to_empty, to_asked = runs.change_between(unguided, empty), runs.change_between(unguided, asked)
    right = "any" if to_empty < to_asked / 4 else "pale"
    return right, {"empty": f"{to_empty:.1f}", "asked": f"{to_asked:.1f}"}


def guide(guesses: runs.Guesses, guidance: float) -> Levels:
    """without + guidance × (with − without), as the sampler does it."""
    without, with_words = guesses
    return without + guidance * (with_words - without)


def loudest_pixel(guesses: runs.Guesses, guidance: float) -> tuple[int, int]:
    """Row and column of the pixel whose red the words change most, among those inside of 0 to 255 in all pictures."""
    reds = np.stack([*guesses, guide(guesses, guidance)])[..., 0]
    shown = (reds.min(0) > 0) & (reds.max(0) < 255)
    difference = np.where(shown, np.abs(reds[1] - reds[0]), 0)
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    return int(row), int(column)


def show(values: Values) -> Question:
    prompt, guidance, step = str(values["prompt"]), float(values["guidance"]), int(values["step"])
    folder = runs.record(prompt)
    guesses = runs.guesses_at(folder, step - 1)
    y, x = loudest_pixel(guesses, guidance)
    pictures = {
        lesson_text("guidance_without"): guesses.without_words,
        lesson_text("guidance_with"): guesses.with_words,
        lesson_text("guidance_difference"): 127.5 + (guesses.with_words - guesses.without_words) / 2,
        lesson_text("guidance_result", g=f"{guidance:g}"): guide(guesses, guidance),
    }
    finished = runs.image_of(runs.record(prompt, guidance=guidance))
    framed = {caption: _framed(levels, y, x) for caption, levels in pictures.items()}
    runs.show_pictures(framed | {lesson_text("guidance_final", g=f"{guidance:g}"): finished}, in_row=3)
    without, with_words = (round(float(one[y, x, 0])) for one in guesses)
    exact = without + guidance * (with_words - without)

    def check(answer: Answer) -> tuple[bool, str, str]:
        why = lesson_text("guidance_why", without=without, with_=with_words, g=f"{guidance:g}", result=f"{exact:g}")
        return abs(float(answer) - exact) <= 0.5, f"{exact:g}", why

    text = lesson_text("guidance_question", without=without, with_=with_words, g=f"{guidance:g}")
    return Question(text, check)


def _framed(levels: Levels, y: int, x: int) -> UInt8[np.ndarray, "Y X 3"]:
    """The picture, enlarged, with a frame around one pixel: white, and black inside."""
    large = runs.enlarge(levels.clip(0, 255).round().astype(np.uint8)).copy()
    size = len(large) // len(levels)
    for margin, colour in ((2, 255), (1, 0)):
        top, left = (max(0, n * size - margin) for n in (y, x))
        large[top : (y + 1) * size + margin, left : (x + 1) * size + margin] = colour
    large[y * size : (y + 1) * size, x * size : (x + 1) * size] = levels[y, x].clip(0, 255).round()
    return large


LESSON = Lesson(
    "guidance", ("pale", "any", "noise"),
    (Control("prompt", "prompt"), Control("slider", "guidance", 3.0, 0.0, 10.0, 0.5), Control("slider", "step", 3.0, 1.0, float(runs.STEPS))),
    verdict, show,
)  # fmt: skip
