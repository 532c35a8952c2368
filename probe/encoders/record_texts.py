"""`lens(encoder, texts, folder=…)`: the same, written to a trace as it comes, so that memory holds a few texts only."""

from collections.abc import Sequence
from pathlib import Path

import torch

from toushi.probe.encoders import encode_layers as encoders
from toushi.probe.recording.provenance import git_commit, versions
from toushi.probe.text.alignment import segmenter
from toushi.probe.trace.encoder_trace import EncoderTraceWriter
from toushi.probe.trace.open import open_encoder_trace
from toushi.probe.trace.text_encoding import TextEncoding, TextEncodings


def lens_to(
    known: "encoders.Encoder",
    texts: Sequence[str],
    folder: str | Path,
    *,
    attention: bool = True,
    overwrite: bool = False,
) -> TextEncodings:
    """Writes one trace of kind `encoder` with all texts; gives back its readings, each read from disk when asked for.

    Texts that are finished are listed and safe, `encoders.BATCH` at a time, whatever ends the process. Raises
    WriteFailed where the folder holds something else, or a trace that is not to be overwritten.
    """
    first = encoders.lens(known, texts[:1], attention=attention)
    with EncoderTraceWriter(folder, about(known, len(texts), first[0] if texts else None), overwrite) as writer:
        for start in range(0, len(texts), encoders.BATCH):
            writer.write(list(encoders.lens(known, texts[start : start + encoders.BATCH], attention=attention)))
    return open_encoder_trace(folder).encodings()


def about(known: "encoders.Encoder", count: int, first: TextEncoding | None) -> dict:
    """What the manifest says before the first text is written."""
    heads = None if first is None or first.seen is None else first.seen.sizes["head"]
    return {
        "model": {"name": known.name, "revision": None, "weights_sha256": known.weights_sha256()},
        "count": count,
        "layers": len(known.layers),
        "heads": heads,
        "width": 0 if first is None else first.states.sizes["feature"],
        "device": str(known.device),
        "threads": known.threads or torch.get_num_threads(),
        "segmenter": segmenter(),
        "versions": versions(),
        "git": git_commit(),
    }
