"""Two traces side by side, with the difference of their maps: another seed, other steps, an edit."""

from dataclasses import replace
from pathlib import Path

import streamlit as st

from toushi.dashboards import address, permissions, verdict_view
from toushi.dashboards import job_view as making
from toushi.dashboards import sampling_worker as worker
from toushi.dashboards import trace_library as library
from toushi.dashboards.heat_map import component
from toushi.dashboards.heat_map.trace_pair import NothingInCommon
from toushi.dashboards.prompt_form import order_of
from toushi.dashboards.run_metadata import differences
from toushi.dashboards.trace_library import escape_markdown, say
from toushi.probe.base.errors import ToushiError
from toushi.probe.trace.comparison import compare

library.toolbar()
trace, folder, version = library.read_open_trace()
branch = library.chosen_branch(trace)


def candidates() -> list[library.Entry]:
    """The other traces, those with the same prompt first."""
    beside = Path(folder).parent
    known = {entry.folder.resolve(): entry for entry in [*library.entries(beside, 1), *library.entries()]}
    known.pop(Path(folder).resolve(), None)
    return sorted(
        (entry for entry in known.values() if not entry.damaged), key=lambda entry: entry.prompt != trace.prompt
    )


def label(entry: library.Entry) -> str:
    return (say("same_prompt") if entry.prompt == trace.prompt else "") + f"{library.title(entry)} · {entry.folder}"


@st.cache_data(max_entries=16, show_spinner=False)
def changed_pixels(folders: tuple[str, str], versions: tuple) -> tuple[float | None, float | None]:
    found = compare(*folders, words=[])
    return found.changed_pixels, found.mean_difference


def measured_change(folders: tuple[str, str], versions: tuple) -> str:
    """How much the pictures differ."""
    changed, difference = changed_pixels(folders, versions)
    if changed is None or difference is None:
        return say("change_none")
    return escape_markdown(say("change", changed=f"{100 * changed:.1f} %", difference=f"{difference:.1f}"))


def again() -> None:
    """Shows a button that draws the same prompt with the next seed, if this app has the model."""
    manifest = trace.manifest
    if trace.prompt is None or manifest.name_of_model != worker.Order.model:
        return
    if manifest.edits or permissions.is_read_only():
        return  # the app draws without edits
    seed = (manifest.seed or 0) + 1
    if st.button(say("again", s=seed), icon=":material/casino:"):
        making.submit(replace(order_of(trace), seed=seed), compare_with=folder)


found = {str(entry.folder): label(entry) for entry in candidates()}
with st.container(horizontal=True, vertical_alignment="bottom"):
    if found:
        names = list(found)
        wanted = st.session_state.get("other")
        picked = st.selectbox(
            say("other"), names, index=names.index(wanted) if wanted in found else 0, format_func=found.__getitem__,
            label_visibility="collapsed",
        )  # fmt: skip
        st.session_state["other"] = picked
    else:
        st.info(say("no_other"), icon=":material/compare:")
    again()
making.follow()

if found:
    address.write(compares=True)
    other, other_folder, other_version = library.read_trace(picked)
    if branch not in other.branches:
        there = library.branch_name("cond" if branch == "uncond" else "uncond")
        st.info(say("no_such_branch", missing=library.branch_name(branch), there=there), icon=":material/compare:")
        st.stop()
    try:
        with st.spinner(say("reading")):
            block = library.pair_block((folder, other_folder), (version, other_version), branch, library.language())
    except NothingInCommon:
        st.info(say("nothing_in_common"), icon=":material/compare:")
    except ToushiError as error:
        library.stop_with_error(error)
    else:
        st.markdown(measured_change((folder, other_folder), (version, other_version)))
        component.pair_map(block, key="pair_map")
        verdict_view.show_changes((trace, other), (folder, other_folder), (version, other_version))
        if not any(differences(trace, other, library.language())):
            st.caption(say("same_run"))
        library.show_facts(trace)
        library.show_facts(other)
