"""A trace of a text encoder as datasets of xarray, one for each text, whose values are read when they are asked for."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from toushi.probe.text.alignment import Span, UnknownWord, find_word
from toushi.probe.trace.encoder_trace import EncoderTrace
from toushi.probe.trace.lazy_array import Key, LazyArray, lazy_variable, select
from toushi.probe.trace.selection import WordSpec, layer_coordinates
from toushi.probe.trace.text_encoding import OTHER, SPECIAL, span_names

STATES, FINAL, ATTENTION = "hidden states", "output of the encoder", "attention probability"

TextWords = Mapping[int, Sequence[Span]]  # number of a text -> its words


def encoder_datasets(trace: EncoderTrace, words: TextWords | None = None) -> dict[str, xr.Dataset]:
    """Number of a text -> its dataset: `states` [layer, token, feature], `attention` [layer, head, query, token] and
    `final` [token, feature]. Layer 0 is the embeddings; its attention is NaN.

    With `words` (see `choose_text_words`): `states` [layer, word, feature] and `attention` [layer, head, query, key],
    pooled as by `TextEncoding.word_states` and `word_attention`, of the texts that `words` names. There is no
    `attention` where the attention of a layer could not be read; the attribute `blind` has the reason.
    """
    if words is None:
        return {str(number): _by_token(trace, number) for number in range(len(trace))}
    return {str(number): _by_word(trace, number, spans) for number, spans in words.items()}


def encoder_attributes(trace: EncoderTrace) -> dict[str, str | int]:
    """What the root of the tree says about the encoder. Only what netCDF can hold: no null, no boolean."""
    model = trace.manifest.name_of_model
    attributes: dict[str, str | int] = {"kind": "encoder", "layers": trace.layers, "complete": int(trace.complete)}
    return attributes if model is None else {"model": model, **attributes}


def choose_text_words(
    trace: EncoderTrace, words: Sequence[WordSpec] | None
) -> tuple[dict[int, list[Span]], dict[str, str]]:
    """The words of each text, and the texts that lack one of them, with the reason. None means every word."""
    chosen, left_out = {}, {}
    for number, text in enumerate(trace.texts):
        known = trace.words(number)
        try:
            every = [*known, *trace.lost(number)]
            asked = known if words is None else words
            chosen[number] = list(dict.fromkeys(find_word(text, every, word) for word in asked))
        except UnknownWord as missing:
            left_out[f"text {number}: {text}"] = str(missing)
    return chosen, left_out


def _by_token(trace: EncoderTrace, number: int) -> xr.Dataset:
    tokens = trace.tokens(number)
    layers, count, width = trace.layers + 1, len(tokens), trace.manifest.width

    def read_states(at: tuple[int, ...], inner: Sequence[Key]) -> np.ndarray:
        return select(trace.read_state(number, *at), inner)

    def read_attention(at: tuple[int, ...], inner: Sequence[Key]) -> np.ndarray | None:
        return select(trace.read_attention(number, *at), inner) if at[0] else None

    def read_final(_: tuple[int, ...], inner: Sequence[Key]) -> np.ndarray:
        return select(trace.read_final(number), inner)

    variables = {
        "states": lazy_variable(
            ("layer", "token", "feature"), LazyArray((layers, count, width), 1, read_states), STATES
        ),
        "final": lazy_variable(("token", "feature"), LazyArray((count, width), 0, read_final), FINAL),
    }
    if not trace.blind(number):
        shape = (layers, trace.heads(number), count, count)
        variables["attention"] = lazy_variable(
            ("layer", "head", "query", "token"), LazyArray(shape, 1, read_attention), ATTENTION
        )
    text = ("token", np.array([token.text for token in tokens], object))
    coordinates = {"token": np.arange(count), "text": text, **layer_coordinates(range(layers))}
    if "attention" in variables:
        coordinates |= {"head": np.arange(shape[1]), "query": np.arange(count)}
    return xr.Dataset(variables, coordinates, _attributes(trace, number))


def _by_word(trace: EncoderTrace, number: int, spans: Sequence[Span]) -> xr.Dataset:
    """Pooling needs all tokens of a text, so a block is the whole text."""
    layers, names = trace.layers + 1, span_names(trace.texts[number], trace.words(number), spans)
    keys = [*names, OTHER, SPECIAL]

    def read_states(_: tuple[int, ...], inner: Sequence[Key]) -> np.ndarray:
        return select(trace.encoding(number).word_states(spans).values, inner)

    def read_attention(_: tuple[int, ...], inner: Sequence[Key]) -> np.ndarray:
        read = trace.encoding(number).word_attention(spans).values
        return select(np.concatenate([np.full((1, *read.shape[1:]), np.nan, np.float32), read]), inner)

    states = LazyArray((layers, len(names), trace.manifest.width), 0, read_states)
    variables = {"states": lazy_variable(("layer", "word", "feature"), states, STATES)}
    if not trace.blind(number):
        attention = LazyArray((layers, trace.heads(number), len(names), len(keys)), 0, read_attention)
        variables["attention"] = lazy_variable(("layer", "head", "query", "key"), attention, ATTENTION)
    coordinates = {"word": names, "query": names, "key": keys, **layer_coordinates(range(layers))}
    return xr.Dataset(variables, coordinates, _attributes(trace, number))


def _attributes(trace: EncoderTrace, number: int) -> dict[str, str]:
    blind = "; ".join(f"layer {layer} {why}" for layer, why in trace.blind(number).items())
    return {"text": trace.texts[number]} | ({"blind": blind} if blind else {})
