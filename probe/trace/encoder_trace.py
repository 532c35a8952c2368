"""A trace of kind `encoder`: states and attention of one text encoder for many texts, in one folder.

    manifest.json            format, version, kind "encoder", complete; model {name, revision, weights_sha256}; count (of
                             texts), layers, heads (null where the attention cannot be read), width; dtype, versions, …
    texts.jsonl              one line for each finished file: {file, bytes, sha256, first, texts: [{text, tokens, words,
                             lost, unknown, blind}]}; `first` is the number of its first text
    texts_0000.safetensors   `text/{i}/{layer}` [token, feature], 0 the embeddings; `text/{i}/{layer}/attention` [head,
                             query, token], layers from 1; `text/{i}/final` [token, feature], what the encoder hands on

As with pictures a file is written to a temporary name, fsynced, renamed and only then listed, so whatever ends the
process, every text that is listed can be read.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from toushi.probe.base.atomic_io import fsync_folder, safetensors_parts, write_json, write_with_digest
from toushi.probe.text.alignment import Token, Word
from toushi.probe.trace.listing import TextEntry, TextsLine
from toushi.probe.trace.manifest import EncoderManifest, check_encoder_manifest
from toushi.probe.trace.output_dir import prepare_output_dir, reason
from toushi.probe.trace.safetensors_reader import SafetensorsFile
from toushi.probe.trace.text_encoding import TextEncoding, TextEncodings
from toushi.probe.trace.trace_errors import DamagedTrace, NotRecorded, WriteFailed
from toushi.probe.trace.trace_format import (
    FIRST_VERSION,
    FORMAT,
    MANIFEST,
    TEXTS,
    text_attention_key,
    text_final_key,
    text_state_key,
    texts_file,
)
from toushi.probe.trace.trace_json import as_json

PARTS = ("tokens", "words", "lost", "unknown")


# --- writing --------------------------------------------------------------------------------------------


class EncoderTraceWriter:
    """Writes a trace of texts: `with EncoderTraceWriter(folder, manifest) as writer: writer.write(encodings)`, in order."""

    def __init__(self, folder: str | Path, manifest: Mapping[str, object], overwrite: bool = False):
        self.folder, self.count, self.files = prepare_output_dir(folder, overwrite), 0, 0
        given = {"format": FORMAT, "version": FIRST_VERSION, "kind": "encoder", **manifest, "complete": False}
        self.manifest = check_encoder_manifest(as_json(given, "The manifest to write"), "The manifest to write")
        try:
            write_json(self.folder / MANIFEST, self.manifest.as_dict())
            self._lines = (self.folder / TEXTS).open("ab")
        except OSError as error:
            raise WriteFailed(f"Cannot write in {self.folder}: {reason(error)}. Choose another folder.") from None

    def write(self, encodings: Sequence[TextEncoding]) -> None:
        """The next texts, safe on disk when this returns."""
        name = texts_file(self.files)
        tensors, about = {}, []
        for number, encoding in enumerate(encodings, self.count):
            for layer, state in enumerate(encoding.states.values):
                tensors[text_state_key(number, layer)] = np.ascontiguousarray(state, np.float32)
            tensors[text_final_key(number)] = np.ascontiguousarray(encoding.final.values, np.float32)
            if encoding.recorded_attention is not None:
                for layer, maps in enumerate(encoding.recorded_attention.values, 1):
                    tensors[text_attention_key(number, layer)] = np.ascontiguousarray(maps, np.float32)
            blind = {str(layer): why for layer, why in encoding.blind.items()}
            about.append({"text": encoding.text, "blind": blind} | {part: getattr(encoding, part) for part in PARTS})
        try:
            line = {
                "file": name,
                **write_with_digest(self.folder / name, safetensors_parts(tensors)),
                "first": self.count,
            }
            fsync_folder(self.folder)
            line = as_json(line | {"texts": about}, "What is noted of texts")
            self._lines.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._lines.flush()
            os.fsync(self._lines.fileno())
        except Exception as error:  # safetensors wraps what the system says
            raise WriteFailed(
                f"Writing {name} in {self.folder} failed: {reason(error)}. {self.count} texts are finished and can be read."
            ) from None
        self.count += len(about)
        self.files += 1

    def __enter__(self) -> "EncoderTraceWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self._lines.close()  # writes what an earlier failure left in its buffer
            if kind is None:
                self.manifest.complete = True
                write_json(self.folder / MANIFEST, self.manifest.as_dict())
        except Exception as failed:
            if kind is None:
                raise WriteFailed(
                    f"Writing in {self.folder} failed: {reason(failed)}. {self.count} texts are finished and can be read."
                ) from None


# --- reading --------------------------------------------------------------------------------------------


class EncoderTrace:
    """States and attention of an encoder for many texts. Made by `open_encoder_trace`; reads only what is asked for."""

    def __init__(self, folder: Path, manifest: EncoderManifest, lines: list[TextsLine]):
        self.folder, self.manifest, self.lines = folder, manifest, lines
        self._entries = [(line, entry) for line in lines for entry in line.texts]
        self._open: dict[str, SafetensorsFile] = {}

    def __len__(self) -> int:
        """How many texts are finished."""
        return len(self._entries)

    @property
    def complete(self) -> bool:
        return self.manifest.complete

    @property
    def layers(self) -> int:
        """How many; states are numbered 0..layers, 0 the embeddings."""
        return self.manifest.layers

    @property
    def texts(self) -> list[str]:
        return [entry.text for _, entry in self._entries]

    def tokens(self, text: int) -> list[Token]:
        return [entry.token() for entry in self._entry(text)[1].tokens]

    def words(self, text: int) -> list[Word]:
        return [entry.word() for entry in self._entry(text)[1].words]

    def states(self, text: int) -> xr.DataArray:
        """fp32 [layer, token, feature]; layer 0 is the embeddings."""
        return self.encoding(text).states

    def attention(self, text: int) -> xr.DataArray:
        """Probabilities, fp32 [layer, head, query, token], layers from 1."""
        return self.encoding(text).attention

    def encoding(self, text: int) -> TextEncoding:
        """States and attention by token, with methods that pool them to words, as `encode_layers` returned them."""
        _, entry = self._entry(text)
        tokens = tuple(self.tokens(text))
        places = {"token": np.arange(len(tokens)), "text": ("token", [token.text for token in tokens])}
        layers = np.arange(self.layers + 1)
        states = np.stack([self.read_state(text, layer) for layer in range(len(layers))])
        attention = None
        if not entry.blind:
            read = np.stack([self.read_attention(text, layer) for layer in range(1, len(layers))])
            coords = {"layer": layers[1:], "query": np.arange(len(tokens)), **places}
            attention = xr.DataArray(read, dims=("layer", "head", "query", "token"), coords=coords)
        words = {part: tuple(word.word() for word in getattr(entry, part)) for part in PARTS[1:]}
        return TextEncoding(
            text=entry.text,
            tokens=tokens,
            **words,
            states=xr.DataArray(states, dims=("layer", "token", "feature"), coords={"layer": layers, **places}),
            final=xr.DataArray(self.read_final(text), dims=("token", "feature"), coords=places),
            blind=self.blind(text),
            recorded_attention=attention,
        )

    def blind(self, text: int) -> dict[int, str]:
        """Layer -> why its attention could not be read."""
        return {int(layer): why for layer, why in self._entry(text)[1].blind.items()}

    def lost(self, text: int) -> list[Word]:
        """Words that were cut, or that the tokenizer leaves out."""
        return [entry.word() for entry in self._entry(text)[1].lost]

    def heads(self, text: int) -> int:
        """Heads of the attention of a text that was recorded. Where the manifest leaves it open, its file says it."""
        if self.manifest.heads is not None:
            return self.manifest.heads
        file, key = self._file(self._entry(text)[0]), text_attention_key(self._number(text), 1)
        if len(shape := file.shape(key)) != 3:
            raise DamagedTrace(f'{file.path}: "{key}" must be [head, query, token]; it is {shape}.')
        return shape[0]

    def read_state(self, text: int, layer: int) -> np.ndarray:
        """[token, feature] of one layer; 0 is the embeddings."""
        return self._read(text, text_state_key(self._number(text), layer), (self._length(text), self.manifest.width))

    def read_attention(self, text: int, layer: int) -> np.ndarray:
        """[head, query, token] of one layer; layers from 1."""
        square = (self.manifest.heads, self._length(text), self._length(text))
        return self._read(text, text_attention_key(self._number(text), layer), square)

    def read_final(self, text: int) -> np.ndarray:
        """[token, feature]: the output of the encoder."""
        return self._read(text, text_final_key(self._number(text)), (self._length(text), self.manifest.width))

    def encodings(self) -> TextEncodings:
        """All finished texts, each read from disk when it is asked for."""
        return TextEncodings(self.manifest.name_of_model or "encoder", LazyEncodings(self))

    def verify(self) -> list[str]:
        """One sentence for each fault of the trace; an empty list if there is none."""
        return list(_problems(self))

    def _number(self, text: int) -> int:
        number = text + len(self) if text < 0 else text
        if not 0 <= number < len(self):
            raise NotRecorded(f"There is no text {text} in {self.folder}; {len(self)} of {self.manifest.count} are.")
        return number

    def _entry(self, text: int) -> tuple[TextsLine, TextEntry]:
        return self._entries[self._number(text)]

    def _length(self, text: int) -> int:
        """The number of its tokens."""
        return len(self._entry(text)[1].tokens)

    def _read(self, text: int, key: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """A tensor of the text's file, if it has this shape. None is any length."""
        file = self._file(self._entry(text)[0])
        there = file.shape(key)
        if len(there) != len(shape) or any(n is not None and n != m for n, m in zip(shape, there)):
            raise DamagedTrace(f'{file.path}: "{key}" must be {shape} by the manifest; it is {there}.')
        return file.read(key)

    def _file(self, line: TextsLine) -> SafetensorsFile:
        if line.file not in self._open:
            self._open.clear()  # texts are read in order, so one file at a time is mapped
            self._open[line.file] = SafetensorsFile(self.folder, line.file, line.bytes)
        return self._open[line.file]


class LazyEncodings(Sequence):
    """The encodings of a trace, as a sequence."""

    def __init__(self, trace: EncoderTrace):
        self.trace = trace

    def __len__(self) -> int:
        return len(self.trace)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.trace.encoding(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.trace.encoding(index)


# --- checks ---------------------------------------------------------------------------------------------


def _problems(trace: EncoderTrace) -> Iterator[str]:
    if not trace.complete:
        yield f"The run did not end: {len(trace)} of {trace.manifest.count} texts are finished."
    elif len(trace) != trace.manifest.count:
        yield f"The manifest says complete, but {len(trace)} of {trace.manifest.count} texts are there."
    for line in trace.lines:
        try:
            with open(SafetensorsFile(trace.folder, line.file, line.bytes).path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != line.sha256:
                yield f"{trace.folder / line.file} is not what was written: its sha256 is {digest}."
                continue
            for number in range(line.first, line.first + len(line.texts)):
                encoding = trace.encoding(number)
                if not np.isfinite(encoding.states).all():
                    yield f"Text {number}: a state holds values that are not finite."
                if (
                    encoding.recorded_attention is not None
                    and not np.abs(encoding.recorded_attention.sum("token") - 1).max() <= 1e-3
                ):
                    yield f"Text {number}: the attention of a query does not sum to 1."
        except (DamagedTrace, OSError) as error:
            yield str(error)
