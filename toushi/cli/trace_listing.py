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
    steps = trace.manifest.steps
    wanted = steps.count if steps.recorded is None else len(steps.recorded)
    return f"{len(trace.steps)} of {wanted}" + ("" if trace.complete else ", the run did not finish")


def text_progress(trace: "EncoderTrace") -> str:
    return f"{len(trace)} of {trace.manifest.count}" + ("" if trace.complete else ", the run did not finish")
