"""`toushi verify`: checks that traces are complete and unchanged."""

from dataclasses import dataclass
from pathlib import Path

from toushi.cli.trace_listing import Folder, find_traces, step_progress, text_progress
from toushi.probe.base.errors import ToushiError


@dataclass(frozen=True)
class Verify:
    ABOUT = """Checks a trace: its format, its checksums, that attention sums to 1, and that the run is complete.

  toushi verify runs/cat

The exit code is 1 if there is a problem."""

    folder: Folder
    """The trace, or a folder of traces."""

    def run(self) -> int:
        failures = 0
        folders = find_traces(self.folder)
        for folder in folders:
            try:
                problems, done = verify_trace(folder)
            except ToushiError as error:
                if len(folders) == 1:
                    raise
                problems, done = [str(error)], ""  # the others are checked, too
            failures += bool(problems)
            for problem in problems or [f"no problem found ({done})"]:
                print(f"{folder}: {problem}")
        return 1 if failures else 0


def verify_trace(folder: Path) -> tuple[list[str], str]:
    """Problems of a trace of pictures or texts, and how many of its steps or texts are finished."""
    from toushi.probe.trace.open import is_encoder_trace, open_encoder_trace, open_trace

    if is_encoder_trace(folder):
        texts = open_encoder_trace(folder)
        return texts.verify(), text_progress(texts)
    trace = open_trace(folder)
    return trace.verify(), step_progress(trace)
