"""A map can mislead: what the picture looked at, and what made a difference."""

import numpy as np
import streamlit as st

from toushi.dashboards.lessons import live_runs as runs
from toushi.dashboards.lessons.lesson import Answer, Control, Lesson, Question, Values
from toushi.dashboards.lessons.lesson_state import percent, tell
from toushi.probe.analysis.maps import resample

CLOSE = 0.9  # a change that is nearly as large is right, too


def change_without(folder: str, word: str) -> float:
    """Grey levels per pixel by which the picture changes if no cell may look at the word."""
    return runs.change_between(folder, runs.record_without(folder, word))


def verdict(values: Values) -> tuple[str, dict[str, object]]:
    folder, word = runs.record(str(values["prompt"])), str(values["word"])
    most = _most(runs.shares(folder))
    changes = {"most": change_without(folder, most), "least": change_without(folder, word)}
    small, large = sorted(changes.values())
    right = "same" if small > CLOSE * large else max(changes, key=lambda one: changes[one])
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
    runs.show_pair(folder, without)
    change = change_without(folder, word)
    st.caption(
        tell("cause_see", word=word, change=f"{change:.1f}", inside=percent(change_inside(folder, without, word)))
    )
    most, least = _most(attention), min(attention, key=lambda word: attention[word])

    def check(answer: Answer) -> tuple[bool, str, str]:
        changes = {one: change_without(folder, one) for one in (most, least)}
        right = max(changes, key=lambda one: changes[one])
        return (
            changes[str(answer)] >= CLOSE * changes[right],
            right,
            tell(
                "cause_why",
                most=most,
                least=least,
                most_change=f"{changes[most]:.1f}",
                least_change=f"{changes[least]:.1f}",
            ),
        )

    numbers = {"most_share": percent(attention[most]), "least_share": percent(attention[least])}
    return Question(tell("cause_question", most=most, least=least, **numbers), check, (most, least))


def change_inside(folder: str, without: str, word: str) -> float:
    """The part of the picture's change that lies in the brightest quarter of the word's map."""
    trace, other = runs.trace_of(folder), runs.trace_of(without)
    change = np.abs(np.asarray(trace.image(), np.float32) - np.asarray(other.image(), np.float32)).mean(-1)
    heat = resample(trace.heat_map(word).values[None], list(change.shape))[0]
    return float(change[heat >= np.quantile(heat, 0.75)].sum() / max(change.sum(), 1e-9))


LESSON = Lesson(
    "cause", ("most", "least", "same"), (Control("prompt", "prompt"), Control("word", "word")), verdict, show,
    predict_values,
)  # fmt: skip
