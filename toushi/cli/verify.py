"""`toushi verify`: whether traces are whole and as they were written."""

from dataclasses import dataclass
from pathlib import Path

from toushi.cli.trace_listing import Folder, find_traces, progress, texts_progress
from toushi.probe.base.errors import ToushiError


@dataclass(frozen=True)
class Verify:
    ABOUT = """Checks a trace: format, checksums, sums to 1, completeness.

  toushi verify runs/cat

The exit code is 1 if something is wrong."""

    folder: Folder
    """The trace, or a folder of traces."""

    def run(self) -> int:
        bad = 0
        found = find_traces(self.folder)
        for folder in found:
            try:
                problems, done = verify_trace(folder)
            except ToushiError as error:
                if len(found) == 1:
                    raise
                problems, done = [str(error)], ""  # the others are looked at all the same
            bad += bool(problems)
            for problem in problems or [f"in order, {done}"]:
                print(f"{folder}: {problem}")
        return 1 if bad else 0


def verify_trace(folder: Path) -> tuple[list[str], str]:
    """What is wrong with a trace of either kind, and how far it came."""
    from toushi.probe.trace.open import is_encoder_trace, open_encoder_trace, open_trace

    if is_encoder_trace(folder):
        texts = open_encoder_trace(folder)
        return texts.verify(), texts_progress(texts)
    trace = open_trace(folder)
    return trace.verify(), progress(trace)
