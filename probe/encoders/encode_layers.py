"""`encode_layers(encoder, texts)`: what every layer of a text encoder makes of texts.

An encoder is ours (`load("mini-unet")` has one) or any Transformer that the transformers library loads from a folder:
bidirectional (BERT, XLM-R), causal (CLIP's text side, Qwen3), or the encoder half of a T5.
"""

import inspect
import warnings
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from toushi.hooks.attention import AttentionHook, Call
from toushi.hooks.module_hooks import argument_hooks, state_hooks
from toushi.probe.base.errors import ToushiError
from toushi.probe.encoders.load_encoder import AnyEncoder, Encoder, open_encoder
from toushi.probe.models.cpu_threads import cpu_threads
from toushi.probe.models.mini_unet import PromptCut
from toushi.probe.text.alignment import Token, Word, join_words, segment, token_shares, validate_prompt
from toushi.probe.trace.text_encoding import TextEncoding, TextEncodings

BATCH = 16  # texts at once


def encode_layers(
    encoder: AnyEncoder,
    texts: Sequence[str],
    *,
    attention: bool = True,
) -> TextEncodings:
    """States of all layers 0..n and attention of all layers for each text, by token; `TextEncodings` pools them to words.

    `encoder`: "mini-unet", a folder, a model of `load`, or what `load_pretrained` and `wrap_encoder` return. Texts with equally
    many tokens run together, so nothing is padded. Attention is read where the encoder calls
    scaled_dot_product_attention; where it does not, asking for it raises, and says why. Without `attention` it is not
    looked at, which is faster. Warns (PromptCut) of a text that is too long. Raises ToushiError for a text without
    tokens. `record_texts` writes the same to a folder.
    """
    check_texts(texts)
    known = open_encoder(encoder)
    tokens: list[tuple[Token, ...]] = []
    for text in texts:
        found, cut = known.tokenize(validate_prompt(text))
        if not found:
            raise ToushiError(f"the text {text!r} has no tokens for {known.name}, so there is nothing to look at")
        tokens.append(found)
        if cut:
            lost = join_words(_words(text, found)[1])
            said = f"a text is longer than the {known.limit} tokens that {known.name} reads; cut: {lost}"
            warnings.warn(PromptCut(said), stacklevel=2)
    lengths: dict[int, list[int]] = {}
    for index, found in enumerate(tokens):
        lengths.setdefault(len(found), []).append(index)
    readings: dict[int, TextEncoding] = {}
    for alike in lengths.values():
        for at in range(0, len(alike), BATCH):
            batch = alike[at : at + BATCH]
            readings |= zip(batch, _read(known, [texts[i] for i in batch], [tokens[i] for i in batch], attention))
    ordered = tuple(readings[index] for index in range(len(tokens)))
    return TextEncodings(known.name, ordered)


def check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise ToushiError(f"expected a list of texts, but a text came; write [{texts!r:.40}]")


# --- running --------------------------------------------------------------------------------------------


def _read(
    encoder: Encoder, texts: Sequence[str], tokens: Sequence[tuple[Token, ...]], attended: bool
) -> list[TextEncoding]:
    """Encodings of texts that have equally many tokens."""
    ids = torch.tensor([[token.id for token in row] for row in tokens], device=encoder.device)
    layers = {str(number): layer for number, layer in enumerate(encoder.layers, 1)}
    first = encoder.layers[0]
    entry = next(iter(inspect.signature(first.forward).parameters))
    states: dict[int, np.ndarray] = {}
    attention: dict[int, np.ndarray] = {}
    blind: dict[int, str] = {}

    def keep(number: str, state: Tensor) -> None:
        states[int(number)] = _numpy(state)

    def see(call: Call) -> None:
        number, shape = int(call.site), (len(ids), ids.shape[1], ids.shape[1])
        if number in attention or number in blind:
            blind[number] = "called scaled_dot_product_attention several times, so which one is meant is not known"
        elif (call.shape[0], *call.shape[2:]) != shape:
            blind[number] = f"attends from {call.shape[2]} to {call.shape[3]} places, not between the {shape[1]} tokens"
        else:
            attention[number] = _numpy(call.probabilities().transpose(2, 3))

    watch = AttentionHook(layers if attended else {}, see)
    hooks = argument_hooks({"0": (first, [entry])}, keep), state_hooks(layers, keep)
    with torch.no_grad(), cpu_threads(encoder.threads), hooks[0], hooks[1], watch:
        final = _numpy(encoder.forward(ids))
    blind |= {int(number): why for number, why in watch.unread_modules().items()}
    if not attended:
        blind = dict.fromkeys(range(1, len(layers) + 1), "was not looked at: encode_layers(…, attention=False)")
    stacked = np.stack([states[number] for number in range(len(layers) + 1)], axis=1)
    seen = None if blind else np.stack([attention[number] for number in range(1, len(layers) + 1)], axis=1)
    numbers = np.arange(len(layers) + 1)
    readings = []
    for row, (text, own) in enumerate(zip(texts, tokens)):
        words, lost = _words(text, own)
        places = {"token": np.arange(len(own)), "text": ("token", [token.text for token in own])}
        state = xr.DataArray(stacked[row], dims=("layer", "token", "feature"), coords={"layer": numbers, **places})
        if seen is not None:
            coords = {"layer": numbers[1:], "query": np.arange(len(own)), **places}
            mass = xr.DataArray(seen[row], dims=("layer", "head", "query", "token"), coords=coords)
        readings.append(
            TextEncoding(
                text=text,
                tokens=own,
                words=words,
                lost=lost,
                unknown=tuple(word for word in words if _unknown(word, own, encoder.unknown)),
                states=state,
                final=xr.DataArray(final[row], dims=("token", "feature"), coords=places),
                blind=dict(sorted(blind.items())),
                seen=None if seen is None else mass,
            )
        )
    return readings


def _words(text: str, tokens: Sequence[Token]) -> tuple[tuple[Word, ...], tuple[Word, ...]]:
    """The words that have tokens, and those that were cut or that the tokenizer leaves out."""
    ends = [token.span[1] for token in tokens if token.span]
    words = segment(text)
    read = [word for word in words if word.end <= max(ends, default=0) and token_shares(tokens, word.span).any()]
    return tuple(read), tuple(word for word in words if word not in read)


def _unknown(word: Word, tokens: Sequence[Token], unknown: int | None) -> bool:
    own = token_shares(tokens, word.span)
    return unknown is not None and all(token.id == unknown for token, share in zip(tokens, own) if share)


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
