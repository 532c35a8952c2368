"""The view of a running job: progress, a button that stops it, and its error."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import streamlit as st
from streamlit.runtime import get_instance
from streamlit.runtime.scriptrunner import get_script_run_ctx

from toushi.dashboards import sampling_worker as worker
from toushi.dashboards import trace_library as library
from toushi.dashboards.trace_library import escape_markdown, say
from toushi.probe.base.errors import ToushiError


def submit(order: worker.Order | worker.EditOrder) -> None:
    """Starts a job and makes it the job of this session. The job ends when the session's websocket is closed."""
    job: worker.Job | None = st.session_state.get("job")
    context = get_script_run_ctx()
    if job is not None and job.running:
        st.warning(say("one_at_a_time"), icon=":material/hourglass_top:")
        return
    assert context is not None, "a page runs in a session"
    is_wanted = partial(get_instance().is_active_session, context.session_id)
    try:
        st.session_state["job"] = worker.start(order, library.gallery(), is_wanted)
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


def follow(done: Callable[[Path], None]) -> None:
    """Shows the session's job, if there is one. `done` gets the folder of its trace."""
    job: worker.Job | None = st.session_state.get("job")
    if job is None:
        return
    if job.running:
        return watch(job)
    del st.session_state["job"]
    if job.state == "done":
        st.session_state["cut"] = job.cut
        done(job.folder)
    elif job.state == "stopped":
        st.info(escape_markdown(say("stopped", folder=job.folder)), icon=":material/stop_circle:")
    elif job.state == "failed":
        what = library.explain_error(job.error_kinds, job.error)
        st.error(escape_markdown(what), title=say("make_failed"), icon=":material/error:")
