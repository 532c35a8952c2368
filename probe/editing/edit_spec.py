"""What an intervention is: data that says where, what and when, and that a manifest can keep."""

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import EncodedPrompt, PromptTokens
from toushi.probe.text.alignment import Span, Word, find_word, segment, token_shares

KINDS = ("scale", "zero", "replace", "patch", "function")


class BadEdit(ToushiError):
    """An edit that cannot be made: it contradicts itself, the model or the trace it takes from."""


@dataclass(frozen=True)
class Edit:
    """One change at the sites that a glob names.

    site        glob: attention sites as `toushi sites` lists them; or, where it matches none of those, states of
                the text encoder: `encoder.embed`, `text_encoder.layers.3` (what that layer returns)
    kind        "scale": attention to the word (or the head's whole output, or the state) times `factor`;
                "zero": the same with factor 0, a knock-out;
                "replace": attention to the word as another trace recorded it at the same site and step;
                "patch": the word's state as another trace recorded it at the same layer
    word        "猫", "猫#2", a span; or `token`, a position in the encoder. Without either a scale is of whole heads.
                Of a token that is the word's in part, "scale" and "zero" change that part, "replace" and "patch" all
    head        index or indices; by default all
    steps       index, indices or "5:" as in a slice; by default all. Encoder sites know no steps
    branch      "cond", "uncond", or what the model's family declares; by default cond for words, both for heads
    renormalise divides by the new sum, so that what a word loses goes to the others
    source      folder of the other trace; source_word: the word there, by default the same text
    """

    site: str
    kind: str = "scale"
    word: str | Span | None = None
    token: int | None = None
    head: int | tuple[int, ...] | None = None
    steps: int | tuple[int, ...] | str | None = None
    branch: str | None = None
    factor: float = 0.0
    renormalise: bool = False
    source: str | None = None
    source_word: str | Span | None = None
    function: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self):
        for name, value in (("word", self.word), ("source_word", self.source_word)):
            if isinstance(value, Word):
                object.__setattr__(self, name, value.span)
        if isinstance(self.steps, slice):
            parts = (self.steps.start, self.steps.stop, self.steps.step)
            object.__setattr__(self, "steps", ":".join("" if part is None else str(part) for part in parts))
        if isinstance(self.source, Path):
            object.__setattr__(self, "source", str(self.source))
        for name, value in (("head", self.head), ("steps", self.steps), ("token", self.token)):
            if value is not None and not (name == "steps" and isinstance(value, str)):
                object.__setattr__(self, name, self._indices(name, value))

        def need(holds: bool, what: str) -> None:
            if not holds:
                raise BadEdit(f"edit of {self.site}: {what}")

        need(self.kind in KINDS, f"kind must be one of {', '.join(KINDS[:-1])}; {self.kind!r} came")
        need(self.word is None or self.token is None, "name a word or a token, not both")
        takes = self.kind in ("replace", "patch")
        need(takes == (self.source is not None), "replace and patch, and only they, need source=FOLDER of a trace")
        need(not takes or self.word is not None, f"{self.kind} needs a word")
        need(math.isfinite(self.factor), f"factor must be a number; {self.factor} came")
        need(self.kind == "scale" or self.factor == 0, "only scale has a factor")
        need(self.kind != "patch" or self.head is None, "a state has no heads")
        need((self.kind == "function") == (self.function is not None), "a function goes to edit(model, site, function)")
        need(
            self.function is None or (not self.of_columns and self.head is None and self.branch is None),
            "a function gets all rows, heads and columns, and chooses among them itself: leave word, token, head "
            "and branch out",
        )
        need(
            not self.renormalise or self.of_columns or self.function is not None,
            "renormalise is about words: whole heads have no others to give to",
        )
        self.at(0, 1)  # a slice that is none is a mistake now, not at the first step

    def _indices(self, name: str, value: Any) -> int | tuple[int, ...]:
        try:
            alone = name == "token" or hasattr(value, "__index__")
            return operator.index(value) if alone else tuple(map(operator.index, value))
        except TypeError:
            wanted = "a whole number" if name == "token" else "an index or several"
            raise BadEdit(f"edit of {self.site}: {name} must be {wanted}; {value!r:.80} came") from None

    @property
    def of_columns(self) -> bool:
        return self.word is not None or self.token is not None

    @property
    def branches(self) -> tuple[str, ...]:
        return (self.branch,) if self.branch else ("cond",) if self.of_columns else ("cond", "uncond")

    def at(self, step: int, count: int) -> bool:
        """Whether the edit holds at this step of `count`."""
        if self.steps is None:
            return True
        if isinstance(self.steps, str):
            try:
                if ":" not in self.steps:  # slice("3") would be the first three
                    raise ValueError
                parts = [int(part) if part.strip() else None for part in self.steps.split(":")]
                return step in range(*slice(*parts).indices(count))
            except (ValueError, TypeError):
                raise BadEdit(f'steps must be like 3, [0, 1] or "5:"; {self.steps!r} came') from None
        asked = [self.steps] if isinstance(self.steps, int) else self.steps
        return step in {one % count if -count <= one < 0 else one for one in asked}

    def heads(self, count: int) -> list[int]:
        asked = range(count) if self.head is None else [self.head] if isinstance(self.head, int) else self.head
        if outside := [head for head in asked if not 0 <= head < count]:
            raise BadEdit(f"edit of {self.site}: there is no head {outside[0]}; it has {count} (0 to {count - 1})")
        return list(dict.fromkeys(asked))

    def shares(self, text: EncodedPrompt | PromptTokens) -> np.ndarray:
        """How much of each token of the text is edited, 0..1. Two encoders may each have a token at one position."""
        if self.word is None:
            found = np.array([float(token.position == self.token) for token in text.tokens])
            if not found.any():
                last = max(token.position for token in text.tokens)
                raise BadEdit(f"edit of {self.site}: there is no token at {self.token}; the last is at {last}")
            return found
        if text.prompt is None:
            raise BadEdit(f"edit of {self.site}: the prompt is not known, so {self.word!r} has no place; name a token")
        return token_shares(text.tokens, find_word(text.prompt, segment(text.prompt), self.word))

    def as_json(self) -> dict[str, Any]:
        """What is not default, for a manifest or a file."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.function is not None:
            made = self.function if hasattr(self.function, "__qualname__") else type(self.function)
            given["function"] = f"{made.__module__}.{made.__qualname__}"
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}}


def edits_of_manifest(raw: Iterable[Mapping[str, Any]]) -> list[Edit]:
    """The edits of `as_json`, to be made again. Raises BadEdit for what is none, and for functions."""
    known, edits = {f.name for f in fields(Edit)}, []
    for one in raw:
        if not isinstance(one, Mapping) or not isinstance(one.get("site"), str) or set(one) - known:
            raise BadEdit(f"expected an edit such as {{site, kind, word, factor}}, but {one!r:.120} came")
        if one.get("kind") == "function":
            raise BadEdit(f"the edit of {one['site']} is Python code ({one.get('function')}): run it from Python")
        try:
            edits.append(Edit(**{k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}))
        except TypeError as error:
            raise BadEdit(f"the edit {one!r:.120} has a value of the wrong type: {error}") from None
    return edits


def same_shape(after: Any, before: Tensor, where: str) -> Tensor:
    """What a user's function returned, if it has the shape of what it was given. Raises BadEdit."""
    if not isinstance(after, Tensor) or after.shape != before.shape:
        came = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
        raise BadEdit(f"{where}: the function must return a tensor of shape {tuple(before.shape)}; {came} came")
    return after
