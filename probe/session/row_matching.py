"""Which row of the denoiser's batch is which text: found by value, never by the order of rows.

Pipelines differ in the order ([negative, positive] or the reverse), change it, or drop guidance part-way. What does
not change is that each row carries a text that the encoding returned.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import EncodedPrompt, JointSequence

Place = tuple[str, int]  # branch, and number of the picture in the batch


class BranchMismatch(ToushiError):
    """The denoiser was given a text that the encoding did not return."""


def match_rows(
    rows: Sequence[Tensor],
    texts: Mapping[str, Sequence[Tensor]],
    order: Sequence[str],
    seen: Collection[Place] = (),
    branches: Sequence[str] | None = None,
) -> list[Place]:
    """Branch and picture of each row. Rows and texts are [column, feature], without padding.

    `branches` names the branch of each row, where a family can tell it from the denoiser's arguments.

    Texts that are equal (an empty prompt beside an empty negative one) cannot be told apart by value: among them
    `order`, the family's order of branches in a batch, decides; where there are fewer rows than texts, those come
    first that were not `seen` in this step yet (pipelines may evaluate their branches in separate calls), then `cond`.
    """
    every = [(branch, item) for branch, some in texts.items() for item in range(len(some))]
    possible = [every if branches is None else [p for p in every if p[0] == branches[i]] for i in range(len(rows))]
    equals = [
        tuple(place for place in places if equal(row, texts[place[0]][place[1]])) for row, places in zip(rows, possible)
    ]
    for index, (row, places) in enumerate(zip(rows, equals)):
        if not places:
            known = ", ".join(f"{branch} {tuple(texts[branch][item].shape)}" for branch, item in every)
            raise BranchMismatch(
                f"row {index} of the denoiser's text, {tuple(row.shape)}, equals no text that was encoded: "
                f"{known or 'none was'}. Encode the prompts inside `with record(...)`, and pass them on unchanged."
            )
    result: list[Place | None] = [None] * len(rows)
    for group in dict.fromkeys(equals):
        members = [index for index, places in enumerate(equals) if places == group]
        for index, place in zip(members, _assign_equal(group, len(members), order, seen)):
            result[index] = place
    return [place for place in result if place is not None]


def _assign_equal(group: Sequence[Place], count: int, order: Sequence[str], seen: Collection[Place]) -> list[Place]:
    """The places of `count` rows, in their order, among texts that are all equal."""
    if count > len(group):
        raise BranchMismatch(
            f"{count} rows of the denoiser's batch carry one text that was encoded {len(group)} times: "
            "several pictures of one prompt in one batch. Pass the prompt once for each picture."
        )
    if count < len(group):
        group = sorted(group, key=lambda place: (place in seen, place[0] != "cond"))[:count]
    rank = {branch: number for number, branch in enumerate(order)}
    return sorted(group, key=lambda place: (rank.get(place[0], len(rank)), place[1]))


def equal(row: Tensor, text: Tensor) -> bool:
    return row.shape == text.shape and torch.equal(row, text.to(row))


def restore_prompts(
    texts: Mapping[str, Sequence[EncodedPrompt]], precomputed: Sequence[EncodedPrompt]
) -> dict[str, list[EncodedPrompt]]:
    """The prompts; those that came as embeddings get their text back if they were encoded inside the session."""

    def restored(text: EncodedPrompt) -> EncodedPrompt:
        same = (other for other in precomputed if equal(other.states, text.states))
        return text if text.prompt is not None else next(same, text)

    return {branch: list(map(restored, prompts)) for branch, prompts in texts.items()}


def group_rows_by_layout(
    rows: Iterable[int], joint: Sequence[JointSequence] | None
) -> dict[JointSequence | None, list[int]]:
    """The rows, those together that have image and text at the same places of their sequence."""
    groups: dict[JointSequence | None, list[int]] = {}
    for row in sorted(rows):
        groups.setdefault(None if joint is None else joint[row], []).append(row)
    return groups


def index_of_ids(row: Sequence[int], ids: Sequence[int]) -> int | None:
    """Index in the row at which these ids begin, with padding behind or before them; None if they are not its own.

    A prompt that came as embeddings has no ids, and no row is its own.
    """
    row, ids = list(row), list(ids)
    starts = (0, len(row) - len(ids)) if ids else ()
    return next((start for start in starts if row[start : start + len(ids)] == ids), None)
