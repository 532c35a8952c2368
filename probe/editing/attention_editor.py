"""The output of an edited attention site: as if the edited columns had got other attention."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toushi.hooks.attention import Call
from toushi.hooks.attention_edits import apply_attention_edit
from toushi.probe.editing import edit_source
from toushi.probe.editing.edit_plan import EditPlan
from toushi.probe.editing.edit_spec import BadEdit, Edit, check_rows, check_shape
from toushi.probe.pipelines.family import EncodedPrompt, JointSequence, PromptTokens
from toushi.probe.session.map_grid import grid_of
from toushi.probe.session.row_matching import group_rows_by_layout
from toushi.probe.session.subscriber import Session
from toushi.probe.text.alignment import Token


class EditedRow(NamedTuple):
    row: int
    branch: str
    prompt: EncodedPrompt | PromptTokens
    start: int  # of its text among the keys


class Replacement(NamedTuple):
    """Attention of another trace for some columns of one row."""

    row: int
    heads: list[int]
    columns: list[int]
    maps: Tensor  # [head, column, cell]


class Move(NamedTuple):
    """A shift of the maps of some columns of one row, in cells of the site's grid."""

    row: int
    heads: list[int]
    columns: list[int]
    grid: tuple[int, int]
    cells: tuple[int, int]  # rows, columns


def edit_attention(plan: EditPlan, session: Session, call: Call, value: Tensor, output: Tensor) -> Tensor:
    """The output [row, head, query, d] with every edit of this site that holds at this step."""
    kind = plan.sites[call.site].kind
    evaluation = None if kind == "encoder" else session.evaluation
    step, count = (0, 1) if evaluation is None else (evaluation.run.index, evaluation.run.count)
    edits = [edit for edit in plan.site_edits[call.site] if edit.holds_at(step, count)]
    if not edits or (evaluation is None and kind != "encoder"):
        return output
    joint, cells = _check_call(plan, session, call)
    edited_rows = _edited_rows(plan, session, call, joint)
    rows, heads, _, keys = call.shape
    head_factor = output.new_ones(rows, heads, 1, 1)
    column_factor = torch.ones(rows, heads, keys, 1, dtype=torch.float64)
    replacements: list[Replacement] = []
    moves: list[Move] = []
    functions = [edit.function for edit in edits if edit.function is not None]
    columns_of: dict[int, set[int]] = {}  # row -> columns that change
    for edit in edits:
        edited_heads = edit.heads(heads)
        for row, branch, prompt, start in (r for r in edited_rows if r.branch in edit.branches):
            if branch == "cond":
                plan.reached.add(call.site)
            if edit.function is not None:
                columns = [c for token in prompt.tokens if (c := _column(plan, call, token)) is not None]
                columns_of.setdefault(row, set()).update(start + column for column in columns)
            elif not edit.has_columns:
                head_factor[row, edited_heads] *= edit.factor
            else:
                columns, shares = _column_shares(plan, call, edit, prompt)
                columns = [start + column for column in columns]
                columns_of.setdefault(row, set()).update(columns)
                if edit.shift is not None:
                    assert evaluation is not None, "sites of the encoder have no map that could move"
                    grid = grid_of(evaluation.inputs.grid, cells)
                    shift = round(edit.shift[0] * grid[0]), round(edit.shift[1] * grid[1])
                    moves.append(Move(row, edited_heads, columns, grid, shift))
                elif edit.folder is not None:
                    trace = plan.sources[edit.folder]
                    maps = edit_source.read_attention(trace, edit, call, cells, branch, (step, count), len(columns))
                    replacements.append(Replacement(row, edited_heads, columns, maps))
                else:
                    scale = 1 + (edit.factor - 1) * torch.from_numpy(shares)
                    for head in edited_heads:
                        column_factor[row, head, columns, 0] *= scale
    renormalise = any(edit.renormalise for edit in edits)
    for sequence, group in group_rows_by_layout(columns_of, joint).items():
        columns = sorted(set().union(*(columns_of[row] for row in group)))
        image = None if sequence is None else slice(sequence.image, sequence.image + cells)
        change = _change(call.site, group, columns, column_factor, replacements, moves, functions)
        output = apply_attention_edit(call, value, output, change, columns, group, renormalise, image)
    return output * head_factor if (head_factor != 1).any() else output


def _change(
    site: str,
    rows: list[int],
    columns: list[int],
    column_factor: Tensor,
    replacements: Sequence[Replacement],
    moves: Sequence[Move],
    functions: Sequence[Callable[[Tensor], Tensor]],
) -> Callable[[Tensor], Tensor]:
    """Maps probabilities [row, head, column, query] of these rows and columns to the edited ones."""
    index_of = {column: index for index, column in enumerate(columns)}

    def change(before: Tensor) -> Tensor:
        after = before * column_factor[rows][:, :, columns].to(before)
        for row, heads, replaced, maps in replacements:
            for head in heads if row in rows else ():
                after[rows.index(row), head, [index_of[column] for column in replaced]] = maps[head].to(before)
        for row, heads, moved, grid, cells in moves:
            places = [index_of[column] for column in moved if row in rows]
            for head in heads if places else ():
                maps = after[rows.index(row), head, places].unflatten(-1, grid)
                after[rows.index(row), head, places] = maps.roll(cells, (-2, -1)).flatten(-2)
        for function in functions:
            after = check_shape(function(after), after, site)
        return after

    return change


def _check_call(plan: EditPlan, session: Session, call: Call) -> tuple[tuple[JointSequence, ...] | None, int]:
    """The joint sequence of each row, if image and text share one, and the image cells.

    Raises BadEdit if rows, sequence or keys are not the expected ones.
    """
    kind = plan.sites[call.site].kind
    rows, _, queries, keys = call.shape
    if kind == "encoder":
        if session.encoder_batch is not None:
            check_rows(rows, session.encoder_batch.size, call.site)
        return None, queries
    assert session.evaluation is not None
    inputs = session.evaluation.inputs
    check_rows(rows, len(session.evaluation.rows), call.site)
    if kind != "cross":
        return None, queries
    cells = inputs.grid[0] * inputs.grid[1]
    if inputs.joint is not None:
        last = max(sequence.image for sequence in inputs.joint) + cells
        if queries != keys or queries < last:
            raise BadEdit(f"{call.site}: expected one sequence of at least {last}, but {queries}x{keys} came")
    if inputs.key_count not in (None, keys):
        raise BadEdit(
            f"{call.site}: has {keys} keys, and the text has {inputs.key_count} columns: which keys are the text's is not "
            f"known for {plan.family.name}"
        )
    return inputs.joint, queries if inputs.joint is None else cells


def _edited_rows(
    plan: EditPlan, session: Session, call: Call, joint: tuple[JointSequence, ...] | None
) -> list[EditedRow]:
    if plan.sites[call.site].kind == "encoder":
        return [] if session.encoder_batch is None else [EditedRow(*row) for row in session.encoder_batch.rows]
    assert session.evaluation is not None
    return [
        EditedRow(row, branch, session.prompts[branch][picture], 0 if joint is None else joint[row].text)
        for row, (branch, picture) in enumerate(session.evaluation.rows)
    ]


def _column(plan: EditPlan, call: Call, token: Token) -> int | None:
    """Index of the token's key, counted from the beginning of its text."""
    if plan.sites[call.site].kind == "encoder":
        return token.position if plan.family.text_encoder in token.encoders else None
    return token.column


def _column_shares(
    plan: EditPlan, call: Call, edit: Edit, prompt: EncodedPrompt | PromptTokens
) -> tuple[list[int], np.ndarray]:
    """The columns of the edited tokens, and how much of each is edited. Raises BadEdit if no token of the word is there."""
    tokens, shares = prompt.tokens, edit.shares(prompt)
    columns = [_column(plan, call, token) for token in tokens]
    if not any(share and column is not None for column, share in zip(columns, shares)):
        raise BadEdit(f"edit of {edit.site}: no token of {edit.word or edit.token!r} reaches {call.site}")
    if edit.kind == "keep_only":
        shares = np.array([token.is_text for token in tokens]) * (1 - shares)
    pairs = [(column, share) for column, share in zip(columns, shares) if share and column is not None]
    return [column for column, _ in pairs], np.array([share for _, share in pairs])
