"""The prompt in the text encoder: characters, tokens, words, and the attention among tokens."""

import streamlit as st

from toushi.dashboards import trace_library as library
from toushi.dashboards.heat_map import component
from toushi.dashboards.trace_library import say
from toushi.probe.base.errors import ToushiError

library.toolbar()
trace, folder, version = library.read_open_trace()
branch = library.chosen_branch(trace)
try:
    with st.spinner(say("reading")):
        block = library.encoder_block(folder, version, branch, library.language())
except ToushiError as error:
    library.stop_with_error(error)
else:
    component.text_map(block, key="text_map")
    library.show_omitted_heads(folder, version, branch)
    if not library.has_encoder(trace, branch):
        library.show_no_encoder(trace)
    library.show_facts(trace)
