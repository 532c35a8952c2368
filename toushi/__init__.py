"""Toushi 透视: look inside text-to-image models. This module has the public names and the `toushi` command.

    from toushi import load, record, open_trace

A name is imported when it is first used, so `import toushi` needs no torch. Reading a trace never does.
"""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toushi.probe.attribution.explain import explain
    from toushi.probe.attribution.sweep import sweep
    from toushi.probe.base.errors import ToushiError
    from toushi.probe.base.extras import MissingLibrary
    from toushi.probe.edit_run import edit_run
    from toushi.probe.editing.denoiser_states import read_states
    from toushi.probe.editing.editing import Edit, edit, edits_of_manifest
    from toushi.probe.encoders.encode_layers import encode_layers
    from toushi.probe.encoders.record_texts import record_texts
    from toushi.probe.figures.comparison_figure import comparison_figure
    from toushi.probe.figures.encoder_figure import encoder_figure
    from toushi.probe.figures.layer_similarity_figure import layer_similarity_figure
    from toushi.probe.figures.layers_figure import layers_figure
    from toushi.probe.figures.timeline_figure import timeline_figure
    from toushi.probe.figures.tokens_figure import tokens_figure
    from toushi.probe.figures.words_figure import words_figure
    from toushi.probe.pipelines.family import (
        DenoiserInputs,
        EncodedPrompt,
        EncodePromptCall,
        Family,
        JointSequence,
        PromptTokens,
        SchedulerStep,
        Site,
    )
    from toushi.probe.pipelines.load import load
    from toushi.probe.pipelines.registry import register_family
    from toushi.probe.recording.record import record
    from toushi.probe.session.sampling_session import subscribe
    from toushi.probe.session.subscriber import Subscriber
    from toushi.probe.text.alignment import Token, segment
    from toushi.probe.trace.comparison import compare
    from toushi.probe.trace.encoder_trace import EncoderTrace
    from toushi.probe.trace.open import open_collection, open_encoder_trace, open_trace
    from toushi.probe.trace.picture_trace import Trace
    from toushi.probe.trace.word_diagnosis import diagnose_word
    from toushi.probe.trace_picture import invert, trace_inversion, trace_picture

__all__ = [
    "DenoiserInputs",
    "Edit",
    "EncodePromptCall",
    "EncodedPrompt",
    "EncoderTrace",
    "Family",
    "JointSequence",
    "MissingLibrary",
    "PromptTokens",
    "SchedulerStep",
    "Site",
    "Subscriber",
    "Token",
    "ToushiError",
    "Trace",
    "compare",
    "comparison_figure",
    "diagnose_word",
    "edit",
    "edit_run",
    "edits_of_manifest",
    "encode_layers",
    "encoder_figure",
    "explain",
    "invert",
    "layer_similarity_figure",
    "layers_figure",
    "load",
    "main",
    "open_collection",
    "open_encoder_trace",
    "open_trace",
    "read_states",
    "record",
    "record_texts",
    "register_family",
    "segment",
    "subscribe",
    "sweep",
    "timeline_figure",
    "tokens_figure",
    "trace_inversion",
    "trace_picture",
    "words_figure",
]

# Module below `toushi` -> the public names that are imported from it.
_NAMES = {
    "probe.attribution.explain": ["explain"],
    "probe.attribution.sweep": ["sweep"],
    "probe.base.errors": ["ToushiError"],
    "probe.base.extras": ["MissingLibrary"],
    "probe.edit_run": ["edit_run"],
    "probe.editing.denoiser_states": ["read_states"],
    "probe.editing.editing": ["Edit", "edit", "edits_of_manifest"],
    "probe.encoders.encode_layers": ["encode_layers"],
    "probe.encoders.record_texts": ["record_texts"],
    "probe.figures.comparison_figure": ["comparison_figure"],
    "probe.figures.encoder_figure": ["encoder_figure"],
    "probe.figures.layer_similarity_figure": ["layer_similarity_figure"],
    "probe.figures.layers_figure": ["layers_figure"],
    "probe.figures.timeline_figure": ["timeline_figure"],
    "probe.figures.tokens_figure": ["tokens_figure"],
    "probe.figures.words_figure": ["words_figure"],
    "probe.pipelines.family": [
        "DenoiserInputs",
        "EncodedPrompt",
        "EncodePromptCall",
        "Family",
        "JointSequence",
        "PromptTokens",
        "SchedulerStep",
        "Site",
    ],
    "probe.pipelines.load": ["load"],
    "probe.pipelines.registry": ["register_family"],
    "probe.recording.record": ["record"],
    "probe.session.sampling_session": ["subscribe"],
    "probe.session.subscriber": ["Subscriber"],
    "probe.text.alignment": ["segment", "Token"],
    "probe.trace.comparison": ["compare"],
    "probe.trace.encoder_trace": ["EncoderTrace"],
    "probe.trace.open": ["open_collection", "open_encoder_trace", "open_trace"],
    "probe.trace.picture_trace": ["Trace"],
    "probe.trace.word_diagnosis": ["diagnose_word"],
    "probe.trace_picture": ["invert", "trace_inversion", "trace_picture"],
}
_MODULES = {name: f"toushi.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"toushi has no {name!r}; it has {', '.join(sorted(__all__))}")
    from toushi.probe.base.extras import explain_missing_library

    with explain_missing_library():
        value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def main(argv: list[str] | None = None) -> int:
    """The exit code of `toushi …`: 0 done, 1 a bug in Toushi or a failed check, 2 a mistake of yours, 130 interrupted."""
    try:
        from toushi.cli.main import run
    except KeyboardInterrupt:  # Ctrl-C while the commands are imported
        print("toushi: interrupted", file=sys.stderr)
        return 130
    return run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
