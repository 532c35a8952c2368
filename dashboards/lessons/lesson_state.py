"""What a session remembers of each lesson, and the texts in its language."""

from typing import TypedDict

import streamlit as st

from toushi.dashboards import trace_library as library
from toushi.dashboards.lessons.lesson_texts import LESSONS


class Memory(TypedDict, total=False):
    """Of one lesson: the prediction, the controls that were changed, and the last answer with the values it is about."""

    guess: str
    changes: dict[str, str | int | float]
    answer: tuple[dict, str | int]
    done: bool


def memory_of(name: str) -> Memory:
    """What this session remembers of the lesson. Writing into it keeps it."""
    return st.session_state.setdefault("lessons", {}).setdefault(name, Memory())


def widget_key(name: str, widget: str) -> str:
    """A key that is a new one after `forget`, so that the widget begins anew."""
    return f"lesson {name} {widget} {st.session_state.get('lesson_round', 0)}"


def forget(name: str | None = None) -> None:
    """Forgets one lesson, or all of them."""
    st.session_state["lesson_round"] = st.session_state.get("lesson_round", 0) + 1
    lessons = st.session_state.setdefault("lessons", {})
    lessons.clear() if name is None else lessons.pop(name, None)


def lesson_text(key: str, **values: object) -> str:
    return LESSONS.translate(library.language(), key, **values)


def percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.0995 else f"{100 * share:.1f}%"
