"""The attention to a word, or its state, in the trace that is the source of an edit."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toushi.hooks.attention import Call
from toushi.probe.editing.edit_spec import BadEdit, Edit
from toushi.probe.text.alignment import Token, WordSpec, token_shares

if TYPE_CHECKING:
    from toushi.probe.trace.picture_trace import Trace


def read_attention(
    trace: "Trace", edit: Edit, call: Call, cells: int, branch: str, step: tuple[int, int], count: int
) -> Tensor:
    """Attention to the word [head, column, cell] at this site and step (index, steps of the run) in the other trace.

    There are `count` columns. If the word has another number of tokens there, its mass is shared evenly among them.
    Raises BadEdit if the trace does not have it.
    """
    index, steps = step
    if trace.manifest.steps.count != steps:
        raise BadEdit(
            f"{edit.source} was sampled in {trace.manifest.steps.count} steps, this run has {steps}, so its steps have "
            "other times. Record that trace with as many steps."
        )
    maps = trace.attention(branch=branch, sites=call.site, steps=index, grid="native")[call.site][0]
    heads = call.shape[1]
    if "head" not in maps.dims or (maps.sizes["head"], maps.sizes["y"] * maps.sizes["x"]) != (heads, cells):
        raise BadEdit(
            f"{call.site} has {heads} heads and {cells} cells; in {edit.source} it has {dict(maps.sizes)}. "
            'Record that trace with keep="heads", the same model and size.'
        )
    columns = [token.column for token in _tokens(trace, edit, branch) if token.column is not None]
    if not columns or not set(columns) <= set(maps.token.values.tolist()):
        raise BadEdit(
            f"{edit.source} has the attention to some words only, and this edit needs that to {_source_word(edit)!r}. "
            "Record that trace with this word too."
        )
    attention = torch.from_numpy(maps.sel(token=columns).values.reshape(heads, len(columns), cells))
    return attention if len(columns) == count else attention.sum(1, keepdim=True).expand(-1, count, -1) / count


def read_state(
    trace: "Trace", edit: Edit, site: str, number: int, encoder: str, branch: str, count: int, width: int
) -> Tensor:
    """The word's state `number` [token, feature] in the other trace, for `count` tokens and `width` features.

    If the word has another number of tokens there, each token gets the mean. Raises BadEdit if the trace does not have
    it.
    """
    states = trace.encoder_states(branch)
    if number not in states.layer or states.sizes["feature"] != width:
        raise BadEdit(
            f"{edit.source} has the states of layers {states.layer.values.tolist()}, {states.sizes['feature']} "
            f"wide; a patch of {site} needs state {number}, {width} wide. Record it with the same model."
        )
    positions = [token.position for token in _tokens(trace, edit, branch) if encoder in token.encoders]
    if not positions:
        raise BadEdit(f"in {edit.source} no token of {encoder} stands for {_source_word(edit)!r}")
    state = torch.from_numpy(states.sel(layer=number).values[positions])
    return state if len(positions) == count else state.mean(0, keepdim=True).expand(count, -1)


def _tokens(trace: "Trace", edit: Edit, branch: str) -> list[Token]:
    from toushi.probe.trace.selection import NO_MAP, why_no_map

    tokens, word = trace.tokens(branch), _source_word(edit)
    span = trace.span(word, branch)
    of_word = [token for token, share in zip(tokens, token_shares(tokens, span)) if share]
    if not of_word:
        why = NO_MAP[why_no_map(trace.manifest, branch, span)]
        raise BadEdit(f"in {edit.source} the word {word!r} cannot be used: {why}")
    return of_word


def _source_word(edit: Edit) -> WordSpec:
    return edit.words[0] if edit.source_word is None else edit.source_word
