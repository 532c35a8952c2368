"""`encode_layers(encoder, texts)`: states and attention of every layer of a text encoder.

An encoder is ours (`load("mini-unet")` has one) or a Transformer that the transformers library loads from a folder:
bidirectional (BERT, XLM-R), causal (the text encoder of CLIP, Qwen3), or the encoder half of a T5.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from toushi.hooks.attention import AttentionHook, Call
from toushi.hooks.module_hooks import argument_hooks, forward_parameters, state_hooks
from toushi.probe.base.errors import ToushiError
from toushi.probe.encoders.load_encoder import AnyEncoder, Encoder, UnknownEncoder, open_encoder
from toushi.probe.models.cpu_threads import cpu_threads
from toushi.probe.models.mini_unet import PromptCut
from toushi.probe.text.alignment import Token, Word, join_words, segment, token_shares, validate_prompt
from toushi.probe.trace.text_encoding import TextEncoding, TextEncodings

BATCH = 16  # texts that run together


def encode_layers(
    encoder: AnyEncoder,
    texts: Sequence[str],
    *,
    attention: bool = True,
) -> TextEncodings:
    """The encoding of each text: `states` [layer, token, feature] of layers 0..n, where 0 is the embeddings, and
    `attention` [layer, head, query, token] of layers 1..n, in probabilities. `TextEncodings` pools them to words.

    `encoder` is "mini-unet", a folder, a model of `load`, or what `load_pretrained` and `wrap_encoder` return. Texts
    with equally many tokens run together, so nothing is padded. Attention is read where the encoder calls
    scaled_dot_product_attention; where it does not, `TextEncoding.attention` raises NotReadable with the reason. Without
    `attention` none is read, which is faster. Warns (PromptCut) of a text that is too long. Raises ToushiError for a
    text without tokens. `record_texts` writes the same to a folder.
    """
    check_texts(texts)
    encoder = open_encoder(encoder)
    tokens: list[tuple[Token, ...]] = []
    by_length: dict[int, list[int]] = {}
    for index, text in enumerate(texts):
        text_tokens, cut = encoder.tokenize(validate_prompt(text))
        if not text_tokens:
            raise ToushiError(f"the text {text!r} has no tokens for {encoder.name}, so there is nothing to encode")
        tokens.append(text_tokens)
        by_length.setdefault(len(text_tokens), []).append(index)
        if cut:
            lost = join_words(_split_words(text, text_tokens)[1])
            message = f"a text is longer than the {encoder.limit} tokens that {encoder.name} reads; cut: {lost}"
            warnings.warn(PromptCut(message), stacklevel=2)
    encodings: dict[int, TextEncoding] = {}
    for indices in by_length.values():
        for start in range(0, len(indices), BATCH):
            batch = indices[start : start + BATCH]
            encodings |= zip(batch, _encode(encoder, [texts[i] for i in batch], [tokens[i] for i in batch], attention))
    return TextEncodings(encoder.name, tuple(encodings[index] for index in range(len(tokens))))


def check_texts(texts: Sequence[str]) -> None:
    """Raises ToushiError for one text in place of a list."""
    if isinstance(texts, str):
        raise ToushiError(f"expected a list of texts, but a text came; write [{texts!r:.40}]")


# --- running --------------------------------------------------------------------------------------------


def _encode(
    encoder: Encoder, texts: Sequence[str], tokens: Sequence[tuple[Token, ...]], read_attention: bool
) -> list[TextEncoding]:
    """Encodings of texts that have equally many tokens."""
    ids = torch.tensor([[token.id for token in row] for row in tokens], device=encoder.device)
    layers = {str(number): layer for number, layer in enumerate(encoder.layers, 1)}
    states: dict[int, np.ndarray] = {}
    attention: dict[int, np.ndarray] = {}
    blind: dict[int, str] = {}

    def on_state(number: str, state: Tensor) -> None:
        states[int(number)] = _as_numpy(state)

    def on_call(call: Call) -> None:
        number, shape = int(call.site), (len(ids), ids.shape[1], ids.shape[1])
        if number in attention or number in blind:
            blind[number] = "called scaled_dot_product_attention several times, so it is not known which call counts"
        elif (call.shape[0], *call.shape[2:]) != shape:
            blind[number] = f"attends from {call.shape[2]} to {call.shape[3]} places, not between the {shape[1]} tokens"
        else:
            attention[number] = _as_numpy(call.probabilities().transpose(2, 3))

    attention_hook = AttentionHook(layers if read_attention else {}, on_call)
    embeddings = {"0": (encoder.layers[0], [forward_parameters(encoder.layers[0])[0]])}
    hooks = argument_hooks(embeddings, on_state), state_hooks(layers, on_state)
    with torch.no_grad(), cpu_threads(encoder.threads), hooks[0], hooks[1], attention_hook:
        final = _as_numpy(encoder.forward(ids))
    _check_lengths(encoder, ids, states, final)
    blind |= {int(number): why for number, why in attention_hook.unread_modules().items()}
    if not read_attention:
        blind = dict.fromkeys(range(1, len(layers) + 1), "was not read: encode_layers(…, attention=False)")
    stacked = np.stack([states[number] for number in range(len(layers) + 1)], axis=1)
    maps = None if blind else np.stack([attention[number] for number in range(1, len(layers) + 1)], axis=1)
    numbers = np.arange(len(layers) + 1)
    encodings = []
    for row, (text, text_tokens) in enumerate(zip(texts, tokens)):
        words, lost = _split_words(text, text_tokens)
        indices = np.arange(len(text_tokens))
        coords = {"token": indices, "text": ("token", [token.text for token in text_tokens])}
        recorded = None
        if maps is not None:
            map_coords = {"layer": numbers[1:], "query": indices, **coords}
            recorded = xr.DataArray(maps[row], dims=("layer", "head", "query", "token"), coords=map_coords)
        encodings.append(
            TextEncoding(
                text=text,
                tokens=text_tokens,
                words=words,
                lost=lost,
                unknown=tuple(word for word in words if _is_unknown(word, text_tokens, encoder.unk_token_id)),
                states=xr.DataArray(
                    stacked[row], dims=("layer", "token", "feature"), coords={"layer": numbers, **coords}
                ),
                final=xr.DataArray(final[row], dims=("token", "feature"), coords=coords),
                blind=dict(sorted(blind.items())),
                recorded_attention=recorded,
            )
        )
    return encodings


def _check_lengths(encoder: Encoder, ids: Tensor, states: Mapping[int, np.ndarray], final: np.ndarray) -> None:
    """Raises UnknownEncoder unless every layer has one state for each token."""
    outputs = {f"layer {number}": states.get(number) for number in range(len(encoder.layers) + 1)}
    for part, state in (outputs | {"the output": final}).items():
        if state is None or state.shape[:2] != ids.shape:
            raise UnknownEncoder(
                f"{part} of {encoder.name} must be a state for each token, {list(ids.shape)} and the features, but "
                f"{'none' if state is None else list(state.shape)} came: an encoder that changes the length of the "
                "sequence cannot be read by layers"
            )


def _split_words(text: str, tokens: Sequence[Token]) -> tuple[tuple[Word, ...], tuple[Word, ...]]:
    """The words that have tokens, and those that were cut or that the tokenizer leaves out."""
    ends = [token.span[1] for token in tokens if token.span]
    words = segment(text)
    read = [word for word in words if word.end <= max(ends, default=0) and token_shares(tokens, word.span).any()]
    return tuple(read), tuple(word for word in words if word not in read)


def _is_unknown(word: Word, tokens: Sequence[Token], unk_token_id: int | None) -> bool:
    shares = token_shares(tokens, word.span)
    return unk_token_id is not None and all(token.id == unk_token_id for token, share in zip(tokens, shares) if share)


def _as_numpy(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
