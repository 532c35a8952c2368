"""The picture with each word's heat map over it."""

import streamlit as st

from toushi.dashboards import download_menu, job_view, verdict_view, word_actions
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

progress = st.container()
try:
    with st.spinner(say("reading")):
        if library.shows_difference(trace):
            component.pair_map(library.branches_block(folder, version, library.language()), key="branches")
        else:
            buttons = word_actions.actions(trace, branch)
            block = library.picture_block(folder, version, branch, library.language(), buttons)
            if action := component.heat_map(block, key="heat_map"):
                word_actions.act(trace, library.word_maps_of(folder, version, branch).units, action)
            library.show_omissions(folder, version, branch)
except NothingInCommon:
    st.info(say("branch_nothing"), icon=":material/compare:")
except ToushiError as error:
    library.stop_with_error(error)
with progress:
    job_view.follow()
verdict_view.show_verdict(trace, folder, version)
library.show_facts(trace)
