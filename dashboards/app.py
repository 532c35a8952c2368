"""The explorer: `streamlit run dashboards/app.py -- FOLDER`, or `toushi view FOLDER`."""

from pathlib import Path

import streamlit as st

from toushi.dashboards import address, job_view
from toushi.dashboards import messages as text
from toushi.dashboards import trace_library as library
from toushi.dashboards.garbage_collection import freeze_loaded_objects
from toushi.dashboards.trace_library import say
from toushi.probe.base.bilingual_text import language_of_locale
from toushi.probe.base.errors import ToushiError

HERE = Path(__file__).parent
# Streamlit's captions, and white on the primary colour of the dark theme, have a contrast below 4.5.
STYLE = """<style>
[data-testid=stCaptionContainer] { opacity: 0.8; }
button[kind^=primary] { color: light-dark(#fff, #0d1b3e); }
</style>"""


@st.cache_resource(show_spinner=False)
def freeze_once() -> None:
    """Once for all sessions."""
    freeze_loaded_objects()


st.set_page_config(page_title="Toushi 透视", page_icon=str(HERE / "icon.png"), layout="wide")
st.session_state.setdefault("language", language_of_locale(st.context.locale))
address.restore()
freeze_once()

pages = HERE / "app_pages"
folder = library.given_trace()
texts = folder is not None and not library.entry(Path(folder)).picture  # saved by `toushi layers --save`


def page_of(name: str, icon: str, default: bool = False):
    title, purpose = say(f"page_{name}"), say(f"page_{name}_help")
    file = pages / f"{name}_page.py"
    return st.Page(file, title=title, help=purpose, icon=f":material/{icon}:", url_path=name, default=default)


traces = page_of("traces", "photo_library", default=folder is None)
picture = page_of("picture", "image_search", default=folder is not None and not texts)
compare = page_of("compare", "compare")
encoder = page_of("encoder", "translate")
layers = page_of("layers", "layers", default=texts)
findings = page_of("findings", "science")
lessons = page_of("lessons", "school")
page = st.navigation([traces, picture, compare, encoder, layers, lessons, findings], position="top")
job_view.lead(page, {"picture": picture, "compare": compare})

st.html(STYLE)
purpose = say("tagline") if page is traces else say("layers_intro") if page is layers else page.help
with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
    st.markdown(f"**{say('app')}** — {purpose}", width="content")
    st.segmented_control(say("language"), list(text.LANGUAGES), format_func=lambda name: text.LANGUAGES[name], key="language",
                         required=True, label_visibility="collapsed")  # fmt: skip
try:
    address.write()
    page.run()
except (ToushiError, OSError) as error:
    library.stop_with_error(error)
