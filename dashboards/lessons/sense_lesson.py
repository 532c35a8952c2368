"""Disambiguation: a word with two meanings gets its meaning from the words around it."""

import numpy as np
import streamlit as st

from toushi.dashboards.lessons import live_runs as runs
from toushi.dashboards.lessons.lesson import Answer, Control, Lesson, Question, Values
from toushi.dashboards.lessons.lesson_state import lesson_text

SENSES = ("money", "river")  # each has a text that means it, `sense_text_{sense}`


def likeness(text: str) -> dict[str, float] | None:
    """How near the word's state, after the last layer, is to its states in the texts of both senses: cosines. None if the
    word is not in the text once."""
    word = lesson_text("sense_word")
    if runs.word_names(text).count(word) != 1:
        return None
    states = {
        one: runs.state_of(one, word) for one in (text, *(lesson_text(f"sense_text_{sense}") for sense in SENSES))
    }
    return {sense: float(np.dot(states[text], states[lesson_text(f"sense_text_{sense}")])) for sense in SENSES}


def verdict(values: Values) -> tuple[str, dict[str, object]]:
    near = likeness(str(values["prompt"]))
    assert near is not None, "the default text has the word"
    return _nearest(near), {sense: f"{near[sense]:.2f}" for sense in SENSES}


def show(values: Values) -> Question | None:
    text = str(values["prompt"])
    pictures = {
        text: text,
        **{lesson_text(f"sense_text_{sense}"): lesson_text(f"sense_text_{sense}") for sense in SENSES},
    }
    runs.show_pictures({name: runs.image_of(runs.record(one)) for name, one in pictures.items()}, in_row=3)
    near = likeness(text)
    if near is None:
        st.info(lesson_text("sense_missing", word=lesson_text("sense_word")))
        return None
    choices = {lesson_text(f"sense_guess_{sense}"): sense for sense in SENSES}

    def check(answer: Answer) -> tuple[bool, str, str]:
        right = lesson_text(f"sense_guess_{_nearest(near)}")
        numbers = {sense: f"{near[sense]:.2f}" for sense in SENSES}
        return (
            choices[str(answer)] == _nearest(near),
            right,
            lesson_text("sense_why", word=lesson_text("sense_word"), **numbers),
        )

    return Question(lesson_text("sense_question", word=lesson_text("sense_word")), check, tuple(choices))


def _nearest(near: dict[str, float]) -> str:
    return max(near, key=lambda sense: near[sense])


LESSON = Lesson("sense", (*SENSES, "both"), (Control("prompt", "prompt"),), verdict, show)
