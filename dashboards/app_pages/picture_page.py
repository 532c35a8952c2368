"""The picture with each word's heat map over it."""

import streamlit as st

from toushi.dashboards import trace_library as library
from toushi.dashboards.heat_map import component
from toushi.dashboards.trace_library import say
from toushi.probe.base.errors import ToushiError

trace, folder, version = library.read_open_trace()
for one in st.session_state.pop("cut", []):
    library.warn_cut("cut", one.lost, limit=one.limit)
branch = library.chosen_branch(trace)

try:
    with st.spinner(say("reading")):
        block = library.picture_block(folder, version, branch, library.language())
except ToushiError as error:
    library.stop_with_error(error)
else:
    component.heat_map(block, key="heat_map")
    library.show_omissions(folder, version, branch)
    library.show_facts(trace)
