"""Toushi 透视: look inside text-to-image models. The front door: public names and the `toushi` command.

    from toushi import load, record, open_trace

The names are fetched when they are first used, so `import toushi` needs no torch, and reading a trace never does.
"""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probe.edits import Edit, edit, edits_of_manifest
    from probe.errors import ToushiError
    from probe.figures.encoder import encoder_figure
    from probe.figures.layers import layers_figure
    from probe.figures.lens import lens_figure
    from probe.figures.timeline import timeline_figure
    from probe.figures.tokens import tokens_figure
    from probe.figures.words import words_figure
    from probe.lens.encoders import lens
    from probe.models.load import load
    from probe.record import record
    from probe.text.alignment import segment
    from probe.trace.reader import Trace, open_collection, open_trace

__all__ = [
    "Edit",
    "ToushiError",
    "Trace",
    "edit",
    "edits_of_manifest",
    "encoder_figure",
    "layers_figure",
    "lens",
    "lens_figure",
    "load",
    "main",
    "open_collection",
    "open_trace",
    "record",
    "segment",
    "timeline_figure",
    "tokens_figure",
    "words_figure",
]

_HOMES = {
    "Edit": "probe.edits",
    "edit": "probe.edits",
    "edits_of_manifest": "probe.edits",
    "ToushiError": "probe.errors",
    "Trace": "probe.trace.reader",
    "encoder_figure": "probe.figures.encoder",
    "layers_figure": "probe.figures.layers",
    "lens": "probe.lens.encoders",
    "lens_figure": "probe.figures.lens",
    "load": "probe.models.load",
    "open_collection": "probe.trace.reader",
    "open_trace": "probe.trace.reader",
    "record": "probe.record",
    "segment": "probe.text.alignment",
    "timeline_figure": "probe.figures.timeline",
    "tokens_figure": "probe.figures.tokens",
    "words_figure": "probe.figures.words",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"toushi has no {name!r}; it has {', '.join(sorted(__all__))}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def main(argv: list[str] | None = None) -> int:
    """Runs `toushi …` and gives back the exit code: 0 done, 2 something that you can put right, 1 a fault of ours."""
    try:
        from commands.run import run
    except KeyboardInterrupt:  # Ctrl-C in the half second before a command knows what it is
        print("toushi: interrupted", file=sys.stderr)
        return 130
    return run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
