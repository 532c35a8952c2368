"""Changing attention while the model runs: after the softmax, before the values are mixed."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from toushi.hooks.attention import Call
from toushi.hooks.kernels import RECOMPUTE_MAX_KEYS, Columns, Output, Rows, Value


def apply_attention_edit(
    call: Call,
    value: Value,
    output: Output,
    change: Callable[[Float[Tensor, "row head column query"]], Tensor],
    columns: Columns = slice(None),
    rows: Rows = slice(None),
    renormalise: bool = False,
    queries: slice | None = None,
) -> Output:
    """The output of the call if these queries had attended to these columns as `change` says.

    `change` maps probabilities [row, head, column, query] to new ones of that shape. Only the difference is mixed in,
    output + (changed - p) @ value. So the other columns cost nothing, and no N x N matrix is computed. With
    `renormalise` the result is divided by its new total mass. A query without any mass left gets zeros.

    To divide a difference by a small remaining mass would magnify its rounding. So for few keys (a text), `renormalise`
    mixes all keys again where anything changed. For many keys, a query with less than 1e-6 left has none left.
    """
    mix_all = renormalise and call.shape[3] <= RECOMPUTE_MAX_KEYS
    mixed = slice(None) if mix_all else columns
    before = call.probabilities(mixed, rows, queries)
    queries = slice(None) if queries is None else queries
    values = value[rows][:, :, mixed].to(before.dtype)
    values = values.repeat_interleave(before.shape[1] // values.shape[1], dim=1)  # grouped queries share values
    new = output[rows][:, :, queries].to(before.dtype)
    if mix_all:
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
