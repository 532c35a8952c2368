"""The traces in a folder, and how many steps or texts of each are finished."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from toushi.probe.base.path_error import checked_path

if TYPE_CHECKING:
    from toushi.probe.trace.encoder_trace import EncoderTrace
    from toushi.probe.trace.picture_trace import Trace

Folder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]


def find_traces(folder: Path) -> list[Path]:
    """The folder itself if it is a trace or holds none; else the traces of the collection, or all traces in the folder.

    They include traces whose manifest cannot be read.
    """
    from toushi.probe.trace.open import open_collection
    from toushi.probe.trace.trace_format import FORMAT, MANIFEST, MEMBERS, format_of

    checked_path(folder)
    if (folder / MEMBERS).exists():
        return [trace.folder for trace in open_collection(folder)]
    if (folder / MANIFEST).exists():
        return [folder]
    below = sorted(one.parent for one in folder.glob(f"*/{MANIFEST}") if format_of(one.parent) in (FORMAT, None))
    return below or [folder]


def step_progress(trace: "Trace") -> str:
    """The recorded steps as text: "20 of 20"; "6 of 20 (recorded: 5 to 10)" if not all are to be recorded."""
    count, wanted = trace.manifest.steps.count, trace.manifest.steps.recorded
    text = f"{len(trace.steps)} of {count}"
    if wanted is not None and len(wanted) < count:
        is_range = len(wanted) > 1 and list(wanted) == list(range(wanted[0], wanted[-1] + 1))
        chosen = (
            f"{wanted[0]} to {wanted[-1]}" if is_range else ", ".join(map(str, wanted[:8])) + " …" * (len(wanted) > 8)
        )
        text += f" ({'recorded' if trace.complete else 'to record'}: {chosen or 'none'})"
    return text + ("" if trace.complete else ", the run did not finish")


def text_progress(trace: "EncoderTrace") -> str:
    return f"{len(trace)} of {trace.manifest.count}" + ("" if trace.complete else ", the run did not finish")
