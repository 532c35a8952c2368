"""The prompt as the text encoder meets it: characters, tokens, words, and who reads from whom."""

import streamlit as st

from toushi.dashboards import trace_library as library
from toushi.dashboards.heat_map import component
from toushi.dashboards.trace_library import say
from toushi.probe.base.errors import ToushiError

trace, folder, version = library.opened()
branch = library.branch(trace)
try:
    with st.spinner(say("reading")):
        block = library.encoder(folder, version, branch, library.language())
except ToushiError as error:
    library.refuse(error)
else:
    component.text_map(block, key="text_map")
    library.heads_left_out(folder, version, branch)
    if not library.has_encoder(trace, branch):
        library.no_encoder(trace)
    library.facts(trace)
