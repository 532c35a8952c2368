"""How much a word's state depends on other words: by ablation, by patching from another sentence, by attention alone.

All three return a matrix for each layer, xarray [layer, query, word]: `word` is ablated, patched or attended to, and
`query` is the word whose state changes. Ablation and patching intervene, so they show causes; rollout only adds up
attention.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from toushi.hooks.module_hooks import forward_parameters, input_hook, state_hooks
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
    """How much each word's state changes when another word is left out: [layer, query, word] for each text.

    The change is 1 - cosine, 0..2; NaN where the word itself is left out. With `how="blank"` the embeddings of the
    word's tokens are replaced by the mean of the text's, so nothing moves. With `how="cut"` the text is encoded without
    the word: all behind it moves up, and that alone changes states, often more than the word did. `queries` are, for
    each text, the words whose states are compared; all by default.
    """
    encoder = open_encoder(encoder)
    matrices = []
    for start in range(0, len(texts), 8 * BATCH):
        encodings = list(encode_layers(encoder, texts[start : start + 8 * BATCH], attention=False))
        spans = [text.spans(None if queries is None else queries[start + i]) for i, text in enumerate(encodings)]
        batch = [_empty_matrix(text, text_spans) for text, text_spans in zip(encodings, spans)]
        (_ablate_by_blank if how == "blank" else _ablate_by_cut)(encoder, encodings, spans, batch)
        matrices += batch
    return matrices


def patch_words(encoder: AnyEncoder, text: str, source: str) -> xr.DataArray:
    """How much each word's last state changes when, at layer k, one word has its state of another sentence.

    [layer, query, word], 1 - cosine, 0..2. The sentences have equally many words. Word i of `text` gets the states of
    word i of `source`: token by token where they have equally many, else their mean for each token. At layer 0 the
    embeddings are replaced, so the encoder reads the other word. A patch at the last layer reaches no other word. An
    identical text gives zeros. Raises ToushiError for different numbers of words.
    """
    encoder = open_encoder(encoder)
    own, other = encode_layers(encoder, [text, source])
    if len(own.words) != len(other.words):
        raise ToushiError(
            f"expected two sentences with equally many words, but {len(own.words)} "
            f"({'/'.join(w.text for w in own.words)}) and {len(other.words)} "
            f"({'/'.join(w.text for w in other.words)}) came"
        )
    token_indices = [_token_indices(own, word.span) for word in own.words]
    patches = []  # for each word, states [layer, token, feature]
    for word, indices in zip(other.words, token_indices):
        states = other.states.values[:, _token_indices(other, word.span)]
        equal = states.shape[1] == len(indices)
        patches.append(states if equal else np.repeat(states.mean(1, keepdims=True), len(indices), axis=1))
    last = own.states.values[-1]
    words = own.names(own.spans())
    effect = np.zeros((len(encoder.layers), len(words), len(words)), np.float32)
    means = own.means(own.spans())
    for layer in range(len(encoder.layers)):
        for start in range(0, len(words), BATCH):
            batch = range(start, min(start + BATCH, len(words)))
            after = _run_patched(encoder, own, layer, [(token_indices[i], patches[i][layer]) for i in batch])[-1]
            for row, word in enumerate(batch):
                effect[layer, :, word] = cosine_distance((means @ last)[None], (means @ after[row])[None])[0]
    coords = {"layer": np.arange(len(encoder.layers)), "query": words, "word": words}
    return xr.DataArray(effect, dims=("layer", "query", "word"), coords=coords)


def attention_rollout(encoding: TextEncoding, words: Sequence[WordSpec] | None = None) -> xr.DataArray:
    """Attention rollout by word, [layer, query, word], layers from 1; rows sum to 1.

    It has the columns "(other text)" and "(special)" of `word_attention`, and the limits of
    `toushi.probe.analysis.layer_measures.rollout`.
    """
    flow = rollout(encoding.attention.values)
    return encoding.by_word(flow[:, None], words).isel(head=0, drop=True)


def cosine_distance(before: ArrayLike, after: ArrayLike) -> Float[np.ndarray, "..."]:
    """1 - cosine [...], 0..2, of each row [..., feature] with the same row after a change. NaN for zeros."""
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    length = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    return np.clip(1 - (before * after).sum(-1) / np.where(length > 0, length, np.nan), 0, 2)


def remove_span(text: str, span: Span) -> tuple[str, Callable[[Span], Span]]:
    """The text without these characters, and a function from spans of the text to spans of the shorter one.

    One of two spaces that would meet is removed, too.
    """
    start, end = span
    if re.match(r"\s", text[end : end + 1]) and (not start or re.match(r"\s", text[start - 1])):
        end += 1

    def move(other: Span) -> Span:
        return other if other[1] <= start else (other[0] - (end - start), other[1] - (end - start))

    return text[:start] + text[end:], move


# --- inside ---------------------------------------------------------------------------------------------


def _empty_matrix(encoding: TextEncoding, spans: list[Span]) -> xr.DataArray:
    names = encoding.names(spans)
    shape = (encoding.states.sizes["layer"], len(names), len(encoding.words))
    coords = {"layer": encoding.states["layer"].values, "query": names, "word": encoding.names(encoding.spans())}
    return xr.DataArray(np.full(shape, np.nan), dims=("layer", "query", "word"), coords=coords)


def _ablate_by_blank(
    encoder: Encoder, encodings: list[TextEncoding], spans: list[list[Span]], matrices: list[xr.DataArray]
) -> None:
    for encoding, text_spans, matrix in zip(encodings, spans, matrices):
        means, before = encoding.means(text_spans), encoding.states.values
        blank = before[0].mean(0)
        for start in range(0, len(encoding.words), BATCH):
            words = encoding.words[start : start + BATCH]
            indices = [_token_indices(encoding, word.span) for word in words]
            patches = [(own, np.tile(blank, (len(own), 1))) for own in indices]
            after = _run_patched(encoder, encoding, 0, patches)  # [layer from 1, row, token, feature]
            for row, word in enumerate(words):
                others = [i for i, span in enumerate(text_spans) if not _overlap(span, word.span)]
                matrix.values[0, others, start + row] = 0.0
                changes = cosine_distance(means[others] @ before[1:], means[others] @ after[:, row])
                matrix.values[1:, others, start + row] = changes


def _ablate_by_cut(
    encoder: Encoder, encodings: list[TextEncoding], spans: list[list[Span]], matrices: list[xr.DataArray]
) -> None:
    jobs, shorter_texts, moved_spans = [], [], []  # a job is (text, column, rows) of a matrix
    for index, encoding in enumerate(encodings):
        for column, word in enumerate(encoding.words):
            text, move = remove_span(encoding.text, word.span)
            rows = [i for i, span in enumerate(spans[index]) if not _overlap(span, word.span)]
            if text.strip() and rows:
                jobs.append((index, column, rows))
                shorter_texts.append(text)
                moved_spans.append([move(spans[index][row]) for row in rows])
    shorter = encode_layers(encoder, shorter_texts, attention=False)
    for (index, column, rows), moved, encoding in zip(jobs, moved_spans, shorter):
        before = encodings[index].word_states([spans[index][row] for row in rows]).values
        matrices[index].values[:, rows, column] = cosine_distance(before, encoding.word_states(moved).values)


def _overlap(a: Span, b: Span) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def _token_indices(encoding: TextEncoding, span: Span) -> Int[np.ndarray, " token"]:
    """The tokens of a word."""
    return np.flatnonzero(token_shares(encoding.tokens, span) > 0)


def _run_patched(
    encoder: Encoder, encoding: TextEncoding, layer: int, patches: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Float[np.ndarray, "layer row token feature"]:
    """States after layers 1..n. Each row has one patch (token indices, states), put in at `layer`."""
    ids = torch.tensor([[token.id for token in encoding.tokens]] * len(patches), device=encoder.device)
    states: dict[str, np.ndarray] = {}

    def patch(state: Tensor) -> Tensor:
        state = state.clone()
        for row, (indices, values) in enumerate(patches):
            state[row, indices] = torch.as_tensor(values, dtype=state.dtype, device=state.device)
        return state

    def keep(name: str, state: Tensor) -> None:
        states[name] = state.float().cpu().numpy()

    if layer:
        patched = state_hooks({"patched": encoder.layers[layer - 1]}, lambda _, state: patch(state))
    else:
        patched = input_hook(encoder.layers[0], forward_parameters(encoder.layers[0])[0], patch)
    layers = {str(number): module for number, module in enumerate(encoder.layers, 1)}
    with torch.no_grad(), patched, state_hooks(layers, keep), cpu_threads(encoder.threads):
        encoder.forward(ids)
    return np.stack([states[number] for number in layers])
