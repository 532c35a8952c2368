"""The JavaScript and CSS of the heat maps, as one text each. The files are joined in the order of their dependence."""

from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = {
    "picture": ("base.js", "stage.js", "panels.js", "picture.js"),
    "pair": ("base.js", "stage.js", "panels.js", "pair.js"),
    "text": ("base.js", "text_map.js"),
}


@cache
def script(kind: str) -> str:
    """The script of a component. It defines `build(root, bytes)`."""
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS[kind])


@cache
def style() -> str:
    return (HERE / "style.css").read_text(encoding="utf-8")
