"""The view of a running job: progress, a button that stops it, and its error."""

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from toushi.dashboards import sampling_worker as worker
from toushi.dashboards import trace_library as library
from toushi.dashboards.trace_library import escape_markdown, say
from toushi.probe.base.errors import ToushiError


def submit(order: worker.Order) -> None:
    """Starts a job and makes it the job of this session."""
    try:
        st.session_state["job"] = worker.start(order, library.gallery())
        st.session_state["ordered"] = True
    except ToushiError:
        st.warning(say("busy"), icon=":material/hourglass_top:")


@st.fragment(run_every=1.0)  # each rerun makes Streamlit collect garbage, for which the model waits
def watch(job: worker.Job) -> None:
    if job.running:
        n = job.order.steps
        label = {
            "wait": say("making_wait"),
            "load": say("making_load"),
            "draw": say("making_step", i=job.step, n=n),
            "write": say("making_write"),
        }
        st.progress(job.step / n, text=label[job.state])
        if st.button(say("stop"), icon=":material/stop_circle:", disabled=job.stop.is_set()):
            job.cancel()
    else:
        st.rerun()


def follow(done: Callable[[Path], None]) -> None:
    """Shows the session's job, if there is one. `done` gets the folder of the trace that this session ordered.

    A session without a job (a reloaded page, another window) shows the job that runs.
    """
    if "job" not in st.session_state and (running := worker.running()):
        st.session_state["job"] = running
    job: worker.Job | None = st.session_state.get("job")
    if job is None:
        return
    if job.running:
        return watch(job)
    del st.session_state["job"]
    ours = st.session_state.pop("ordered", False)
    if job.state == "done" and ours:
        st.session_state["cut"] = job.cut
        done(job.folder)
    elif job.state == "stopped":
        st.info(escape_markdown(say("stopped", folder=job.folder)), icon=":material/stop_circle:")
    elif job.state == "failed":
        what = library.translate_error(job.failure) if isinstance(job.failure, ToushiError) else job.error
        st.error(escape_markdown(what), title=say("make_failed"), icon=":material/error:")
