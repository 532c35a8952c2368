"""The output of an edited layer of the text encoder."""

import numpy as np
import torch
from torch import Tensor

from toushi.probe.editing import edit_source
from toushi.probe.editing.edit_plan import EditPlan
from toushi.probe.editing.edit_spec import BadEdit, check_rows, check_shape
from toushi.probe.session.subscriber import EncoderBatch


def edit_states(plan: EditPlan, batch: EncoderBatch | None, name: str, state: Tensor) -> Tensor:
    """The state of the module `name`, [row, position, feature] or position first, with its edits."""
    encoder = plan.family.text_encoder
    edited = state.clone()
    rows = edited.transpose(0, 1) if plan.family.sequence_first else edited  # a view: [row, position, feature]
    if batch is not None:
        check_rows(rows.shape[0], batch.size, name)
    for edit in plan.state_edits[name]:
        edited_rows = [] if batch is None else [row for row in batch.rows if row.branch in edit.branches]
        if any(row.branch == "cond" for row in edited_rows):
            plan.reached.add(name)
        if edit.function is not None:
            rows.copy_(check_shape(edit.function(rows), rows, name))
            continue
        for row, branch, prompt, start in edited_rows:
            shares = edit.shares(prompt) if edit.has_columns else np.ones(len(prompt.tokens))
            tokens = zip(prompt.tokens, shares)
            share_at = {token.position: share for token, share in tokens if share and encoder in token.encoders}
            if not share_at:
                raise BadEdit(f"edit of {edit.site}: no token of {edit.word!r} reaches {name}: it was cut")
            positions = [start + position for position in share_at]
            if edit.folder is not None:
                trace, number = plan.sources[edit.folder], list(plan.states).index(name)
                width = rows.shape[-1]
                patch = edit_source.read_state(trace, edit, name, number, encoder, branch, len(share_at), width)
                rows[row, positions] = patch.to(rows)
            else:
                scale = 1 + (edit.factor - 1) * torch.tensor(list(share_at.values()))[:, None].to(rows)
                rows[row, positions] *= scale
    return edited
