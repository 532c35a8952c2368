"""What each layer of a text encoder makes of one or two sentences, or of those saved by `toushi layers --save`."""

import io
import warnings
from typing import TYPE_CHECKING

import streamlit as st

from toushi.dashboards import layers_charts as charts
from toushi.dashboards import permissions
from toushi.dashboards import trace_library as library
from toushi.dashboards.garbage_collection import freeze_loaded_objects
from toushi.dashboards.trace_library import escape_markdown, say
from toushi.probe.analysis.layer_measures import cosine
from toushi.probe.base.errors import ToushiError

if TYPE_CHECKING:
    from toushi.probe.encoders.load_encoder import Encoder
    from toushi.probe.trace.text_encoding import TextEncodings

MAX_CHARACTERS = 200  # `toushi layers` and encode_layers() take longer texts
MAX_TEXTS = 4  # of a trace, in one figure
BANK = ("我在河边的银行钓鱼", "他去银行存钱了")


@st.cache_resource(max_entries=2, show_spinner=False)
def load_encoder(encoder: str) -> "Encoder":
    from toushi.probe.encoders.load_encoder import open_encoder

    found = open_encoder(encoder)
    freeze_loaded_objects()
    return found


@st.cache_data(max_entries=8, show_spinner=False)
def read_texts(encoder: str, texts: tuple[str, ...]) -> tuple:
    """The encodings, the encoder's limit of tokens, and the lost words of each text that was cut."""
    from toushi.probe.encoders.encode_layers import encode_layers
    from toushi.probe.models.mini_unet import PromptCut

    known = load_encoder(encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptCut)  # the page has its own text for it
        readings = encode_layers(known, texts)
    return readings, known.limit, [[word.text for word in one.lost] for one in readings if known.tokenize(one.text)[1]]


def paper_figure(readings: "TextEncodings", layer: int, language: str) -> bytes:
    """The figure of `toushi layers` as PDF, in detail at one layer."""
    from toushi.probe.figures.layer_similarity_figure import layer_similarity_figure

    buffer = io.BytesIO()
    layer_similarity_figure(readings, [layer], language=language).savefig(buffer, format="pdf")
    return buffer.getvalue()


def show(readings: "TextEncodings", key: tuple) -> None:
    """How each word changes from layer to layer; then, at one layer, which words are alike and what they attend to."""
    language, every = library.language(), [int(number) for number in readings[0].states["layer"].values]
    name = f"{key[0]}_{len(every)}"
    st.markdown(f"**{say('layers_change')}**", help=say("layers_how"))
    for number, (tab, reading) in enumerate(zip(st.tabs([reading.text for reading in readings]), readings)):
        tab.plotly_chart(charts.embedding_curves(reading, language), key=f"layers_curves_{number}")
    layer = st.select_slider(say("layers_layer"), every, every[-1], key=f"layers_layer_{name}")
    states = [reading.word_states().sel(layer=layer) for reading in readings]
    if len(readings) > 1:
        st.markdown(f"**{say('layers_alike')}**", help=say("layers_how"))
        with st.container(horizontal=True):
            for number, other in enumerate(states[1:]):
                rows, columns = (part["word"].values.tolist() for part in (states[0], other))
                matrix = charts.word_matrix(cosine(states[0].values, other.values), rows, columns, say("layers_cosine"))
                st.plotly_chart(matrix, width="content", key=f"layers_alike_{number}")
    show_attention(readings, layer, name)
    st.download_button(
        say("layers_take"), lambda: paper_figure(readings, layer, language), "layers.pdf", on_click="ignore",
        icon=":material/download:",
    )  # fmt: skip


def show_attention(readings: "TextEncodings", layer: int, name: str) -> None:
    """What the words attend to at a layer: the mean of its heads, or one of them."""
    blind = next((why for reading in readings for why in reading.blind.values()), None)
    if not layer or blind is not None:
        st.caption(say("layers_no_attention") if blind is None else say("layers_blind", why=blind))
        return
    st.markdown(f"**{say('layers_attention')}**", help=say("layers_attention_help"))
    attention = [reading.word_attention().sel(layer=layer) for reading in readings]
    heads = ["mean", *range(attention[0].sizes["head"])]
    head = st.pills(say("layers_head"), heads, format_func=lambda head: say("layers_mean") if head == "mean" else str(head),
                    default="mean", required=True, key=f"layers_head_{name}")  # fmt: skip
    maps = [part.mean("head") if head == "mean" else part.sel(head=head) for part in attention]
    top = max((float(part.max()) for part in maps if part.size), default=1.0)
    others = [say("layers_other"), say("layers_special")]
    with st.container(horizontal=True):
        for number, part in enumerate(maps):
            words = part["query"].values.tolist()
            matrix = charts.word_matrix(part.values, words, [*words, *others], say("layers_probability"), (0.0, top))
            st.plotly_chart(matrix, width="content", key=f"layers_attention_{number}")


def show_trace(folder: str) -> None:
    """Shows texts of a trace."""
    from toushi.probe.trace.open import open_encoder_trace
    from toushi.probe.trace.text_encoding import TextEncodings

    trace = open_encoder_trace(folder)
    texts = range(len(trace))
    chosen = st.multiselect(
        say("layers_kept", folder=escape_markdown(folder)), texts, texts[:2], format_func=lambda i: f"{i + 1}  {trace.texts[i]}",
        max_selections=MAX_TEXTS, help=say("layers_kept_help"),
    )  # fmt: skip
    if chosen:
        readings = TextEncodings(trace.encodings().encoder, [trace.encoding(i) for i in chosen])
        show(readings, (folder, library.trace_version(folder), *chosen))


def show_form() -> None:
    """Shows a form for sentences, and the sentences that were entered."""
    with st.form("layers"):
        left, right = st.columns(2)
        first = left.text_input(say("layers_first"), BANK[0])
        second = right.text_input(say("layers_second"), BANK[1])
        encoder = st.text_input(
            say("layers_encoder"), "mini-unet", help=say("layers_encoder_help"), disabled=permissions.is_shared()
        )
        if st.form_submit_button(say("layers_look"), type="primary", icon=":material/layers:"):
            st.session_state["sentences"] = (
                "mini-unet" if permissions.is_shared() else encoder.strip(),
                tuple(text.strip() for text in (first, second) if text.strip()),
            )
    if "sentences" not in st.session_state:
        return
    name, texts = st.session_state["sentences"]
    if not texts:
        st.warning(say("layers_none"), icon=":material/edit:")
    elif max(map(len, texts)) > MAX_CHARACTERS:
        st.warning(say("layers_long", n=MAX_CHARACTERS), icon=":material/content_cut:")
    else:
        with st.spinner(say("layers_reading")):
            readings, limit, cuts = read_texts(name, texts)
        for lost in cuts:
            library.warn_cut("layers_cut", lost, limit=limit, encoder=readings.encoder)
        show(readings, (name, texts))


folder = library.text_trace_folder()
try:
    if folder:
        show_trace(folder)
        with st.expander(say("layers_own"), icon=":material/edit:"):
            show_form()
    else:
        show_form()
except ToushiError as error:
    st.error(escape_markdown(library.translate_error(error)), title=say("layers_failed"), icon=":material/error:")
