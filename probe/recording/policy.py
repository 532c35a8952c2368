"""What to keep of a run."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from toushi.probe.base.byte_sizes import parse_bytes
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.step_slice import format_slice, parse_slice
from toushi.probe.pipelines.family import EncodedPrompt, Family
from toushi.probe.text.alignment import WordSpec, find_word, list_words, segment, token_shares
from toushi.probe.trace.trace_format import KEEPS, stored_columns

DTYPES = ("float16", "float32")
DEFAULT_BUDGET = 8 * 10**9  # bytes


class KeptColumns(NamedTuple):
    """Text columns of one prompt, both lists ascending."""

    single: list[int]  # kept one by one
    pads: list[int]  # kept as their sum

    @property
    def count(self) -> int:
        """Length of the token axis."""
        return len(self.single) + bool(self.pads)

    @property
    def end(self) -> int:
        """One more than the last of them."""
        return 1 + max((*self.single[-1:], *self.pads[-1:]), default=-1)


@dataclass(frozen=True)
class Policy:
    """What `record` was asked to keep."""

    keep: str | None = None  # None: "heads" if the forecast fits the budget, else "mean"
    words: tuple[WordSpec, ...] | None = None
    steps: int | slice | tuple[int, ...] | None = None
    branches: tuple[str, ...] | None = None
    dtype: str = "float16"  # of the stored maps; sums are float32
    budget: int = DEFAULT_BUDGET  # bytes on disk for one run
    pads: bool = False  # whether every pad column is kept by itself, not their sum

    @classmethod
    def from_arguments(
        cls,
        keep: str | None,
        words: WordSpec | Iterable[WordSpec] | None,
        steps: int | slice | str | Iterable[int] | None,
        branches: str | Iterable[str] | None,
        dtype: str,
        budget: int | str,
        pads: bool,
    ) -> "Policy":
        """The policy of the arguments of `record`, which may be texts or single values. Raises ToushiError."""
        branches = (branches,) if isinstance(branches, str) else branches if branches is None else tuple(branches)
        budget = parse_bytes(budget) if isinstance(budget, str) else budget
        words = None if words is None else tuple(list_words(words))
        return cls(keep, words, _step_query(steps), branches, dtype, budget, pads)

    def recorded_steps(self, count: int) -> list[int]:
        """The steps of a run of `count` steps that are kept. Raises ToushiError if the run does not have them."""
        if self.steps is None:
            return list(range(count))
        if isinstance(self.steps, slice):
            steps = list(range(*self.steps.indices(count)))
            if not steps:
                raise ToushiError(
                    f"steps: {format_slice(self.steps)!r} selects none of the {count} steps of this run (0 to {count - 1})"
                )
            return steps
        asked: Sequence[int] = [self.steps] if isinstance(self.steps, int) else self.steps
        if outside := [step for step in asked if not -count <= step < count]:
            raise ToushiError(f"steps: there is no step {outside[0]} in a run of {count} steps (0 to {count - 1})")
        return sorted({step % count for step in asked})

    def columns(self, prompt: EncodedPrompt, branch: str) -> KeptColumns:
        """The text columns that are kept. `words` are words of the prompt, so other branches than `cond` keep all."""
        tokens = prompt.tokens
        if self.words is not None and branch == "cond":
            if prompt.prompt is None:
                raise ToushiError(
                    "words: which tokens the text columns are is not known here (no family serves the pipeline, its prompt "
                    "came as embeddings, or a warning says why), so no word can be selected; leave words out"
                )
            words = segment(prompt.prompt)
            spans = [find_word(prompt.prompt, words, word) for word in self.words]
            for word, span in zip(self.words, spans):
                if not any(
                    share and token.column is not None for token, share in zip(tokens, token_shares(tokens, span))
                ):
                    why = prompt.why_no_column(span)
                    raise ToushiError(f"words: no text column stands for {word!r}, since {why}; leave it out")
            mass = sum((token_shares(tokens, span) for span in spans), np.zeros(len(tokens)))
            tokens = [token for token, share in zip(tokens, mass) if share > 0]
        elif not self.pads:
            return KeptColumns(*stored_columns(tokens))
        return KeptColumns(sorted(token.column for token in tokens if token.column is not None), [])

    def check_branches(self, family: Family) -> None:
        """Raises ToushiError for a branch that the family does not have."""
        if unknown := [branch for branch in self.branches or () if branch not in family.branches]:
            raise ToushiError(f"branches must be {' or '.join(family.branches)}; {unknown[0]!r} came")

    def __post_init__(self):
        if self.keep is not None and self.keep not in KEEPS:
            raise ToushiError(f"keep must be one of {', '.join(KEEPS)}; {self.keep!r} came")
        if self.dtype not in DTYPES:
            raise ToushiError(f"dtype must be one of {', '.join(DTYPES)}; {self.dtype!r} came")
        for name in ("words", "steps", "branches"):
            if getattr(self, name) == ():
                raise ToushiError(f"{name} is empty, so nothing would be kept; leave it out to keep all of them")


def _step_query(steps: int | slice | str | Iterable[int] | None) -> int | slice | tuple[int, ...] | None:
    try:
        if isinstance(steps, str):
            return parse_slice(steps)
        if steps is None or isinstance(steps, int | slice):
            return steps
        return tuple(map(operator.index, steps))
    except (TypeError, ValueError):
        expected = 'an index, a list of indices, or a slice such as "5:11"'
        raise ToushiError(f"steps must be {expected}; {steps!r:.80} came") from None


def kept_words(entries: Sequence[Any] | None) -> tuple[WordSpec, ...] | None:
    """The words that a manifest lists as kept, as they were given to `record`: texts or spans. None for all words."""
    return None if entries is None else tuple(map(_kept_word, entries))


def _kept_word(entry: Any) -> WordSpec:
    if isinstance(entry, dict):
        return entry["start"], entry["end"]
    return tuple(entry) if isinstance(entry, list) else entry
