"""The gallery: opens a trace, or records a new one."""

from pathlib import Path

import streamlit as st

from toushi.dashboards import job_view as making
from toushi.dashboards import permissions, prompt_form
from toushi.dashboards import trace_library as library
from toushi.dashboards.trace_library import escape_markdown, say
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.text_width import truncate

CARD, CARD_HEIGHT = 222, 400  # pixels
TITLE, HELP = 40, 600  # cells of a title, where a Chinese character takes two; characters of its tooltip
PICTURE_PAGE, LAYERS_PAGE = "app_pages/picture_page.py", "app_pages/layers_page.py"


def show(folder: str | Path) -> None:
    library.open_folder(folder)
    st.switch_page(LAYERS_PAGE if library.text_trace_folder() else PICTURE_PAGE)


@st.dialog(say("delete_title"), icon=":material/delete:")
def confirm_deletion(entry: library.Entry) -> None:
    st.markdown(escape_markdown(say("delete_ask", title=shortened(entry), folder=entry.folder)))
    with st.container(horizontal=True):
        if st.button(say("delete_yes")):
            try:
                library.delete(entry)
            except (ToushiError, OSError) as error:
                st.error(escape_markdown(library.translate_error(error)))
            else:
                st.rerun()
        if st.button(say("delete_no")):
            st.rerun()


def shortened(entry: library.Entry) -> str:
    """The title in about two lines of a card."""
    return truncate(library.title(entry), TITLE)


def card(entry: library.Entry) -> None:
    title = library.title(entry)
    with st.container(border=True, width=CARD, height=CARD_HEIGHT, vertical_alignment="distribute"):
        with st.container():
            if picture := library.thumbnail(entry):
                st.image(picture, alt=say("picture_alt", prompt=title), width="stretch", output_format="PNG")
            st.markdown(f"**{escape_markdown(shortened(entry))}**", help=escape_markdown(title[:HELP]))
            st.caption(escape_markdown(truncate(str(entry.folder), TITLE)))
        with st.container(horizontal=True):
            if st.button(say("open"), key=f"open {entry.folder}", width="stretch"):
                show(entry.folder)
            if library.can_be_deleted(entry) and st.button(
                "", key=f"delete {entry.folder}", help=say("delete_title"), icon=":material/delete:"
            ):
                confirm_deletion(entry)


def record_form() -> None:
    st.markdown(f"##### {say('make_title')}")
    prompt_form.show()
    making.follow()


def open_form() -> None:
    st.markdown(f"##### {say('open_title')}")
    with st.form("open"):
        folder = st.text_input(say("open_folder"), placeholder="runs/demo", help=say("open_folder_help"))
        if st.form_submit_button(say("open"), icon=":material/folder_open:") and folder.strip():
            show(folder.strip())


if permissions.is_read_only():
    st.info(say("read_only"), icon=":material/lock:")
elif permissions.is_shared():
    record_form()
else:
    new, old = st.columns(2, gap="large")
    with new:
        record_form()
    with old:
        open_form()

gallery = escape_markdown(f"{library.gallery()}/")
st.markdown(f"##### {say('below_runs', folder=gallery)}")
found = library.entries()
if not found:
    st.caption(say("none_below_runs", folder=gallery))
elif len(found) > 1:
    wanted = st.text_input(
        say("search"), placeholder=say("search"), label_visibility="collapsed", icon=":material/search:"
    )
    found = [entry for entry in found if wanted.casefold() in f"{library.title(entry)}\n{entry.folder}".casefold()]
    if not found:
        st.caption(say("search_none"))
with st.container(horizontal=True):
    for entry in found:
        card(entry)
