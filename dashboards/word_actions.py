"""What the buttons under a word of the picture page do: the run is made again with a change, or the word is explained."""

import os

import streamlit as st

from toushi.dashboards import job_view, permissions
from toushi.dashboards import trace_library as library
from toushi.dashboards.heat_map.component import Action
from toushi.dashboards.sampling_worker import EditOrder
from toushi.dashboards.trace_library import escape_markdown, say
from toushi.probe.text.prompt_units import Unit
from toushi.probe.trace.diagnosis_rows import diagnosis_rows
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.word_diagnosis import diagnose_word

CHANGES = ("ignore", "halve", "double", "keep", "swap")
OWN = "mini-unet"  # the family of our own models


def actions(trace: Trace, branch: str) -> tuple[str, ...]:
    """The buttons for a word of the branch."""
    if branch != "cond" or trace.prompt is None:
        return ()
    return ("why",) if permissions.is_read_only() or trace.manifest.family != OWN else ("why", *CHANGES)


def changes(action: Action, word: str) -> dict[str, object]:
    """The action as arguments of `edit_run`."""
    return {
        "ignore": {"remove": [word]},
        "halve": {"scale": {word: 0.5}},
        "double": {"scale": {word: 2.0}},
        "keep": {"keep_only": [word]},
        "swap": {"swap": {word: action["text"]}},
    }[action["action"]]


def act(trace: Trace, units: tuple[Unit, ...], action: Action) -> None:
    """Does what was asked for a word."""
    if not 0 <= action["unit"] < len(units) or action["action"] not in actions(trace, "cond"):
        return  # from a page of before
    word = units[action["unit"]].name
    if action["action"] == "why":
        return explain(trace, word)
    order = EditOrder(
        os.path.abspath(trace.folder), changes(action, word), trace.manifest.steps.count, trace.manifest.seed or 0
    )
    job_view.submit(order, compare_with=str(trace.folder))


def explain(trace: Trace, word: str) -> None:
    """Shows what the trace tells about the word."""
    rows = diagnosis_rows(diagnose_word(trace, word), str(trace.folder), library.language())
    title = escape_markdown(say("why_title", word=word))
    st.dialog(title, width="large")(lambda: st.table(_join_rows(rows), border="horizontal"))()


def _join_rows(rows: list[tuple[str, str]]) -> dict[str, str]:
    """Each name once: texts of equal names stand in one row."""
    joined: dict[str, str] = {}
    for name, text in rows:
        joined[escape_markdown(name)] = "  \n".join(
            filter(None, [joined.get(escape_markdown(name)), escape_markdown(text)])
        )
    return joined
