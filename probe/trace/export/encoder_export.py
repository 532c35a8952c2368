"""Exports a trace of texts: states and attention of every layer, by word or by token.

    npz       for each text `text/0/states` [layer, word, feature] and `text/0/attention` [layer, head, query, word];
              with tokens=True [layer, token, feature] and [layer, head, query, token]. `about` has the coordinates
    zarr      a folder with a group for each text, which xarray opens as a tree, with coordinates
    parquet   a row for each layer and word (or token) of a text: text, layer, word (or token), characters, state

States are pooled to words as by `TextEncoding.word_states`. The last columns of attention by word are other text and
special tokens. The parquet table has no attention.
"""

import json
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from toushi.probe.trace.encoder_datasets import choose_text_words, encoder_attributes, encoder_datasets
from toushi.probe.trace.encoder_trace import EncoderTrace
from toushi.probe.trace.export.zarr_export import write_zarr
from toushi.probe.trace.selection import WordSpec
from toushi.probe.trace.text_encoding import TextEncoding
from toushi.probe.trace.trace_errors import NotRecorded


def prepare_encoder_export(trace: EncoderTrace, to: str, words: Sequence[WordSpec] | None, tokens: bool):
    """A function that writes the file, its description, and the texts that lack the words, with the reason."""
    selected, left_out = choose_text_words(trace, words)
    if not selected:
        raise NotRecorded(f"There is nothing to export: {next(iter(left_out.values()), 'the trace has no texts')}")
    about: dict[str, object] = {
        "format": "toushi-export",
        "version": 1,
        "kind": "encoder",
        "model": trace.manifest.as_dict().get("model"),
        "layers": trace.layers,
        "complete": trace.complete,
        "texts": {str(number): trace.texts[number] for number in selected},
        "left_out": left_out,
    }
    if to == "zarr":
        datasets = encoder_datasets(trace, None if tokens else selected)
        return partial(write_zarr, datasets, encoder_attributes(trace)), about, left_out
    write = {"npz": _write_npz, "parquet": _write_parquet}[to]
    return partial(write, trace, selected, tokens, about), about, left_out


def _arrays(trace: EncoderTrace, selected: dict, tokens: bool, about: dict, tick) -> Iterator[tuple[str, np.ndarray]]:
    """Each array with its name; its description goes to `about`."""
    about["arrays"] = {}
    for done, (number, words) in enumerate(selected.items(), 1):
        encoding = trace.encoding(number)
        states = encoding.states if tokens else encoding.word_states(words)
        by_name = {"states": states}
        if not encoding.blind:
            by_name["attention"] = encoding.attention if tokens else encoding.word_attention(words)
        for name, array in by_name.items():
            along = {str(dim): array[dim].values.tolist() for dim in array.dims if dim in array.coords}
            if tokens:
                along["characters"] = [token.text for token in encoding.tokens]
            about["arrays"][f"text/{number}/{name}"] = {"axes": list(map(str, array.dims)), **along}
            yield f"text/{number}/{name}", array.values
        tick(done, len(selected))


def _write_npz(trace: EncoderTrace, selected: dict, tokens: bool, about: dict, path: Path, tick) -> str:
    with zipfile.ZipFile(path, "w", allowZip64=True) as file:
        for name, array in _arrays(trace, selected, tokens, about, tick):
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(array, "<f4"), allow_pickle=False)
        with file.open("about.npy", "w") as entry:
            np.lib.format.write_array(entry, np.array(json.dumps(about, ensure_ascii=False)), allow_pickle=False)
    return f"{len(about['arrays'])} arrays"


def _write_parquet(trace: EncoderTrace, selected: dict, tokens: bool, about: dict, path: Path, tick) -> str:
    import pyarrow as pa
    from pyarrow import parquet

    what = "token" if tokens else "word"
    kinds = {"text": pa.int32(), "layer": pa.int32(), what: pa.int32(), "characters": pa.string()}
    schema = pa.schema(kinds | {"state": pa.list_(pa.float32())})
    schema = schema.with_metadata({"toushi": json.dumps(about, ensure_ascii=False)})
    count = 0
    with parquet.ParquetWriter(path, schema) as file:
        for done, (number, words) in enumerate(selected.items(), 1):
            encoding = trace.encoding(number)
            states, names = _rows(encoding, words, tokens)
            layers, places, _ = states.shape
            columns = {
                "text": np.full(layers * places, number, np.int32),
                "layer": np.repeat(np.arange(layers, dtype=np.int32), places),
                what: np.tile(np.arange(places, dtype=np.int32), layers),
                "characters": names * layers,
                "state": list(states.reshape(layers * places, -1).astype(np.float32)),
            }
            file.write_table(pa.table(columns, schema=schema))
            count += layers * places
            tick(done, len(selected))
    return f"{count} rows"


def _rows(encoding: TextEncoding, words: list | None, tokens: bool) -> tuple[np.ndarray, list[str]]:
    if tokens:
        return encoding.states.values, [token.text for token in encoding.tokens]
    states = encoding.word_states(words)
    return states.values, states["word"].values.tolist()
