"""The picture with each word's heat map over it."""

import streamlit as st

from toushi.dashboards import trace_library as library
from toushi.dashboards.heat_map import component
from toushi.dashboards.trace_library import say
from toushi.probe.base.errors import ToushiError

trace, folder, version = library.opened()
for one in st.session_state.pop("cut", []):
    library.cut("cut", one.lost, limit=one.limit)
branch = library.branch(trace)

try:
    with st.spinner(say("reading")):
        block = library.picture(folder, version, branch, library.language())
except ToushiError as error:
    library.refuse(error)
else:
    component.heat_map(block, key="heat_map")
    library.left_out(folder, version, branch)
    library.facts(trace)
