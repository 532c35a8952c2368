"""The gallery: opens a trace, or records a new one."""

from pathlib import Path

import streamlit as st

from toushi.dashboards import job_view as making
from toushi.dashboards import sampling_worker as worker
from toushi.dashboards import trace_library as library
from toushi.dashboards.trace_library import escape_markdown, say

CARD = 222  # pixels
PICTURE_PAGE, LAYERS_PAGE = "app_pages/picture_page.py", "app_pages/layers_page.py"


def show(folder: str | Path) -> None:
    library.open_folder(folder)
    st.switch_page(LAYERS_PAGE if library.text_trace_folder() else PICTURE_PAGE)


def make() -> None:
    with st.form("make"):
        prompt = st.text_area(say("prompt"), say("prompt_default"), height=80, help=say("prompt_help"))
        with st.expander(say("more_settings"), icon=":material/tune:"):
            negative = st.text_input(say("negative"))
            left, right = st.columns(2)
            steps = left.number_input(say("steps"), 1, 200, 20)
            seed = right.number_input(say("seed"), 0, 2**31 - 1, 0)
            guidance = left.number_input(say("guidance"), 1.0, 20.0, 3.0, 0.5)
            sampler = right.selectbox(say("sampler"), ["euler", "heun"])
        pressed = st.form_submit_button(say("make"), type="primary", icon=":material/brush:")
    if pressed:
        making.submit(worker.Order(prompt.strip(), negative.strip(), int(steps), float(guidance), int(seed), sampler))


new, old = st.columns(2, gap="large")
with new:
    st.markdown(f"##### {say('make_title')}")
    make()
    making.follow(show)
with old:
    st.markdown(f"##### {say('open_title')}")
    with st.form("open"):
        folder = st.text_input(say("open_folder"), placeholder="runs/demo", help=say("open_folder_help"))
        if st.form_submit_button(say("open"), icon=":material/folder_open:") and folder.strip():
            show(folder.strip())

gallery = escape_markdown(f"{library.gallery()}/")
st.markdown(f"##### {say('below_runs', folder=gallery)}")
found = library.entries()
if not found:
    st.caption(say("none_below_runs", folder=gallery))
with st.container(horizontal=True):
    for entry in found:
        with st.container(border=True, width=CARD):
            title = library.title(entry)
            if picture := library.thumbnail(entry):
                st.image(picture, alt=say("picture_alt", prompt=title), width="stretch", output_format="PNG")
            st.markdown(f"**{escape_markdown(title)}**")
            st.caption(escape_markdown(str(entry.folder)))
            if st.button(say("open"), key=f"open {entry.folder}", width="stretch"):
                show(entry.folder)
