"""Guidance: a subtraction that can be seen, and multiplied with a slider."""

import numpy as np
import streamlit as st
from jaxtyping import Float, UInt8
from PIL import Image

from toushi.dashboards.lessons import live_runs as runs
from toushi.dashboards.lessons.lesson import Answer, Control, Lesson, Question, Values
from toushi.dashboards.lessons.lesson_state import tell

SIDE, FRAME = 320, (255, 255, 255)  # pixels of a picture on the page; colour of the frame around the pixel
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
    result = guide(guesses, guidance)
    pictures = {
        tell("guidance_without"): guesses.without_words,
        tell("guidance_with"): guesses.with_words,
        tell("guidance_difference"): 127.5 + (guesses.with_words - guesses.without_words) / 2,
        tell("guidance_result", g=f"{guidance:g}"): result,
    }
    finished = runs.record(prompt, guidance=guidance)
    for row in (list(pictures.items())[:2], list(pictures.items())[2:]):
        for column, (caption, levels) in zip(st.columns(2), row):
            column.markdown(f"**{caption}**")
            column.image(_framed(levels, y, x), width="stretch")
    final = tell("guidance_final", g=f"{guidance:g}")
    left, right = st.columns(2)
    left.markdown(f"**{final}**")
    left.image(_enlarged(np.asarray(runs.trace_of(finished).image())), width="stretch")
    right.caption(tell("guidance_see"))
    without, with_words = (round(float(one[y, x, 0])) for one in guesses)
    exact = without + guidance * (with_words - without)

    def check(answer: Answer) -> tuple[bool, str, str]:
        why = tell("guidance_why", without=without, with_=with_words, g=f"{guidance:g}", result=f"{exact:g}")
        return abs(float(answer) - exact) <= 0.5, f"{exact:g}", why

    text = tell("guidance_question", without=without, with_=with_words, g=f"{guidance:g}")
    return Question(text, check)


def _enlarged(picture: UInt8[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "Y X 3"]:
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.NEAREST))


def _framed(levels: Levels, y: int, x: int) -> UInt8[np.ndarray, "Y X 3"]:
    """The picture, enlarged, with a frame around one pixel."""
    large = _enlarged(levels.clip(0, 255).round().astype(np.uint8)).copy()
    size = SIDE // len(levels)
    box = large[max(0, y * size - 2) : (y + 1) * size + 2, max(0, x * size - 2) : (x + 1) * size + 2]
    inside = box[2:-2, 2:-2].copy()
    box[:] = FRAME
    box[1:-1, 1:-1] = 0
    box[2:-2, 2:-2] = inside
    return large


LESSON = Lesson(
    "guidance", ("pale", "any", "noise"),
    (Control("prompt", "prompt"), Control("slider", "guidance", 3.0, 0.0, 10.0, 0.5), Control("slider", "step", 3.0, 1.0, float(runs.STEPS))),
    verdict, show,
)  # fmt: skip
