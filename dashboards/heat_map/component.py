"""The browser components: a picture with its maps, two pictures, and the attention of the text encoder."""

from functools import cache
from typing import TypedDict

from streamlit.components.v2 import component

from toushi.dashboards.heat_map.scripts import HERE, script, style


class Action(TypedDict):
    """What somebody asks for a word."""

    unit: int  # its place in the header's units
    action: str  # one of the header's actions
    text: str  # of swap


@cache
def _component(kind: str):
    return component(
        f"toushi_{kind}",
        html=f'<div class="toushi {kind}" tabindex="-1"></div>',
        css=style(),
        js=f"{script(kind)}\n{(HERE / 'mount.js').read_text(encoding='utf-8')}",
    )


def heat_map(payload: bytes, key: str) -> Action | None:
    """The explorer of a picture. `payload` is a `payload.picture_block`. Comes back with the action of a button that was
    pressed; nothing else comes to Python."""
    result = _component("picture")(data=payload, key=key, on_action_change=lambda: None)
    return result.get("action")


def pair_map(payload: bytes, key: str) -> None:
    """Two traces and the difference of their maps. `payload` is a `payload.pair_block`."""
    _component("pair")(data=payload, key=key)


def text_map(payload: bytes, key: str) -> None:
    """Characters, tokens, words and the encoder's attention. `payload` is a `payload.encoder_block`."""
    _component("text")(data=payload, key=key)
