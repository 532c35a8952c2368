"""`record_texts(encoder, texts, folder)`: `encode_layers`, written to disk a few texts at a time."""

from collections.abc import Sequence
from pathlib import Path

import torch

from toushi.probe.encoders.encode_layers import BATCH, check_texts, encode_layers
from toushi.probe.encoders.load_encoder import AnyEncoder, Encoder, open_encoder
from toushi.probe.recording.provenance import git_commit, versions
from toushi.probe.text.alignment import segmenter
from toushi.probe.trace.encoder_trace import EncoderTraceWriter
from toushi.probe.trace.open import open_encoder_trace
from toushi.probe.trace.text_encoding import TextEncoding, TextEncodings


def record_texts(
    encoder: AnyEncoder,
    texts: Sequence[str],
    folder: str | Path,
    *,
    attention: bool = True,
    overwrite: bool = False,
) -> TextEncodings:
    """The encodings of all texts, which were written to `folder` as one trace. Each is read from disk when it is used.

    `open_encoder_trace` opens the trace, of kind `encoder`. `BATCH` texts at a time are written and listed. Listed texts
    can be read even if the process is killed. Raises WriteFailed if the folder holds other files, or a trace
    that `overwrite` does not allow to replace.
    """
    check_texts(texts)
    encoder = open_encoder(encoder)
    first = encode_layers(encoder, texts[:1], attention=attention)
    manifest = encoder_manifest(encoder, len(texts), first[0] if texts else None)
    with EncoderTraceWriter(folder, manifest, overwrite) as writer:
        for start in range(0, len(texts), BATCH):
            writer.write(list(encode_layers(encoder, texts[start : start + BATCH], attention=attention)))
    return open_encoder_trace(folder).encodings()


def encoder_manifest(encoder: Encoder, count: int, first: TextEncoding | None) -> dict[str, object]:
    """The manifest before the first text is written."""
    heads = None if first is None or first.recorded_attention is None else first.recorded_attention.sizes["head"]
    return {
        "model": {"name": encoder.name, "revision": None, "weights_sha256": encoder.weights_sha256()},
        "count": count,
        "layers": len(encoder.layers),
        "heads": heads,
        "width": 0 if first is None else first.states.sizes["feature"],
        "device": str(encoder.device),
        "threads": encoder.threads or torch.get_num_threads(),
        "segmenter": segmenter(),
        "versions": versions(),
        "git": git_commit(),
    }
