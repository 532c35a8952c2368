"""The menu of the picture page with the files that can be taken away. A file is made when its button is pressed."""

from collections.abc import Callable
from functools import partial

import streamlit as st

from toushi.dashboards import downloads
from toushi.dashboards import trace_library as library
from toushi.dashboards.trace_library import say
from toushi.probe.base.byte_sizes import format_bytes
from toushi.probe.trace.picture_trace import Trace

MAX_ZIP = 2**30  # bytes; it is made in memory


def show(trace: Trace, folder: str, version: tuple, branch: str) -> None:
    language, name = library.language(), trace.folder.resolve().name

    def button(
        key: str, suffix: str, make: Callable[[], bytes], help: str | None = None, disabled: bool = False
    ) -> None:
        st.download_button(
            say(f"take_{key}"), make, f"{name}{suffix}", on_click="ignore", key=f"take {key}", width="stretch", help=help,
            disabled=disabled,
        )  # fmt: skip

    with st.popover(say("take"), icon=":material/download:"):
        figure = partial(downloads.words_figure, trace, branch, language)
        with st.container(horizontal=True):
            for kind in ("png", "svg", "pdf"):
                button(kind, f"-words.{kind}", partial(figure, kind), help=say("take_figure_help"))
        button("csv", "-shares.csv", lambda: downloads.shares_csv(trace, library.word_maps_of(folder, version, branch)))
        no_steps = trace.keep == "sum" or not trace.steps
        button("gif", ".gif", lambda: downloads.steps_gif(trace), help=say("take_gif_help"), disabled=no_steps)
        button("html", ".html", lambda: downloads.trace_page(trace, branch, language), help=say("take_html_help"))
        size = sum(file.stat().st_size for file in downloads.trace_files(trace))
        button("zip", ".zip", lambda: downloads.trace_zip(trace), help=format_bytes(size), disabled=size > MAX_ZIP)
        st.caption(say("take_again"))
        st.code(downloads.command(trace), language=None, wrap_lines=True)
