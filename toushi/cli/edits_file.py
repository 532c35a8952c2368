"""The edits of a JSON file or of a trace, as `--edits` takes them."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.safe_read import read_regular_file

if TYPE_CHECKING:
    from toushi.probe.editing.editing import Edit
    from toushi.probe.pipelines.family import Model


def read_edits(source: Path | None) -> list:
    """The edits in a JSON file, or of a trace."""
    if source is None:
        return []
    from toushi.probe.editing.editing import edits_of_manifest
    from toushi.probe.trace.open import open_trace
    from toushi.probe.trace.trace_json import parse

    if source.is_dir():
        edits = edits_of_manifest(open_trace(source).manifest.edits or [])
    else:
        if not source.is_file():
            raise ToushiError(f"cannot read the edits in {source}: there is no such file")
        raw = parse(read_regular_file(source), str(source))
        if not isinstance(raw, list):
            raise ToushiError(f'{source} must hold a JSON list of edits, [{{"site": …, "kind": …}}, …]')
        edits = edits_of_manifest(raw)
    if not edits:
        raise ToushiError(f"{source} holds no edit")
    return edits


def apply_edits(model: "Model", edits: "list[Edit]") -> AbstractContextManager[object]:
    """A context in which the edits are active."""
    if not edits:
        return nullcontext()
    from toushi.probe.editing.editing import edit

    return edit(model, edits)
