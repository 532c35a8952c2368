"""What an edited attention site passes on: its output had the edited columns been attended to otherwise."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from toushi.hooks.attention import Call
from toushi.hooks.attention_edits import apply_attention_edit
from toushi.probe.editing import edit_source
from toushi.probe.editing.edit_spec import BadEdit, Edit, same_shape
from toushi.probe.pipelines.family import EncodedPrompt, JointSequence, PromptTokens
from toushi.probe.session.row_matching import group_rows_by_layout
from toushi.probe.text.alignment import Token

if TYPE_CHECKING:
    from toushi.probe.editing.edit import Editing


class EditedRow(NamedTuple):
    row: int
    branch: str
    prompt: EncodedPrompt | PromptTokens
    start: int  # of its text among the keys


def edited_attention(editing: "Editing", call: Call, value: Tensor, output: Tensor) -> Tensor:
    """The output [row, head, query, d] with every edit of this site that holds at this step."""
    session, kind = editing.session, editing.known_sites[call.site].kind
    evaluation = None if kind == "encoder" else session.evaluation
    step, count = (0, 1) if evaluation is None else (evaluation.run.index, evaluation.run.count)
    edits = [one for one in editing.attention[call.site] if one.at(step, count)]
    if not edits or (evaluation is None and kind != "encoder"):
        return output
    joint, cells = _check_shape(editing, call)
    edited_rows = _rows(editing, call, joint)
    rows, heads, _, keys = call.shape
    whole = output.new_ones(rows, heads, 1, 1)
    factor = torch.ones(rows, heads, keys, 1, dtype=torch.float64)
    replacements: list[tuple[int, list[int], list[int], Tensor]] = []  # row, heads, columns, maps
    functions = [one.function for one in edits if one.function is not None]
    columns_of: dict[int, set[int]] = {}  # row -> columns that change
    for one in edits:
        chosen = one.heads(heads)
        for row, branch, prompt, start in (r for r in edited_rows if r.branch in one.branches):
            if branch == "cond":
                editing.reached.add(call.site)
            if one.function is not None:
                own = [at for token in prompt.tokens if (at := _column(editing, call, token)) is not None]
                columns_of.setdefault(row, set()).update(start + column for column in own)
            elif not one.of_columns:
                whole[row, chosen] *= one.factor
            else:
                columns, part = _shares(editing, call, one, prompt)
                columns = [start + column for column in columns]
                columns_of.setdefault(row, set()).update(columns)
                if one.kind == "replace":
                    trace = editing.sources[one.source]
                    maps = edit_source.attention(trace, one, call, cells, branch, (step, count), len(columns))
                    replacements.append((row, chosen, columns, maps))
                else:
                    scaled = 1 + (one.factor - 1) * torch.from_numpy(part)
                    for head in chosen:
                        factor[row, head, columns, 0] *= scaled
    renormalise = any(one.renormalise for one in edits)
    for sequence, own_rows in group_rows_by_layout(columns_of, joint).items():
        columns = sorted(set().union(*(columns_of[row] for row in own_rows)))
        image = None if sequence is None else slice(sequence.image, sequence.image + cells)
        change = _change(call.site, own_rows, columns, factor, replacements, functions)
        output = apply_attention_edit(call, value, output, change, columns, own_rows, renormalise, image)
    return output * whole if (whole != 1).any() else output


def _change(
    site: str,
    rows: list[int],
    columns: list[int],
    factor: Tensor,
    replacements: list[tuple[int, list[int], list[int], Tensor]],
    functions: list[Callable[[Tensor], Tensor]],
) -> Callable[[Tensor], Tensor]:
    """From probabilities [row, head, column, query] of these rows and columns to the edited ones."""
    place = {column: index for index, column in enumerate(columns)}

    def change(before: Tensor) -> Tensor:
        after = before * factor[rows][:, :, columns].to(before)
        for row, heads, replaced, maps in replacements:
            for head in heads if row in rows else ():
                after[rows.index(row), head, [place[column] for column in replaced]] = maps[head].to(before)
        for function in functions:
            after = same_shape(function(after), after, site)
        return after

    return change


def _check_shape(editing: "Editing", call: Call) -> tuple[tuple[JointSequence, ...] | None, int]:
    """The joint sequence of each row, if image and text share one, and the image cells. Raises BadEdit."""
    session, kind = editing.session, editing.known_sites[call.site].kind
    rows, _, queries, keys = call.shape
    if kind == "encoder":
        return None, queries
    assert session.evaluation is not None
    inputs = session.evaluation.inputs
    expected = len(session.evaluation.rows)
    if rows != expected:
        raise BadEdit(f"{call.site}: expected {expected} rows, one for each text, but {rows} came")
    if kind != "cross":
        return None, queries
    cells = inputs.grid[0] * inputs.grid[1]
    if inputs.joint is not None and (queries != keys or queries < max(one.image for one in inputs.joint) + cells):
        raise BadEdit(f"{call.site}: expected image and text in one sequence, but {queries}x{keys} came")
    if inputs.keys not in (None, keys):
        raise BadEdit(
            f"{call.site}: looks at {keys} keys, and the text has {inputs.keys} columns: which keys are the text's is "
            f"not known for {editing.family.name}"
        )
    return inputs.joint, queries if inputs.joint is None else cells


def _rows(editing: "Editing", call: Call, joint: tuple[JointSequence, ...] | None) -> list[EditedRow]:
    session = editing.session
    if editing.known_sites[call.site].kind == "encoder":
        return [EditedRow(*row) for row in session.encoder_rows]
    assert session.evaluation is not None
    return [
        EditedRow(row, branch, session.prompts[branch][picture], 0 if joint is None else joint[row].text)
        for row, (branch, picture) in enumerate(session.evaluation.rows)
    ]


def _column(editing: "Editing", call: Call, token: Token) -> int | None:
    """Index of the token's key, counted from where its text begins."""
    if editing.known_sites[call.site].kind == "encoder":
        return token.position if editing.family.text_encoder in token.encoders else None
    return token.column


def _shares(
    editing: "Editing", call: Call, one: Edit, prompt: EncodedPrompt | PromptTokens
) -> tuple[list[int], np.ndarray]:
    """The columns of the edited tokens, and how much of each is edited."""
    pairs = [(_column(editing, call, token), share) for token, share in zip(prompt.tokens, one.shares(prompt)) if share]
    pairs = [(column, share) for column, share in pairs if column is not None]
    if not pairs:
        raise BadEdit(f"edit of {one.site}: no token of {one.word or one.token!r} reaches {call.site}")
    return [column for column, _ in pairs], np.array([share for _, share in pairs])
