"""The picture with each word's heat map over it."""

import streamlit as st

from toushi.dashboards import download_menu
from toushi.dashboards import trace_library as library
from toushi.dashboards.heat_map import component
from toushi.dashboards.heat_map.trace_pair import NothingInCommon
from toushi.dashboards.prompt_form import change_prompt_button
from toushi.dashboards.trace_library import say
from toushi.probe.base.errors import ToushiError

row = library.toolbar(difference=True)
trace, folder, version = library.read_open_trace()
for limit, lost in st.session_state.pop("cut", []):
    library.warn_cut("cut", lost, limit=limit)
branch = library.chosen_branch(trace)
library.explain_branch(trace)
with row:
    download_menu.show(trace, folder, version, branch)
    change_prompt_button(trace)

try:
    with st.spinner(say("reading")):
        if library.shows_difference(trace):
            component.pair_map(library.branches_block(folder, version, library.language()), key="branches")
        else:
            component.heat_map(library.picture_block(folder, version, branch, library.language()), key="heat_map")
            library.show_omissions(folder, version, branch)
except NothingInCommon:
    st.info(say("branch_nothing"), icon=":material/compare:")
except ToushiError as error:
    library.stop_with_error(error)
library.show_facts(trace)
