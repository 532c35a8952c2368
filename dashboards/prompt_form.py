"""The form that records a new trace. It keeps text and settings, and takes them from a trace or an example."""

from dataclasses import replace

import streamlit as st

from toushi.dashboards import job_view, permissions
from toushi.dashboards import trace_library as library
from toushi.dashboards.sampling_worker import Order
from toushi.dashboards.trace_library import say
from toushi.probe.trace.picture_trace import Trace

SAMPLERS = ["euler", "heun"]
TRACES_PAGE = "app_pages/traces_page.py"
EXAMPLES = {
    "en": ("a blue cat on the left, a red car on the right", "a hippo", "a horse", "a hot dog", "two owls at night",
           "a red star above a white cat"),
    "zh": ("左边是蓝色的猫，右边是红色的汽车", "河马", "马", "热狗", "夜晚，两只猫头鹰", "白色的猫上面有一颗红色的星星"),
}  # fmt: skip


def show() -> None:
    """The form, with the last order in it, and examples."""
    order: Order = st.session_state.get("order") or Order(say("prompt_default"))
    with st.form("make"):
        prompt = st.text_area(say("prompt"), order.prompt, height=80, help=say("prompt_help"))
        with st.expander(say("more_settings"), icon=":material/tune:"):
            negative = st.text_input(say("negative"), order.negative, help=say("negative_help"))
            left, right = st.columns(2)
            steps = left.number_input(say("steps"), 1, 200, order.steps, help=say("steps_help"))
            seed = right.number_input(say("seed"), 0, 2**31 - 1, order.seed, help=say("seed_help"))
            guidance = left.number_input(say("guidance"), 1.0, 20.0, order.guidance, 0.5, help=say("guidance_help"))
            sampler = right.selectbox(say("sampler"), SAMPLERS, SAMPLERS.index(order.sampler), help=say("sampler_help"))
            if order.size != Order.size:
                st.caption(say("fact_size", h=order.size[0], w=order.size[1]))
        pressed = st.form_submit_button(say("make"), type="primary", icon=":material/brush:")
    if pressed:
        order = Order(
            prompt.strip(), negative.strip(), int(steps), float(guidance), int(seed), sampler, size=order.size
        )
        _keep(order)
        job_view.submit(order)
    with st.container(horizontal=True, gap="xsmall"):
        for example in EXAMPLES[library.language()]:
            st.button(
                example,
                key=f"example {example}",
                help=say("examples"),
                on_click=_keep,
                args=(replace(order, prompt=example),),
            )


def _keep(order: Order) -> None:
    st.session_state["order"] = order


def order_of(trace: Trace) -> Order:
    """What would draw the trace again, as far as the form can say it."""
    run, plain = trace.manifest, Order(trace.prompt or "")
    own = run.name_of_model == plain.model
    return Order(
        plain.prompt,
        run.negative_prompt or "",
        min(max(run.steps.count, 1), 200),
        plain.guidance if run.guidance is None else min(max(float(run.guidance), 1.0), 20.0),
        min(run.seed or 0, 2**31 - 1),
        run.sampler if run.sampler in SAMPLERS else plain.sampler,
        size=run.size if own and run.size else plain.size,
    )


def change_prompt_button(trace: Trace) -> None:
    """Opens the form with the text and the settings of the trace."""
    if trace.prompt is None or permissions.is_read_only():
        return
    if st.button(say("change_prompt"), icon=":material/edit:"):
        _keep(order_of(trace))
        st.switch_page(TRACES_PAGE)
