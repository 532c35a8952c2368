"""A trace of kind `encoder`: what one text encoder made of many texts, in one folder.

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
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from toushi.probe.base.atomic_io import fsync_folder, safetensors_parts, write_json, write_listed
from toushi.probe.text.alignment import Token, Word
from toushi.probe.trace import manifest as layout
from toushi.probe.trace.output_dir import prepare_output_dir, reason
from toushi.probe.trace.safetensors_reader import JSON_BYTES, SafetensorsFile, read_bytes
from toushi.probe.trace.text_encoding import TextEncoding, TextEncodings
from toushi.probe.trace.trace_errors import DamagedTrace, NotRecorded, WriteFailed
from toushi.probe.trace.trace_format import (
    FORMAT,
    MANIFEST,
    TEXTS,
    TOKEN_KINDS,
    VERSION,
    text_attention_key,
    text_final_key,
    text_state_key,
    texts_file,
)
from toushi.probe.trace.trace_json import as_json, parse, short

PARTS = ("tokens", "words", "lost", "unknown")


# --- writing --------------------------------------------------------------------------------------------


class EncoderTraceWriter:
    """`with EncoderTraceWriter(folder, manifest) as writer:` and `writer.write(encodings)` for some texts at a time, in order."""

    def __init__(self, folder: str | Path, manifest: Mapping[str, Any], overwrite: bool = False):
        self.folder, self.count, self.files = prepare_output_dir(folder, overwrite), 0, 0
        given = {"format": FORMAT, "version": VERSION, "kind": "encoder", **manifest, "complete": False}
        self.manifest = check_manifest(as_json(given, "The manifest to write"), "The manifest to write")
        try:
            write_json(self.folder / MANIFEST, self.manifest)
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
            if encoding.seen is not None:
                for layer, seen in enumerate(encoding.seen.values, 1):
                    tensors[text_attention_key(number, layer)] = np.ascontiguousarray(seen, np.float32)
            blind = {str(layer): why for layer, why in encoding.blind.items()}
            about.append({"text": encoding.text, "blind": blind} | {part: getattr(encoding, part) for part in PARTS})
        try:
            line = {
                "file": name,
                **write_listed(self.folder / name, safetensors_parts(tensors)),
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
            self._lines.close()  # which writes what a full disk did not take before
            if kind is None:
                self.manifest["complete"] = True
                write_json(self.folder / MANIFEST, self.manifest)
        except Exception as failed:
            if kind is None:
                raise WriteFailed(
                    f"Writing in {self.folder} failed: {reason(failed)}. {self.count} texts are finished and can be read."
                ) from None


# --- reading --------------------------------------------------------------------------------------------


class EncoderTrace:
    """What an encoder made of many texts. Made by `open_encoder_trace`; memory holds only what is asked for."""

    def __init__(self, folder: Path, manifest: dict):
        self.folder, self.manifest = folder, check_manifest(manifest, str(folder / MANIFEST))
        self.lines = list(_lines(folder))
        self._about = [(line, text) for line in self.lines for text in line["texts"]]
        self._open: dict[str, SafetensorsFile] = {}

    def __len__(self) -> int:
        """How many texts are finished."""
        return len(self._about)

    @property
    def complete(self) -> bool:
        return self.manifest["complete"]

    @property
    def layers(self) -> int:
        """How many; states are numbered 0..layers, 0 the embeddings."""
        return self.manifest["layers"]

    @property
    def texts(self) -> list[str]:
        return [about["text"] for _, about in self._about]

    def tokens(self, text: int) -> list[Token]:
        return list(map(layout.token_of, self._of(text)[1]["tokens"]))

    def words(self, text: int) -> list[Word]:
        return list(map(layout.word_of, self._of(text)[1]["words"]))

    def states(self, text: int) -> xr.DataArray:
        """fp32 [layer, token, feature]; layer 0 is the embeddings."""
        return self.encoding(text).states

    def attention(self, text: int) -> xr.DataArray:
        """Probabilities, fp32 [layer, head, query, token], layers from 1."""
        return self.encoding(text).attention

    def encoding(self, text: int) -> TextEncoding:
        """As `lens` gave it: states and attention by token, pooled to words where that is asked for."""
        line, about = self._of(text)
        number = self._number(text)
        file = self._file(line)
        tokens = tuple(map(layout.token_of, about["tokens"]))
        width = (len(tokens), self.manifest["width"])
        places = {"token": np.arange(len(tokens)), "text": ("token", [token.text for token in tokens])}
        layers = np.arange(self.layers + 1)
        states = np.stack([_read(file, text_state_key(number, layer), width) for layer in layers])
        blind = {int(layer): why for layer, why in about["blind"].items()}
        seen = None
        if not blind:
            square = (self.manifest["heads"], len(tokens), len(tokens))
            read = np.stack([_read(file, text_attention_key(number, layer), square) for layer in layers[1:]])
            coords = {"layer": layers[1:], "query": np.arange(len(tokens)), **places}
            seen = xr.DataArray(read, dims=("layer", "head", "query", "token"), coords=coords)
        words = {part: tuple(map(layout.word_of, about[part])) for part in PARTS[1:]}
        return TextEncoding(
            text=about["text"],
            tokens=tokens,
            **words,
            states=xr.DataArray(states, dims=("layer", "token", "feature"), coords={"layer": layers, **places}),
            final=xr.DataArray(_read(file, text_final_key(number), width), dims=("token", "feature"), coords=places),
            blind=blind,
            seen=seen,
        )

    def encodings(self) -> TextEncodings:
        """All finished texts, each read from disk when it is asked for."""
        return TextEncodings((self.manifest.get("model") or {}).get("name") or "encoder", LazyEncodings(self))

    def verify(self) -> list[str]:
        """Everything that is wrong with the trace, in sentences; an empty list if nothing is."""
        return list(_problems(self))

    def _number(self, text: int) -> int:
        number = text + len(self) if text < 0 else text
        if not 0 <= number < len(self):
            raise NotRecorded(f"There is no text {text} in {self.folder}; {len(self)} of {self.manifest['count']} are.")
        return number

    def _of(self, text: int) -> tuple[dict, dict]:
        return self._about[self._number(text)]

    def _file(self, line: dict) -> SafetensorsFile:
        if line["file"] not in self._open:
            self._open.clear()  # texts are read in order, so one file at a time is mapped
            self._open[line["file"]] = SafetensorsFile(self.folder, line["file"], line["bytes"])
        return self._open[line["file"]]


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


def check_manifest(manifest: Any, where: str) -> dict:
    def need(holds: bool, field: str, expected: str, came: object) -> None:
        if not holds:
            raise DamagedTrace(f"{where}: {field} must be {expected}; {short(came)} is there.")

    need(isinstance(manifest, dict), "the manifest", "a JSON object", manifest)
    need(manifest.get("format") == FORMAT, "format", f'"{FORMAT}"', manifest.get("format"))
    layout.check_version(manifest, where)
    need(manifest.get("kind") == "encoder", "kind", '"encoder"', manifest.get("kind"))
    need(isinstance(manifest.get("complete"), bool), "complete", "true or false", manifest.get("complete"))
    for field, most in (("count", 10**7), ("layers", 10**4), ("width", 10**6)):
        need(layout.whole(manifest.get(field), 0, most), field, "a whole number", manifest.get(field))
    heads = manifest.get("heads")
    need(heads is None or layout.whole(heads, 1, 10**4), "heads", "a whole number or null", heads)
    model = manifest.get("model")
    need(model is None or isinstance(model, dict), "model", "an object or null", model)
    return manifest


def _lines(folder: Path) -> Iterator[dict]:
    """The finished files in order. A last line that was cut off when the process ended does not count."""
    path, count = folder / TEXTS, 0
    *whole, _ = read_bytes(folder, TEXTS, 8 * JSON_BYTES).split(b"\n")
    for number, raw in enumerate(whole):
        where = f"{path} line {number + 1}"
        line = parse(raw, where)
        good = layout.is_file(line) and line.get("file") == texts_file(number) and line.get("first") == count
        good = good and isinstance(line.get("texts"), list) and all(map(_is_text, line["texts"]))
        if not good:
            raise DamagedTrace(f"{where} must be {{file, bytes, sha256, first, texts}}; {short(line)} is there.")
        count += len(line["texts"])
        yield line


def _is_text(about: Any) -> bool:
    if not (isinstance(about, dict) and isinstance(about.get("text"), str) and isinstance(about.get("blind"), dict)):
        return False
    length = len(about["text"])
    for part in PARTS:
        if not isinstance(about.get(part), list):
            return False
        for one in about[part]:
            if part == "tokens":
                span = one.get("span") if isinstance(one, dict) else 0
                good = isinstance(one, dict) and isinstance(one.get("text"), str) and one.get("kind") in TOKEN_KINDS
                good = good and isinstance(one.get("encoders"), list) and layout.whole(one.get("position"), 0, 10**7)
                good = good and (span is None or layout.is_span(span, length))
            else:
                good = isinstance(one, dict) and layout.is_span([one.get("start"), one.get("end")], length)
                good = good and about["text"][one["start"] : one["end"]] == one.get("text")
            if not good:
                return False
    return all(re.fullmatch(r"[0-9]{1,4}", layer) and isinstance(why, str) for layer, why in about["blind"].items())


def _problems(trace: EncoderTrace) -> Iterator[str]:
    if not trace.complete:
        yield f"The run did not end: {len(trace)} of {trace.manifest['count']} texts are finished."
    elif len(trace) != trace.manifest["count"]:
        yield f"The manifest says complete, but {len(trace)} of {trace.manifest['count']} texts are there."
    for line in trace.lines:
        try:
            with open(SafetensorsFile(trace.folder, line["file"], line["bytes"]).path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != line["sha256"]:
                yield f"{trace.folder / line['file']} is not what was written: its sha256 is {digest}."
                continue
            for number in range(line["first"], line["first"] + len(line["texts"])):
                encoding = trace.encoding(number)
                if not np.isfinite(encoding.states).all():
                    yield f"Text {number}: a state holds values that are not finite."
                if encoding.seen is not None and not np.abs(encoding.seen.sum("token") - 1).max() <= 1e-3:
                    yield f"Text {number}: the attention of a query does not sum to 1."
        except (DamagedTrace, OSError) as error:
            yield str(error)


def _read(file: SafetensorsFile, key: str, shape: tuple[int | None, ...]) -> np.ndarray:
    found = file.shape(key)
    if len(found) != len(shape) or any(n is not None and n != m for n, m in zip(shape, found)):
        raise DamagedTrace(f'{file.path}: "{key}" must be {shape} by the manifest; it is {found}.')
    return file.read(key)
