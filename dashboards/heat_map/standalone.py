"""One trace as one HTML file: the explorer's picture page, without a server, without a network."""

import html
import json
from base64 import b64encode
from pathlib import Path
from string import Template

from toushi.dashboards.heat_map.payload import picture_block, unpack_header
from toushi.dashboards.heat_map.scripts import HERE, script, style
from toushi.dashboards.heat_map.word_maps import WordMaps, read_word_maps
from toushi.dashboards.run_metadata import run_facts
from toushi.probe.base.atomic_io import write_atomic
from toushi.probe.base.errors import ToushiError
from toushi.probe.figures.fonts import FAMILY
from toushi.probe.figures.svg_fonts import font_faces
from toushi.probe.trace.picture_trace import Trace

MAPS_BYTES = 2_500_000  # of the maps, so that the whole file stays under 5 MB


def write_page(trace: Trace, file: Path, language: str, branch: str = "cond", *, overwrite: bool = False) -> WordMaps:
    """Writes the page and returns the maps that are in it: single heads or steps may be left out to fit."""
    if file.exists() and not overwrite:
        raise ToushiError(f"{file} exists: choose another name, or replace it with --overwrite")
    text, maps = page(trace, language, branch)
    write_atomic(file, text)
    return maps


def page(trace: Trace, language: str, branch: str = "cond") -> tuple[str, WordMaps]:
    """The page as HTML, and the maps that are in it."""
    maps = read_word_maps(trace, branch, MAPS_BYTES)
    block = picture_block(trace, maps, branch, language)
    prompt = trace.manifest.prompt_of(branch) or ""
    fields = {
        "language": language,
        "title": html.escape(f"{prompt} · Toushi 透视"),
        "facts": html.escape(" · ".join(run_facts(trace, language).values())),
        "style": style(),
        "script": script("picture"),
    }
    fonts = font_faces("".join(fields.values()) + json.dumps(unpack_header(block), ensure_ascii=False))
    families = ", ".join(f"'{family}'" for family in FAMILY)
    template = Template((HERE / "page.html").read_text(encoding="utf-8"))
    return template.substitute(fields, fonts=fonts, families=families, block=b64encode(block).decode()), maps
