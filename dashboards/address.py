"""The address of the page, which says what is shown: trace, branch, language, and the other trace of a comparison.

The picture component adds word, step, layer, head and box. Both write with `history.replaceState`, in the browser.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import streamlit as st

from toushi.dashboards import messages as text
from toushi.dashboards import trace_library as library

# In the query: in the session. The language comes first, for a warning about the others is in it.
SESSION = {"lang": "language", "trace": "folder", "other": "other", "branch": "branch", "lesson": "lesson"}
FOLDERS = ("trace", "other")
LOCALES = {"en": "en", "zh": "zh-Hans"}

# Without the keys of another trace: a word and a step of it mean nothing here.
SCRIPT = """<script>{{
  document.documentElement.lang = {locale}
  const url = new URL(location.href), query = url.searchParams, values = {values}
  if ('trace' in values && query.has('trace') && query.get('trace') !== values.trace)
    for (const key of ['word', 'step', 'layer', 'head', 'box']) query.delete(key)
  for (const key of {keys}) key in values ? query.set(key, values[key]) : query.delete(key)
  if (url.href !== location.href) history.replaceState(history.state, '', url)
}} // {run}</script>"""


def restore() -> None:
    """Takes over what the address says, if it is not what the app wrote: a pasted address, or the browser's Back."""
    written: Mapping[str, str] = st.session_state.get("address", {})
    asked = {key: st.query_params[key] for key in SESSION if key in st.query_params}
    for key, value in asked.items():
        if value == written.get(key):
            continue
        if key in FOLDERS and not is_inside(value):
            st.warning(
                library.escape_markdown(library.say("address_outside", folder=library.short_path(value))),
                icon=":material/lock:",
            )
        elif key != "lang" or value in text.LANGUAGES:
            st.session_state[SESSION[key]] = value


def write(*, compares: bool = False) -> None:
    """Writes the address of what is shown now."""
    values = {key: st.session_state.get(name) for key, name in SESSION.items()}
    values["trace"] = library.current_folder()
    shown = {
        key: value
        for key, value in values.items()
        if value and (key not in FOLDERS or is_inside(value)) and (key != "other" or compares)
    }
    st.session_state["address"] = shown
    st.session_state["run"] = run = st.session_state.get("run", 0) + 1  # so that the script runs again
    fields = {"locale": LOCALES[library.language()], "values": shown, "keys": list(SESSION)}
    quoted = {name: json.dumps(value).replace("<", r"\u003c") for name, value in fields.items()}
    st.html(SCRIPT.format(**quoted, run=run), unsafe_allow_javascript=True)


def is_inside(folder: str | os.PathLike) -> bool:
    """Whether the folder lies in the gallery, or in the trace or collection of the command line. Links are followed."""
    roots = [root for root in (library.gallery(), library.given_trace()) if root is not None]
    try:
        return any(Path(folder).resolve().is_relative_to(Path(root).resolve()) for root in roots)
    except (OSError, ValueError, RuntimeError):  # names that the system refuses; links in a circle
        return False
