"""What a word got, or was, in another trace."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toushi.hooks.attention import Call
from toushi.probe.editing.edit_spec import BadEdit, Edit
from toushi.probe.text.alignment import Token, token_shares

if TYPE_CHECKING:
    from toushi.probe.trace.picture_trace import Trace


def attention(
    trace: "Trace", one: Edit, call: Call, cells: int, branch: str, step: tuple[int, int], count: int
) -> Tensor:
    """[head, column, cell]: what the word got at this site and step (index, of so many) of the other trace.

    Words of other numbers of tokens share their mass evenly over `count` columns.
    """
    index, steps = step
    if trace.manifest.steps.count != steps:
        raise BadEdit(
            f"{one.source} was drawn in {trace.manifest.steps.count} steps, this run has {steps}, so "
            "its steps are other moments. Record that trace with as many steps."
        )
    maps = trace.attention(branch=branch, sites=call.site, steps=index, grid="native")[call.site][0]
    heads = call.shape[1]
    if "head" not in maps.dims or (maps.sizes["head"], maps.sizes["y"] * maps.sizes["x"]) != (heads, cells):
        raise BadEdit(
            f"{call.site} has {heads} heads and {cells} cells; in {one.source} it has {dict(maps.sizes)}. "
            'Record that trace with keep="heads", the same model and size.'
        )
    columns = [token.column for token in _tokens(trace, one, branch) if token.column is not None]
    if not columns or not set(columns) <= set(maps.token.values.tolist()):
        raise BadEdit(
            f"{one.source} kept the attention to some words only, and this edit needs that to "
            f"{_word(one)!r}. Record that trace with this word too."
        )
    own = torch.from_numpy(maps.sel(token=columns).values.reshape(heads, len(columns), cells))
    return own if len(columns) == count else own.sum(1, keepdim=True).expand(-1, count, -1) / count


def state(
    trace: "Trace", one: Edit, site: str, number: int, encoder: str, branch: str, count: int, width: int
) -> Tensor:
    """[token, feature]: the word's state `number` in the other trace. Of other numbers of tokens the mean."""
    states = trace.encoder_states(branch)
    if number not in states.layer or states.sizes["feature"] != width:
        raise BadEdit(
            f"{one.source} has the states of layers {states.layer.values.tolist()}, {states.sizes['feature']} "
            f"wide; a patch of {site} needs state {number}, {width} wide. Record it with the same model."
        )
    tokens = _tokens(trace, one, branch)
    at = [token.position for token in tokens if encoder in token.encoders]
    if not at:
        raise BadEdit(f"in {one.source} no token of {encoder} stands for {_word(one)!r}")
    own = torch.from_numpy(states.sel(layer=number).values[at])
    return own if len(at) == count else own.mean(0, keepdim=True).expand(count, -1)


def _tokens(trace: "Trace", one: Edit, branch: str) -> list[Token]:
    tokens, word = trace.tokens(branch), _word(one)
    found = [token for token, share in zip(tokens, token_shares(tokens, trace.span(word, branch))) if share]
    if not found:
        raise BadEdit(f"in {one.source} no token stands for {word!r}: it was cut from a prompt that is too long")
    return found


def _word(one: Edit):
    return one.word if one.source_word is None else one.source_word
