"""What an edited layer of the text encoder passes on."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from toushi.probe.editing import edit_source
from toushi.probe.editing.edit_spec import BadEdit, same_shape

if TYPE_CHECKING:
    from toushi.probe.editing.edit import Editing


def edited_states(editing: "Editing", name: str, state: Tensor) -> Tensor:
    """The state of the module `name` [row, position, feature] (or position first) with its edits."""
    encoder = editing.family.text_encoder
    changed = state.clone()
    rows = changed.transpose(0, 1) if editing.family.sequence_first else changed  # a view: [row, position, feature]
    for one in editing.states[name]:
        own = [row for row in editing.session.encoder_rows if row.branch in one.branches]
        if any(row.branch == "cond" for row in own):
            editing.reached.add(name)
        if one.function is not None:
            rows.copy_(same_shape(one.function(rows), rows, name))
            continue
        for row, branch, prompt, start in own:
            shares = one.shares(prompt) if one.of_columns else np.ones(len(prompt.tokens))
            tokens = zip(prompt.tokens, shares)
            at = {token.position: share for token, share in tokens if share and encoder in token.encoders}
            if not at:
                raise BadEdit(f"edit of {one.site}: no token of {one.word!r} reaches {name}: it was cut")
            positions = [start + position for position in at]
            if one.kind == "patch":
                trace, number = editing.sources[one.source], list(editing.known_states).index(name)
                patch = edit_source.state(trace, one, name, number, encoder, branch, len(at), rows.shape[-1])
                rows[row, positions] = patch.to(rows)
            else:
                part = torch.tensor(list(at.values()))[:, None].to(rows)
                rows[row, positions] *= 1 + (one.factor - 1) * part
    return changed
