"""Which words come into a word's state: left out one by one, patched from another sentence, and by attention alone.

All three give a matrix for each layer, xarray [layer, query, word]: `word` is what is left out, patched or read,
`query` is whose state it changes. The first two intervene and so speak of causes; rollout only adds attention up.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor

from toushi.hooks.module_hooks import input_hook, state_hooks
from toushi.probe.analysis.layer_measures import rollout
from toushi.probe.base.errors import ToushiError
from toushi.probe.encoders.encode_layers import BATCH, encode_layers
from toushi.probe.encoders.load_encoder import AnyEncoder, Encoder, open_encoder
from toushi.probe.models.cpu_threads import cpu_threads
from toushi.probe.text.alignment import Span, WordSpec, token_shares
from toushi.probe.trace.text_encoding import TextEncoding


def ablate_words(
    encoder: AnyEncoder,
    texts: Sequence[str],
    queries: Sequence[Sequence[WordSpec]] | None = None,
    *,
    how: Literal["blank", "cut"] = "blank",
) -> list[xr.DataArray]:
    """For each text, how much each word's state changes when another word is left out: 1 - cosine, 0..2.

    [layer, query, word]. `blank`: the embeddings of the word's tokens are exchanged for the mean of the text's, so that
    nothing moves. `cut`: the text is encoded anew without the word; what comes after it moves up, and that alone changes
    states, often more than the word did. `queries`: for each text the words whose states are asked for (all by default;
    one suffices to ask what a word's meaning hangs on). NaN where a word is left out itself.
    """
    known = open_encoder(encoder)
    found = []
    for start in range(0, len(texts), 8 * BATCH):
        some = texts[start : start + 8 * BATCH]
        whole = encode_layers(known, some, attention=False)
        asked = [reading.spans(None if queries is None else queries[start + i]) for i, reading in enumerate(whole)]
        matrices = [_empty(reading, spans) for reading, spans in zip(whole, asked)]
        (_blanked if how == "blank" else _cut)(known, list(whole), asked, matrices)
        found += matrices
    return found


def patch_words(encoder: AnyEncoder, text: str, source: str) -> xr.DataArray:
    """How much each word's last state changes when, at layer k, one word's state is taken from another sentence.

    [layer, query, word], 1 - cosine, 0..2. The sentences have equally many words; word i of `source` gives the state
    for word i of `text`, token by token where they have equally many, else the mean of its tokens for each. At layer 0
    the embeddings are exchanged, so the encoder reads the other word; what is patched late comes nowhere else. Words
    that are the same in the same context change nothing, so the states of an identical text give zeros.
    """
    known = open_encoder(encoder)
    readings = encode_layers(known, [text, source])
    own, other = readings
    if len(own.words) != len(other.words):
        raise ToushiError(
            f"expected two sentences with equally many words, but {len(own.words)} "
            f"({'/'.join(w.text for w in own.words)}) and {len(other.words)} "
            f"({'/'.join(w.text for w in other.words)}) came"
        )
    places = [_places(own, word.span) for word in own.words]
    taken = []
    for word, to in zip(other.words, places):
        states = other.states.values[:, _places(other, word.span)]
        equal = states.shape[1] == len(to)
        taken.append(states if equal else np.repeat(states.mean(1, keepdims=True), len(to), axis=1))
    last = own.states.values[-1]
    words = own.names(own.spans())
    effect = np.zeros((len(known.layers), len(words), len(words)), np.float32)
    means = own.means(own.spans())
    for layer in range(len(known.layers)):
        for start in range(0, len(words), BATCH):
            chosen = range(start, min(start + BATCH, len(words)))
            after = _run_with(known, own, layer, [(places[i], taken[i][layer]) for i in chosen])[-1]
            for row, word in enumerate(chosen):
                effect[layer, :, word] = cosine_distance((means @ last)[None], (means @ after[row])[None])[0]
    coords = {"layer": np.arange(len(known.layers)), "query": words, "word": words}
    return xr.DataArray(effect, dims=("layer", "query", "word"), coords=coords)


def attention_rollout(reading: TextEncoding, words: Sequence[WordSpec] | None = None) -> xr.DataArray:
    """How much of each word's embedding is in each word's state, were attention all that mixes; rows sum to 1.

    [layer, query, word], layers from 1, with the columns "(other text)" and "(special)" of `word_attention`. Abnar
    and Zuidema's attention rollout (`toushi.probe.analysis.layer_measures.rollout`).
    """
    flow = rollout(reading.attention.values)
    return reading.by_word(flow[:, None], words).isel(head=0, drop=True)


def cosine_distance(before: ArrayLike, after: ArrayLike) -> np.ndarray:
    """1 - cosine of each row with the same row after a change, 0..2: [...] of [..., feature]. NaN for zeros."""
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    length = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    return np.clip(1 - (before * after).sum(-1) / np.where(length > 0, length, np.nan), 0, 2)


def remove_span(text: str, span: Span) -> tuple[str, Callable[[Span], Span]]:
    """The text without these characters, and a function from spans of the text to spans of what is left.

    Of two spaces that would meet one goes too.
    """
    start, end = span
    if re.match(r"\s", text[end : end + 1]) and (not start or re.match(r"\s", text[start - 1])):
        end += 1

    def moved(other: Span) -> Span:
        return other if other[1] <= start else (other[0] - (end - start), other[1] - (end - start))

    return text[:start] + text[end:], moved


# --- inside ---------------------------------------------------------------------------------------------


def _empty(reading: TextEncoding, asked: list[Span]) -> xr.DataArray:
    names = reading.names(asked)
    shape = (reading.states.sizes["layer"], len(names), len(reading.words))
    coords = {"layer": reading.states["layer"].values, "query": names, "word": reading.names(reading.spans())}
    return xr.DataArray(np.full(shape, np.nan), dims=("layer", "query", "word"), coords=coords)


def _blanked(known: Encoder, whole: list[TextEncoding], asked: list[list[Span]], matrices: list[xr.DataArray]) -> None:
    for reading, spans, matrix in zip(whole, asked, matrices):
        means, before = reading.means(spans), reading.states.values
        blank = before[0].mean(0)
        for start in range(0, len(reading.words), BATCH):
            words = reading.words[start : start + BATCH]
            patches = [(places := _places(reading, word.span), np.tile(blank, (len(places), 1))) for word in words]
            after = _run_with(known, reading, 0, patches)  # [layer from 1, row, token, feature]
            for row, word in enumerate(words):
                others = [i for i, span in enumerate(spans) if not _overlap(span, word.span)]
                matrix.values[0, others, start + row] = 0.0
                changed = cosine_distance(means[others] @ before[1:], means[others] @ after[:, row])
                matrix.values[1:, others, start + row] = changed


def _cut(known: Encoder, whole: list[TextEncoding], asked: list[list[Span]], matrices: list[xr.DataArray]) -> None:
    jobs, shorter, kept = [], [], []  # (text, column, rows), the text without the word, spans in it
    for index, reading in enumerate(whole):
        for column, word in enumerate(reading.words):
            text, moved = remove_span(reading.text, word.span)
            rows = [i for i, span in enumerate(asked[index]) if not _overlap(span, word.span)]
            if text.strip() and rows:
                jobs.append((index, column, rows))
                shorter.append(text)
                kept.append([moved(asked[index][row]) for row in rows])
    for (index, column, rows), spans, reading in zip(jobs, kept, encode_layers(known, shorter, attention=False)):
        before = whole[index].word_states([asked[index][row] for row in rows]).values
        matrices[index].values[:, rows, column] = cosine_distance(before, reading.word_states(spans).values)


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _places(reading: TextEncoding, span: Span) -> np.ndarray:
    """The tokens of a word."""
    return np.flatnonzero(token_shares(reading.tokens, span) > 0)


def _run_with(
    encoder: Encoder, reading: TextEncoding, layer: int, patches: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """States after layers 1.. [layer, row, token, feature], each row with one patch (places, states) put in at `layer`."""
    ids = torch.tensor([[token.id for token in reading.tokens]] * len(patches), device=encoder.device)
    kept: dict[str, np.ndarray] = {}

    def change(state: Tensor) -> Tensor:
        state = state.clone()
        for row, (places, values) in enumerate(patches):
            state[row, places] = torch.as_tensor(values, dtype=state.dtype, device=state.device)
        return state

    def put(_: str, state: Tensor) -> Tensor:
        return change(state)

    def keep(name: str, state: Tensor) -> None:
        kept[name] = state.float().cpu().numpy()

    first = encoder.layers[0]
    entry = next(iter(inspect.signature(first.forward).parameters))
    given = input_hook(first, entry, change) if layer == 0 else nullcontext()
    middle = state_hooks({"patched": encoder.layers[layer - 1]}, put) if layer else nullcontext()
    every = {str(number): module for number, module in enumerate(encoder.layers, 1)}
    with torch.no_grad(), given, middle, state_hooks(every, keep), cpu_threads(encoder.threads):
        encoder.forward(ids)
    return np.stack([kept[number] for number in every])
