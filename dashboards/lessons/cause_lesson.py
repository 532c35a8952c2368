"""A map can mislead: what the picture looked at, and what made a difference."""

import numpy as np
import streamlit as st
from jaxtyping import Float

from toushi.dashboards.lessons import live_runs as runs
from toushi.dashboards.lessons.lesson import Answer, Control, Lesson, Question, Values
from toushi.dashboards.lessons.lesson_state import lesson_text, percent
from toushi.probe.analysis.maps import resample

CLOSE = 0.98  # of two changes as close as this, either is the larger


def change_without(folder: str, word: str) -> float:
    """Grey levels per pixel by which the picture changes if no cell may look at the word."""
    return runs.change_between(folder, runs.record_without(folder, word))


def verdict(values: Values) -> tuple[str, dict[str, object]]:
    folder, word = runs.record(str(values["prompt"])), str(values["word"])
    most = _most(runs.shares(folder))
    changes = {"most": change_without(folder, most), "least": change_without(folder, word)}
    small, large = sorted(changes.values())
    right = "same" if small > CLOSE * large else max(changes, key=lambda name: changes[name])
    return right, {
        **predict_values(values), "most_change": f"{changes['most']:.1f}", "change": f"{changes['least']:.1f}",
    }  # fmt: skip


def predict_values(values: Values) -> dict[str, object]:
    """The numbers in the text of the prediction."""
    attention, word = runs.shares(runs.record(str(values["prompt"]))), str(values["word"])
    most = _most(attention)
    return {"most": most, "most_share": percent(attention[most]), "word": word, "share": percent(attention[word])}


def _most(attention: dict[str, float]) -> str:
    return max(attention, key=lambda word: attention[word])


def show(values: Values) -> Question | None:
    folder, word = runs.record(str(values["prompt"])), str(values["word"])
    attention = runs.shares(folder)
    if len(attention) < 2:
        return None
    without = runs.record_without(folder, word)
    heat = heat_of(folder, word)
    changed = runs.difference(folder, without)
    runs.show_pictures({
        lesson_text("cause_before"): runs.image_of(folder),
        lesson_text("cause_map", word=word): runs.colour_map(heat / heat.max()),
        lesson_text("cause_after", word=word): runs.image_of(without),
        lesson_text("cause_changed"): runs.colour_change(folder, without),
    }, in_row=2)  # fmt: skip
    mine = f"{changed.mean():.1f}"
    st.caption(
        lesson_text("cause_shown", word=word, change=mine, inside=percent(change_inside(heat, changed.mean(-1))))
    )
    other = _most(attention) if word != _most(attention) else min(attention, key=lambda name: attention[name])
    more, less = lesson_text("cause_more"), lesson_text("cause_less")

    def check(answer: Answer) -> tuple[bool, str, str]:
        ratio = change_without(folder, other) / max(float(changed.mean()), 1e-9)
        right = more if ratio > 1 else less
        is_close = CLOSE < ratio < 1 / CLOSE
        theirs = f"{change_without(folder, other):.1f}"
        return (
            is_close or answer == right,
            right,
            lesson_text("cause_why", word=word, change=mine, other=other, theirs=theirs),
        )

    numbers = {"word": word, "change": mine, "other": other, "share": percent(attention[other])}
    return Question(lesson_text("cause_question", **numbers), check, (more, less))


def heat_of(folder: str, word: str) -> Float[np.ndarray, "y x"]:
    """The heat map of the word, as large as the picture."""
    heat = runs.trace_of(folder).heat_map(word).values
    return resample(heat[None], runs.image_of(folder).shape[:2])[0]


def change_inside(heat: Float[np.ndarray, "y x"], change: Float[np.ndarray, "y x"]) -> float:
    """The part of the picture's change that lies in the brightest quarter of a map."""
    return float(change[heat >= np.quantile(heat, 0.75)].sum() / max(change.sum(), 1e-9))


LESSON = Lesson(
    "cause", ("most", "least", "same"), (Control("prompt", "prompt"), Control("word", "word")), verdict, show,
    predict_values,
)  # fmt: skip
