"""Changing attention as it passes: after the softmax, before the values are mixed."""

from collections.abc import Callable

from torch import Tensor

from toushi.hooks.attention import Call
from toushi.hooks.kernels import RECOMPUTE_MAX_KEYS, Columns

Rows = slice | list[int]


def apply_attention_edit(
    call: Call,
    value: Tensor,
    output: Tensor,
    change: Callable[[Tensor], Tensor],
    columns: Columns = slice(None),
    rows: Rows = slice(None),
    renormalise: bool = False,
    queries: slice | None = None,
) -> Tensor:
    """The output [row, head, query, d] had these columns been attended to as `change` says, by these queries.

    `change` maps probabilities [row, head, column, query] to others. Only the difference is mixed in,
    output + (changed - p) @ value, so the columns that stay cost nothing and no N x N matrix is formed; with
    `renormalise` the result is divided by its new total mass. A query whose mass is all gone gets zeros.

    Dividing a difference by what little is left would magnify its rounding: of few keys (a text) all are mixed anew
    where `renormalise` changes anything. Of many keys a query with less than 1e-6 left counts as all gone.
    """
    anew = renormalise and call.shape[3] <= RECOMPUTE_MAX_KEYS
    mixed = slice(None) if anew else columns
    before = call.probabilities(mixed, rows, queries)
    queries = slice(None) if queries is None else queries
    values = value[rows][:, :, mixed].to(before.dtype)
    values = values.repeat_interleave(before.shape[1] // values.shape[1], dim=1)  # grouped queries share values
    new = output[rows][:, :, queries].to(before.dtype)
    if anew:
        after = before.clone()
        after[:, :, columns] = change(before[:, :, columns])
        mass = after.sum(2)[..., None]
        changed = (after != before).any(2)[..., None]
        new = (after.transpose(2, 3) @ values / mass).where(mass > 0, 0.0).where(changed, new)
    else:
        delta = change(before) - before
        new = new + delta.transpose(2, 3) @ values
        if renormalise:
            mass = 1 + delta.sum(2)[..., None]
            new = (new / mass).where(mass > 1e-6, 0.0)
    result = output.clone()
    result[rows, :, queries] = new.to(output.dtype)
    return result
