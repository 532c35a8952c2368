"""Whether a picture of our own models has what its prompt asks for, why not, and what two pictures have each.

The recogniser needs some seconds of one core for its first picture, so it looks only when it is asked to.
"""

import math
import threading

import streamlit as st

from toushi.dashboards import trace_library as library
from toushi.dashboards.trace_library import escape_markdown, say
from toushi.experiments.scene_world import grammar_en, grammar_zh
from toushi.experiments.scene_world.objects import COLOURABLE, COLOURS, KINDS
from toushi.experiments.scene_world.prompt_verdict import ObjectVerdict, prompt_verdict
from toushi.experiments.scene_world.recogniser import Detection, Recognition, recognise
from toushi.experiments.scene_world.recognition_changes import MOVED, ObjectPair, pair_objects
from toushi.experiments.scene_world.scenes import SIDE
from toushi.probe.trace.picture_trace import Trace

OWN = "mini-unet"  # the family of the models that draw this world
_one_at_a_time = threading.Lock()  # two would make the same templates


def can_judge(trace: Trace) -> bool:
    image = trace.image() if trace.manifest.family == OWN else None
    return image is not None and image.shape == (SIDE, SIDE, 3) and trace.prompt is not None


@st.cache_data(max_entries=200, show_spinner=False)
def _recognition(folder: str, version: tuple) -> Recognition:
    image = library.read_trace(folder)[0].image()
    assert image is not None
    with _one_at_a_time:
        return recognise(image)


def _toggle(label: str) -> bool:
    """Whether somebody wants to know. The choice holds for the pages that follow."""
    chosen = st.toggle(label, st.session_state.get("judges", False), help=say("verdict_help"))
    st.session_state["judges"] = chosen
    return chosen


def show_verdict(trace: Trace, folder: str, version: tuple) -> None:
    """Asked and drawn, for a picture of the scene world."""
    if not can_judge(trace):
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        wanted = _toggle(say("verdict"))
        with st.popover(say("known"), icon=":material/list:"):
            show_known()
    if not wanted:
        return
    with st.spinner(say("reading")):
        verdict = prompt_verdict(trace.prompt or "", _recognition(folder, version))
    names = [say("verdict_asked"), say("verdict_drawn"), say("verdict_reason")]
    rows = [_row(one) for one in verdict.objects]
    if rows:
        st.table({name: [row[i] for row in rows] for i, name in enumerate(names)}, border="horizontal")
    else:
        st.caption(say("verdict_nothing"))
    for word, near in verdict.unknown.items():
        st.caption(escape_markdown(say("unknown_near" if near else "unknown_alone", word=word, names="、".join(near))))
    if verdict.extra:
        st.caption(escape_markdown(say("verdict_extra", things=_list(map(name_detection, verdict.extra)))))


def show_changes(traces: tuple[Trace, Trace], folders: tuple[str, str], versions: tuple) -> None:
    """What became of each object, from the first picture to the second."""
    if not all(map(can_judge, traces)) or not _toggle(say("objects")):
        return
    with st.spinner(say("reading")):
        pairs = pair_objects(*(_recognition(*one) for one in zip(folders, versions)))
    st.table(
        {
            "A": [name_detection(pair.a) for pair in pairs],
            "B": [name_detection(pair.b) for pair in pairs],
            say("object_change"): [describe_change(pair) for pair in pairs],
        },
        border="horizontal",
    )


def describe_change(pair: ObjectPair) -> str:
    if pair.a is None or pair.b is None:
        return say("object_new" if pair.a is None else "object_gone")
    distance = math.hypot(pair.a.x - pair.b.x, pair.a.y - pair.b.y)
    parts = [say("object_moved", n=round(distance))] if distance > MOVED else []
    parts += [say("object_recoloured")] if pair.a.colour != pair.b.colour else []
    return _list(parts) or say("object_same")


def _row(verdict: ObjectVerdict) -> tuple[str, str, str]:
    asked, detection = verdict.request, verdict.detection
    thing = name_thing(asked.kinds[0] if detection is None else detection.kind, asked.colour)
    kinds = _list(map(name_kind, COLOURABLE))
    drawn = f"{'✓' if verdict.right else '✗'} {name_detection(detection)}"
    reason = verdict.reason and escape_markdown(say(f"reason_{verdict.reason}", thing=thing, kinds=kinds))
    return name_thing(asked.kinds[0], asked.colour), drawn, reason


def name_detection(thing: Detection | None) -> str:
    return say("verdict_missing") if thing is None else name_thing(thing.kind, thing.colour)


def name_thing(kind: str, colour: str | None) -> str:
    return name_kind(kind) if colour is None else say("thing", kind=name_kind(kind), colour=name_colour(colour))


def name_kind(kind: str) -> str:
    return KINDS[kind].names(library.language())[0]


def name_colour(colour: str) -> str:
    return grammar_zh.COLOURS[colour][0] if library.language() == "zh" else colour


def _list(names) -> str:
    return ("、" if library.language() == "zh" else ", ").join(names)


def show_known() -> None:
    """What can stand in a prompt."""
    grammar = grammar_zh if library.language() == "zh" else grammar_en
    kinds = [kind for kind in KINDS.values() if kind.alone]
    known = {
        "objects": [_list(name_kind(kind.name) for kind in kinds if kind.group == group) for group in _groups()],
        "coloured": [_list(map(name_kind, COLOURABLE))],
        "colours": [_list(map(name_colour, COLOURS))],
        "places": [_list(names[0] for names in grammar.PLACES.values())],
        "times": [_list(names[0] for names in grammar.TIMES.values())],
        "styles": [_list(names[0].strip("：:， ") for names in grammar.STYLE_BEFORE.values())],
    }
    for key, lines in known.items():
        st.markdown(f"**{say(f'known_{key}')}**  \n" + "  \n".join(map(escape_markdown, lines)))


def _groups() -> list[str]:
    return list(dict.fromkeys(kind.group for kind in KINDS.values()))
