"""The browser components: a picture with its maps, two pictures, and the attention of the text encoder.

Their JavaScript is plain. Its files are joined in the order in which they depend on each other.
"""

from functools import cache
from pathlib import Path

from streamlit.components.v2 import component

HERE = Path(__file__).parent


def _read(*names: str) -> str:
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)


@cache
def _component(name: str, kind: str, scripts: tuple[str, ...]):
    return component(
        name,
        html=f'<div class="toushi {kind}" tabindex="-1"></div>',
        css=_read("style.css"),
        js=_read("base.js", *scripts, "mount.js"),
    )


def heat_map(payload: bytes, key: str) -> None:
    """The explorer of a picture. `payload` is a `payload.picture_block`. Nothing comes back to Python."""
    _component("toushi_picture", "picture", ("stage.js", "panels.js", "picture.js"))(data=payload, key=key)


def pair_map(payload: bytes, key: str) -> None:
    """Two traces and the difference of their maps. `payload` is a `payload.pair_block`."""
    _component("toushi_pair", "pair", ("stage.js", "panels.js", "pair.js"))(data=payload, key=key)


def text_map(payload: bytes, key: str) -> None:
    """Characters, tokens, words and the encoder's attention. `payload` is a `payload.encoder_block`."""
    _component("toushi_text", "text", ("text_map.js",))(data=payload, key=key)
