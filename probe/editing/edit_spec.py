"""An edit: data that says where, what and when, and that a manifest can keep."""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, SupportsIndex, cast

import numpy as np
import torch
from torch import Tensor

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.step_slice import format_slice, parse_slice
from toushi.probe.pipelines.family import EncodedPrompt, PromptTokens
from toushi.probe.session.subscriber import Subscriber
from toushi.probe.text.alignment import Word, WordSpec, find_word, segment, token_shares

KINDS = ("scale", "zero", "keep_only", "move", "replace", "patch", "add", "function")


class BadEdit(ToushiError):
    """An edit that cannot be made: it contradicts itself, the model, or the trace that is its source."""


@dataclass(frozen=True)
class Edit:
    """One change at the sites that a glob matches.

    site        glob of attention sites as `toushi sites` lists them; or, if it matches none of them, of states of the
                text encoder: `encoder.embed`, `text_encoder.layers.3` (what that layer returns); or, if it matches
                neither, of modules of the denoiser: `unet.middle`, `unet.*.feed_forward`, and of heads before they are
                mixed: `unet.middle.cross_attention.heads`
    kind        "scale": attention to the word (or the head's whole output, or the state) times `factor`;
                "zero": the same with factor 0, a knock-out;
                "add": `vector` added to the state at each of its places;
                "keep_only": attention to the text outside the word times 0. Special tokens and pads keep theirs;
                "move": the map of the word shifted by `shift`. What leaves the picture comes in at the other side;
                "replace": attention to the word as another trace recorded it at the same site and step;
                "patch": the word's state as another trace recorded it at the same layer; or the state of the denoiser as
                `read_states` read it at the same site, step and branch
    word        "猫", "猫#2", a span, or several texts ("猫", "月亮"); or `token`, a position in the encoder. Without
                either, whole heads are scaled. If only a part of a token belongs to the word, "scale", "zero" and
                "keep_only" change that part, the others the whole token
    head        index or indices; by default all
    steps       index, indices or "5:" as in a slice; by default all. Sites of the encoder have no steps
    branch      "cond", "uncond", or what the model's family declares; by default cond for words, both for heads
    renormalise divides by the new sum, so that other columns get what a word loses
    shift       (rows, columns) as shares of the picture: (0, 0.5) is half a picture to the right
    source      folder of the other trace, or what `read_states` returned
    vector      of "add": one number for each feature of the state, or of a head
    source_word the word there; by default the same text

    Raises BadEdit for values that contradict each other, such as keep_only without a word.
    """

    site: str
    kind: str = "scale"
    word: WordSpec | tuple[str, ...] | None = None
    token: int | None = None
    head: int | Sequence[int] | None = None
    steps: int | Sequence[int] | slice | str | None = None
    branch: str | None = None
    factor: float = 0.0
    renormalise: bool = False
    shift: tuple[float, float] | None = None
    source: str | Path | Subscriber | None = None
    source_word: WordSpec | None = None
    function: Callable[[Tensor], Tensor] | None = None
    vector: Sequence[float] | Tensor | None = None

    def __post_init__(self):
        for name, value in (("word", self.word), ("source_word", self.source_word)):
            if isinstance(value, Word):
                object.__setattr__(self, name, value.span)
        if isinstance(self.steps, slice):
            object.__setattr__(self, "steps", format_slice(self.steps))
        if isinstance(self.source, Path):
            object.__setattr__(self, "source", str(self.source))
        if self.vector is not None:
            object.__setattr__(self, "vector", self._numbers(self.vector))
        for name in ("head", "steps", "token"):
            value = getattr(self, name)
            if value is not None and not (name == "steps" and isinstance(value, str)):
                object.__setattr__(self, name, self._indices(name, value))

        def need(is_met: bool, message: str) -> None:
            if not is_met:
                raise BadEdit(f"edit of {self.site}: {message}")

        need(self.kind in KINDS, f"kind must be one of {', '.join(KINDS[:-1])}; {self.kind!r} came")
        need(self.word is None or self.token is None, "name a word or a token, not both")
        needs_source = self.kind in ("replace", "patch")
        of_word = self.kind in ("keep_only", "move", "replace") or (self.kind == "patch" and self.folder is not None)
        need(
            needs_source == (self.source is not None), "replace and patch, and only they, need source=FOLDER of a trace"
        )
        need(
            self.kind == "patch" or self.source is None or self.folder is not None,
            "replace needs the folder of a trace",
        )
        need(not of_word or self.word is not None, f"{self.kind} needs a word")
        need(self.folder is None or len(self.words) == 1, f"{self.kind} is of one word; {self.word!r} came")
        need(
            (self.kind == "add") == (self.vector is not None), "add, and only add, needs vector=, one number a feature"
        )
        shift = self.shift if isinstance(self.shift, Sequence) and len(self.shift) == 2 else (None,)
        is_shift = all(isinstance(share, int | float) and math.isfinite(share) for share in shift)
        need((self.kind == "move") == (self.shift is not None), "move, and only move, needs shift=(rows, columns)")
        need(self.shift is None or is_shift, f"shift must be two numbers, (rows, columns); {self.shift!r} came")
        is_number = isinstance(self.factor, int | float) and math.isfinite(self.factor)
        need(is_number, f"factor must be a number; {self.factor!r} came")
        need(self.kind == "scale" or self.factor == 0, "only scale has a factor")
        need(self.kind != "patch" or self.folder is None or self.head is None, "a state has no heads")
        need((self.kind == "function") == (self.function is not None), "pass a function as edit(model, site, function)")
        need(
            self.function is None or (not self.has_columns and self.head is None and self.branch is None),
            "a function gets all rows, heads and columns: remove word, token, head and branch, and select inside the "
            "function",
        )
        need(
            not self.renormalise or self.has_columns or self.function is not None,
            "renormalise is for edits of a word or token; remove it from an edit of whole heads",
        )
        self.holds_at(0, 1)  # a wrong slice is a mistake now, not at the first step

    def _indices(self, name: str, value: int | Iterable[int]) -> int | tuple[int, ...]:
        try:
            if isinstance(value, SupportsIndex):
                return operator.index(value)
            if name == "token":
                raise TypeError
            return tuple(map(operator.index, value))
        except TypeError:
            expected = "a whole number" if name == "token" else "an index or several"
            raise BadEdit(f"edit of {self.site}: {name} must be {expected}; {value!r:.80} came") from None

    def _numbers(self, vector: object) -> tuple[float, ...]:
        try:
            numbers = torch.as_tensor(vector, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            numbers = torch.empty(0)
        if numbers.dim() != 1 or not len(numbers) or not numbers.isfinite().all():
            raise BadEdit(f"edit of {self.site}: vector must be one number for each feature; {vector!r:.80} came")
        return tuple(numbers.tolist())

    @property
    def folder(self) -> str | None:
        """The folder of the other trace, if it is the source."""
        return self.source if isinstance(self.source, str) else None

    @property
    def has_columns(self) -> bool:
        """Whether the edit is of the columns of a word or token, not of whole heads."""
        return self.word is not None or self.token is not None

    @property
    def words(self) -> tuple[WordSpec, ...]:
        """The words that are edited; none for an edit of a token or of heads."""
        word = self.word
        if isinstance(word, tuple) and all(isinstance(text, str) for text in word):
            return cast(tuple[str, ...], word)
        return () if word is None else (cast(WordSpec, word),)

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that are edited."""
        return (self.branch,) if self.branch else ("cond",) if self.has_columns else ("cond", "uncond")

    def holds_at(self, step: int, count: int) -> bool:
        """Whether the edit holds at this step of `count`. Raises BadEdit if `steps` is no slice."""
        if self.steps is None:
            return True
        if isinstance(self.steps, str):
            try:
                return step in range(*parse_slice(self.steps).indices(count))
            except ValueError:
                raise BadEdit(f'steps must be like 3, [0, 1] or "5:"; {self.steps!r} came') from None
        assert not isinstance(self.steps, slice), "__post_init__ makes it a text"
        asked = [self.steps] if isinstance(self.steps, int) else self.steps
        return step in {index % count if -count <= index < 0 else index for index in asked}

    def heads(self, count: int) -> list[int]:
        """The heads that are edited at a site with `count` heads. Raises BadEdit if it does not have them."""
        asked = range(count) if self.head is None else [self.head] if isinstance(self.head, int) else self.head
        if outside := [head for head in asked if not 0 <= head < count]:
            raise BadEdit(
                f"edit of {self.site}: there is no head {outside[0]}; the site has {count} heads (0 to {count - 1})"
            )
        return list(dict.fromkeys(asked))

    def shares(self, prompt: EncodedPrompt | PromptTokens) -> np.ndarray:
        """How much of each token of the prompt is edited, 0 to 1. Two encoders may each have a token at one position.

        Raises BadEdit or UnknownWord if the prompt does not have the token or the word.
        """
        if self.word is None:
            selected = np.array([float(token.position == self.token) for token in prompt.tokens])
            if not selected.any():
                last = max(token.position for token in prompt.tokens)
                raise BadEdit(f"edit of {self.site}: there is no token at {self.token}; the last is at {last}")
            return selected
        if prompt.prompt is None:
            raise BadEdit(
                f"edit of {self.site}: the text of the prompt is not known, so name a token, not {self.word!r}"
            )
        words = segment(prompt.prompt)
        spans = [find_word(prompt.prompt, words, word) for word in self.words]
        return np.minimum(sum(token_shares(prompt.tokens, span) for span in spans), 1)

    def as_json(self) -> dict[str, object]:
        """The fields that differ from their defaults, for a manifest or a file."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.function is not None:
            named = self.function if hasattr(self.function, "__qualname__") else type(self.function)
            values["function"] = f"{named.__module__}.{named.__qualname__}"
        if self.source is not None and self.folder is None:
            values["source"] = None  # states in memory, which no file has
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


def edits_of_manifest(entries: Iterable[object]) -> list[Edit]:
    """The edits that a manifest lists, for `edit`. Raises BadEdit for an entry that is not an edit, and for functions."""
    known, edits = {f.name for f in fields(Edit)}, []
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("site"), str) or set(entry) - known:
            raise BadEdit(f"expected an edit such as {{site, kind, word, factor}}, but {entry!r:.120} came")
        if entry.get("kind") == "function":
            raise BadEdit(f"the edit of {entry['site']} is Python code ({entry.get('function')}): make it in Python")
        if entry.get("kind") == "patch" and entry.get("source") is None:
            raise BadEdit(f"the edit of {entry['site']} is a patch of states that were in memory: make it in Python")
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
            edits.append(Edit(**values))
        except TypeError as error:
            raise BadEdit(f"the edit {entry!r:.120} has a value of the wrong type: {error}") from None
    return edits


def check_shape(after: object, before: Tensor, site: str) -> Tensor:
    """What a user's function returned, if it has the shape of what the function got. Raises BadEdit."""
    if not isinstance(after, Tensor) or after.shape != before.shape:
        came = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
        raise BadEdit(f"{site}: the function must return a tensor of shape {tuple(before.shape)}; {came} came")
    return after


def check_rows(rows: int, expected: int, site: str) -> None:
    """Raises BadEdit if a site has another number of rows than there are texts in the batch."""
    if rows != expected:
        raise BadEdit(f"{site}: expected {expected} rows, one for each text, but {rows} came")
