"""The frame of every lesson: predict, see, change, question."""

from pathlib import Path

import streamlit as st

from toushi.dashboards import trace_library as library
from toushi.dashboards.lessons import live_runs
from toushi.dashboards.lessons.lesson import Control, Lesson, Question, Values
from toushi.dashboards.lessons.lesson_state import forget, lesson_text, memory_of, widget_key
from toushi.dashboards.trace_library import escape_markdown
from toushi.probe.base.errors import ToushiError

MAX_CHARACTERS = 60  # of a text
STYLE = Path(__file__).with_name("lessons.css")


def show(lesson: Lesson) -> None:
    """Shows the lesson as far as the learner has come: before the prediction there is nothing to see."""
    text, right = st.columns([2, 3], gap="large")
    live = right.container(key="lesson_live")
    try:
        with live, st.spinner(lesson_text("frame_running")):
            with text:
                st.subheader(lesson_text(f"{lesson.name}_title"), anchor=False)
                st.markdown(lesson_text(f"{lesson.name}_idea"))
                predicted = _predict(lesson)
            if not predicted:
                st.info(lesson_text("frame_hidden"), icon=":material/visibility_off:")
                return
            with text:
                _see(lesson)
                values = _change(lesson)
            question = lesson.show(values)
            with text:
                _ask(lesson, values, question)
    except (ToushiError, OSError) as error:
        live.warning(escape_markdown(library.translate_error(error)), icon=":material/warning:")


def _heading(part: str, number: int) -> None:
    st.markdown(f"##### {number} · {lesson_text(f'frame_{part}')}")


def _predict(lesson: Lesson) -> bool:
    """Asks for the prediction, once. Whether there is one."""
    memory = memory_of(lesson.name)
    labels = {guess: lesson_text(f"{lesson.name}_guess_{guess}") for guess in lesson.guesses}
    question = lesson_text(f"{lesson.name}_predict", **lesson.predict_values(lesson.defaults(library.language())))
    _heading("predict", 1)
    if "guess" in memory:
        st.markdown(f"{question}  \n{lesson_text('frame_guess', guess=labels[memory['guess']])}")
        return True
    guess = st.radio(
        question, list(labels), index=None, format_func=labels.__getitem__, key=widget_key(lesson.name, "guess")
    )
    if guess is not None:
        memory["guess"] = guess
        st.rerun()
    return False


def _see(lesson: Lesson) -> None:
    _heading("see", 2)
    right, numbers = lesson.verdict(lesson.defaults(library.language()))
    is_right = memory_of(lesson.name).get("guess") == right
    judged = lesson_text(
        "frame_guessed_right" if is_right else "frame_guessed_wrong", right=lesson_text(f"{lesson.name}_guess_{right}")
    )
    verdict = f"**{judged}** {lesson_text(f'{lesson.name}_verdict', **numbers)}"
    (st.success if is_right else st.info)(verdict)
    st.markdown(lesson_text(f"{lesson.name}_see"))


def _change(lesson: Lesson) -> Values:
    """The controls. Comes back with what they are set to."""
    memory = memory_of(lesson.name)
    values = lesson.defaults(library.language()) | memory.get("changes", {})
    _heading("change", 3)
    st.markdown(lesson_text(f"{lesson.name}_change"))
    typed = [control for control in lesson.controls if control.kind in ("prompt", "seed")]
    with st.form(widget_key(lesson.name, "form")):
        entered = {control.name: _widget(lesson, control, values) for control in typed}
        pressed = st.form_submit_button(lesson_text("frame_draw"), icon=":material/play_arrow:")
    if pressed and live_runs.tokenizer().encode(str(entered.get("prompt", ""))).lost:
        st.warning(lesson_text("frame_long", n=live_runs.tokenizer().length))
    elif pressed:
        values |= {name: value for name, value in entered.items() if value != ""}
    for control in lesson.controls:
        if control not in typed:
            values[control.name] = _widget(lesson, control, values)
    defaults = lesson.defaults(library.language())
    memory["changes"] = {name: value for name, value in values.items() if value != defaults[name]}
    return values


def _widget(lesson: Lesson, control: Control, values: Values) -> str | int | float:
    label, key, value = (
        lesson_text(f"frame_{control.name}"),
        widget_key(lesson.name, control.name),
        values[control.name],
    )
    if control.kind == "prompt":
        return st.text_input(label, str(value), max_chars=MAX_CHARACTERS, key=f"{key} {library.language()}").strip()
    if control.kind == "word":
        words = live_runs.word_names(str(values["prompt"]))
        if not words:
            return ""
        index = words.index(str(value)) if value in words else 0
        return st.selectbox(label, words, index, key=f"{key} {values['prompt']}")
    if control.kind == "seed":
        return st.number_input(label, int(control.low), int(control.high), int(value), key=key)
    return st.slider(label, control.low, control.high, float(value), control.step, key=key, format="%g")


@st.fragment
def _ask(lesson: Lesson, values: Values, question: Question | None) -> None:
    """The question about the learner's own input, its check, and why."""
    memory = memory_of(lesson.name)
    _heading("question", 4)
    if not memory.get("changes"):
        st.caption(lesson_text("frame_change_first"))
        return
    if question is None:
        st.caption(lesson_text("frame_no_question", n=2))
        return
    kept = memory.get("answer")
    kept = kept[1] if kept and kept[0] == dict(values) else None
    key = widget_key(lesson.name, f"answer {hash(tuple(values.items()))}")
    with st.form(f"{key} form"):
        if question.choices:
            choices = list(question.choices)
            index = choices.index(kept) if kept in choices else None
            answer = st.radio(question.text, choices, index, horizontal=True, key=key)
        else:
            answer = st.number_input(question.text, value=None if kept is None else int(kept), step=1, key=key)
        if st.form_submit_button(lesson_text("frame_check"), icon=":material/check:") and answer is not None:
            memory["answer"] = dict(values), answer
            kept = answer
    if kept is None:
        return
    with st.spinner(lesson_text("frame_running")):
        is_right, right, why = question.check(kept)
    memory["done"] = True
    judged = lesson_text("frame_right") if is_right else lesson_text("frame_wrong", right=right)
    (st.success if is_right else st.info)(f"**{escape_markdown(judged)}** {escape_markdown(why)}")


def choose(lessons: tuple[Lesson, ...]) -> Lesson:
    """The menu of the lessons, and what a teacher needs: large type, print, reset."""
    names = {lesson.name: lesson for lesson in lessons}
    if st.session_state.get("lesson") not in names:
        st.session_state["lesson"] = lessons[0].name

    done = {name: " ✓" if memory_of(name).get("done") else "" for name in names}
    labels = {name: f"{i} · {lesson_text(f'{name}_title')}{done[name]}" for i, name in enumerate(names, 1)}
    with st.container(horizontal=True, vertical_alignment="center", key="lesson_menu"):
        name = st.selectbox(
            lesson_text("frame_choose"),
            list(names),
            format_func=labels.__getitem__,
            key="lesson",
            label_visibility="collapsed",
        )
        st.toggle(lesson_text("frame_large"), key="lesson_large")
        if st.button(lesson_text("frame_print"), icon=":material/print:"):
            st.html("<script>setTimeout(() => window.print(), 300)</script>", unsafe_allow_javascript=True)
        st.button(lesson_text("frame_again"), icon=":material/replay:", on_click=forget, args=(name,))
        st.button(lesson_text("frame_reset"), icon=":material/restart_alt:", on_click=forget)
    large = "html { font-size: 150%; }" if st.session_state.get("lesson_large") else ""
    st.html(f"<style>{STYLE.read_text(encoding='utf-8')}{large}</style>")
    return names[name]
