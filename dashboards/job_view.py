"""The view of a running job: progress, a button that stops it, and its error."""

from collections.abc import Mapping
from functools import partial

import streamlit as st
from streamlit.navigation.page import StreamlitPage
from streamlit.runtime import get_instance
from streamlit.runtime.scriptrunner import get_script_run_ctx

from toushi.dashboards import sampling_worker as worker
from toushi.dashboards import trace_library as library
from toushi.dashboards.trace_library import escape_markdown, say
from toushi.probe.base.errors import ToushiError


def submit(order: worker.Order | worker.EditOrder, compare_with: str | None = None) -> None:
    """Starts a job and makes it the job of this session. Its trace is opened when it is done, beside another one if
    that is named. The job ends when the session's websocket is closed."""
    job: worker.Job | None = st.session_state.get("job")
    context = get_script_run_ctx()
    if job is not None and job.running:
        st.warning(say("one_at_a_time"), icon=":material/hourglass_top:")
        return
    assert context is not None, "a page runs in a session"
    is_wanted = partial(get_instance().is_active_session, context.session_id)
    try:
        st.session_state["job"] = worker.start(order, library.gallery(), is_wanted)
        st.session_state["compare_with"] = compare_with
    except ToushiError:
        st.warning(say("busy"), icon=":material/hourglass_top:")


@st.fragment(run_every=1.0)
def watch(job: worker.Job) -> None:
    if job.running:
        n = job.order.steps
        label = {
            "wait": say("making_wait", n=worker.place(job)),
            "load": say("making_load"),
            "draw": say("making_step", i=job.step, n=n),
            "write": say("making_write"),
        }
        st.progress(job.step / n, text=label[job.state])
        if st.button(say("stop"), icon=":material/stop_circle:", disabled=job.stopped_at is not None):
            job.cancel()
    else:
        st.rerun()


def lead(page: StreamlitPage, pages: Mapping[str, StreamlitPage]) -> None:
    """Goes on to the page, picture or compare, that shows the trace of a finished job.

    Until that page runs: a poll that is on its way brings the old page back.
    """
    wanted = pages.get(st.session_state.get("lead_to", ""))
    if wanted is page:
        del st.session_state["lead_to"]
    elif wanted is not None:
        st.switch_page(wanted)


def follow() -> None:
    """Shows the session's job, if there is one, and then leads to its trace."""
    job: worker.Job | None = st.session_state.get("job")
    if job is None:
        return
    if job.running:
        return watch(job)
    del st.session_state["job"]
    if job.state == "done":
        st.session_state["cut"] = job.cut
        if first := st.session_state.pop("compare_with", None):
            library.open_folder(first)
            st.session_state["other"] = str(job.folder)
        else:
            library.open_folder(job.folder)
        st.session_state["lead_to"] = "compare" if first else "picture"
        st.rerun()
    elif job.state == "stopped":
        st.info(escape_markdown(say("stopped", folder=job.folder)), icon=":material/stop_circle:")
    elif job.state == "failed":
        what = library.explain_error(job.error_kinds, job.error)
        st.error(escape_markdown(what), title=say("make_failed"), icon=":material/error:")
