"""Which row of the denoiser's batch has which prompt. Rows are matched by value, never by their order.

Pipelines differ in the order of rows ([negative, positive] or the reverse), change it, or end guidance before the last
step. One thing always holds: each row carries text states that `encode_prompt` returned.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import EncodedPrompt, JointSequence

PromptKey = tuple[str, int]  # branch, and index of the picture in the batch


class BranchMismatch(ToushiError):
    """The denoiser got text states that match no encoded prompt."""


def match_rows(
    rows: Sequence[Tensor],
    states: Mapping[str, Sequence[Tensor]],
    branch_order: Sequence[str],
    evaluated: Collection[PromptKey] = (),
    branches: Sequence[str] | None = None,
) -> list[PromptKey]:
    """Branch and picture of each row. Raises BranchMismatch if a row matches no prompt.

    rows          text states of each row [column, feature], without padding
    states        text states of the prompts of each branch, one for each picture, [column, feature] without padding
    branch_order  the family's order of branches in a batch
    evaluated     prompts that the denoiser has already evaluated in this step
    branches      branch of each row, where the family can tell it from the denoiser's arguments

    Equal states (an empty prompt beside an empty negative prompt) cannot be told apart by value. Among them
    `branch_order` decides. If there are fewer such rows than prompts, prompts that are not `evaluated` come first
    (pipelines may evaluate their branches in separate calls), then those of `cond`.
    """
    prompts = [(branch, picture) for branch, of_branch in states.items() for picture in range(len(of_branch))]
    matches: list[tuple[PromptKey, ...]] = []
    for index, row in enumerate(rows):
        candidates = prompts if branches is None else [key for key in prompts if key[0] == branches[index]]
        equal = tuple(key for key in candidates if states_equal(row, states[key[0]][key[1]]))
        if not equal:
            encoded = ", ".join(f"{branch} {tuple(states[branch][picture].shape)}" for branch, picture in prompts)
            raise BranchMismatch(
                f"row {index} of the denoiser's text states, of shape {tuple(row.shape)}, equals no encoded prompt: "
                f"{encoded or 'none was encoded'}. Encode the prompts inside `with record(...)`, and pass their states "
                "on unchanged."
            )
        matches.append(equal)
    result: dict[int, PromptKey] = {}
    for equal in dict.fromkeys(matches):
        indices = [index for index, other in enumerate(matches) if other == equal]
        result |= zip(indices, _assign_equal(equal, len(indices), branch_order, evaluated))
    return [result[index] for index in range(len(rows))]


def _assign_equal(
    prompts: Sequence[PromptKey], count: int, branch_order: Sequence[str], evaluated: Collection[PromptKey]
) -> list[PromptKey]:
    """The prompts of `count` rows in their order, where all these prompts have equal states."""
    if count > len(prompts):
        raise BranchMismatch(
            f"{count} rows of the denoiser's batch have text states that were encoded {len(prompts)} times: several "
            "pictures of one prompt in one batch. Pass the prompt once for each picture."
        )
    if count < len(prompts):
        prompts = sorted(prompts, key=lambda key: (key in evaluated, key[0] != "cond"))[:count]
    rank = {branch: number for number, branch in enumerate(branch_order)}
    return sorted(prompts, key=lambda key: (rank.get(key[0], len(rank)), key[1]))


def states_equal(first: Tensor, second: Tensor) -> bool:
    """Whether two prompts have the same states, compared in the dtype of the first."""
    return first.shape == second.shape and torch.equal(first, second.to(first))


def restore_prompts(
    prompts: Mapping[str, Sequence[EncodedPrompt]], precomputed: Sequence[EncodedPrompt]
) -> dict[str, list[EncodedPrompt]]:
    """The same prompts. One that came as embeddings gets back its text, if the session saw it being encoded."""

    def restore(prompt: EncodedPrompt) -> EncodedPrompt:
        same = (other for other in precomputed if states_equal(other.states, prompt.states))
        return prompt if prompt.prompt is not None else next(same, prompt)

    return {branch: [restore(prompt) for prompt in of_branch] for branch, of_branch in prompts.items()}


def group_rows_by_layout(
    rows: Iterable[int], joint: Sequence[JointSequence] | None
) -> dict[JointSequence | None, list[int]]:
    """The rows in groups whose sequences have image and text at the same indices; one group if `joint` is None."""
    groups: dict[JointSequence | None, list[int]] = {}
    for row in sorted(rows):
        groups.setdefault(None if joint is None else joint[row], []).append(row)
    return groups


def index_of_ids(row: Sequence[int], ids: Sequence[int]) -> int | None:
    """Index at which these ids begin in a padded row, padding on either side. None if the row has other ids.

    A prompt that came as embeddings has no ids and matches no row.
    """
    row, ids = list(row), list(ids)
    starts = (0, len(row) - len(ids)) if ids else ()
    return next((start for start in starts if row[start : start + len(ids)] == ids), None)
