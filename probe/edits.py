"""`with edit(model, Edit(...)):` changes what the model looks at, or what its encoder made of a word.

    with edit(model, Edit("unet.*.cross_attention", "scale", word="猫", factor=3, renormalise=True)):
        picture = model.sample("左边是猫，右边是月亮", seed=0)

Attention says where a model looked; only an intervention says whether that mattered. An Edit is data: a recording
inside (or around) the `with` notes it in the manifest, and `edits_of_manifest` runs it again. What is recorded under
an edit is the softmax as the edited site itself computed it, before the edit; everything after the site, and every
state of the encoder, is as the edit made it.
"""

import fnmatch
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hooks.attention import Call
from hooks.edits import ChangeAttention, attended_anew
from hooks.states import Arguments, States
from probe.errors import ToushiError
from probe.models.families import Encoded, Said, UnknownSite, family_of, plain
from probe.recording.branches import Place, places
from probe.recording.wrapped import wrapped
from probe.text.alignment import Span, Token, Word, find, segment, shares
from probe.trace.reader import Trace, open_trace

KINDS = ("scale", "zero", "replace", "patch", "function")


class BadEdit(ToushiError):
    """An edit that cannot be made: it contradicts itself, the model or the trace it takes from."""


@dataclass(frozen=True)
class Edit:
    """One change at the sites that a glob names.

    site        glob: attention sites as `toushi sites` lists them; or, where it matches none of those, states of
                the text encoder: `encoder.embed`, `encoder.layers.3` (what that layer returns)
    kind        "scale": attention to the word (or the head's whole output, or the state) times `factor`;
                "zero": the same with factor 0, a knock-out;
                "replace": attention to the word as another trace recorded it at the same site and step;
                "patch": the word's state as another trace recorded it at the same layer
    word        "猫", "猫#2", a span; or `token`, a position in the encoder. Without either a scale is of whole heads
    head        index or indices; by default all
    steps       index, indices or "5:" as in a slice; by default all. Encoder sites know no steps
    branch      "cond" or "uncond"; by default cond for words, both for heads
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
        need(self.branch in (None, "cond", "uncond"), f"branch must be cond or uncond; {self.branch!r} came")
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

    def shares(self, text: Encoded) -> np.ndarray:
        """How much of each token of the text is edited, 0..1."""
        if self.word is None:
            found = np.array([float(token.position == self.token) for token in text.tokens])
            if not found.any():
                last = max(token.position for token in text.tokens)
                raise BadEdit(f"edit of {self.site}: there is no token at {self.token}; the last is at {last}")
            return found
        if text.prompt is None:
            raise BadEdit(f"edit of {self.site}: the prompt is not known, so {self.word!r} has no place; name a token")
        return shares(text.tokens, find(text.prompt, segment(text.prompt), self.word))

    def as_json(self) -> dict[str, Any]:
        """What is not default, for a manifest or a file."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.function is not None:
            given["function"] = f"{self.function.__module__}.{self.function.__qualname__}"
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


def edit(model, what: "Edit | str | Iterable[Edit]", *more) -> "Editing":
    """A context manager: inside it the edits hold. `edit(model, Edit(...), Edit(...))` or `edit(model, site, function)`.

    A function takes what passes the site and returns what shall pass instead: attention probabilities
    [row, head, text column, cell], or an encoder state [row, position, feature]. Give all edits of a model to one
    `edit`: scales multiply, and if any of them renormalises, their joint result is renormalised.
    """
    if isinstance(what, str):
        if len(more) != 1 or not callable(more[0]):
            raise BadEdit("expected edit(model, site, function), with one function")
        return Editing(model, [Edit(what, "function", function=more[0])])
    edits = [what, *more] if isinstance(what, Edit) else [*what, *more]
    if not edits or not all(isinstance(one, Edit) for one in edits):
        raise BadEdit(f"expected Edit(...) or a site and a function, but {edits!r:.120} came")
    return Editing(model, edits)


_edited: dict[int, "Editing"] = {}  # id of each model that is being edited


def edits_of(model) -> list[dict[str, Any]]:
    """The edits that hold for this model now, as JSON."""
    editing = _edited.get(id(plain(model)))
    return [] if editing is None else [one.as_json() for one in editing.edits]


class Editing:
    """Made by `edit`."""

    def __init__(self, model, edits: list[Edit]):
        self.model, self.edits = plain(model), edits
        self.family = family_of(self.model)
        if self.family.name != "mini-unet":
            raise BadEdit(f"{self.family.name} can be recorded but not edited yet: only mini-unet can")
        self.step, self.count = 0, 1
        self.texts: dict[str, list[Encoded]] = {}
        self.rows: list[Place | None] = []
        self.unread: list[Place] = []
        self.held = False  # while the prompts are read without edits, to learn where their words are
        self.sources = {one.source: open_trace(one.source) for one in edits if one.source is not None}
        self.attention: dict[str, list[Edit]] = {}
        self.states: dict[str, list[Edit]] = {}
        self.sites = self.family.sites(self.model)
        state_modules = self._state_modules()
        for one in edits:
            sites = [] if one.kind == "patch" else fnmatch.filter(self.sites, one.site)
            states = [] if one.kind == "replace" or sites else fnmatch.filter(state_modules, one.site)
            self._check(one, sites, states, state_modules)
            for name in sites:
                self.attention.setdefault(name, []).append(one)
            for name in states:
                self.states.setdefault(name, []).append(one)
        self.state_modules = {name: state_modules[name] for name in self.states}
        self.wires = ExitStack()

    def _state_modules(self) -> dict[str, nn.Module]:
        """Embeddings and layers of the text encoder, in order: states 0, 1, …"""
        embeddings = plain(self.model.get_submodule(self.family.embeddings))
        layers = enumerate(self.family.encoder_layers(self.model))
        return {self.family.embeddings: embeddings, **{f"{self.family.layers}.{i}": plain(m) for i, m in layers}}

    def _check(self, one: Edit, sites: list[str], states: list[str], state_modules: Iterable[str]) -> None:
        if not sites and not states:
            known = list(state_modules) if one.kind == "patch" else [*self.sites, *state_modules]
            near = get_close_matches(one.site, known, n=3, cutoff=0.3) or known[:3]
            raise UnknownSite(f"nothing to {one.kind} matches {one.site!r}; near it: {', '.join(near)}")
        encoder = states or [name for name in sites if self.sites[name].kind == "encoder"]
        if encoder and one.steps is not None:
            raise BadEdit(f"{encoder[0]} lies in the text encoder, which runs before the first step: leave steps out")
        if states and (one.head is not None or one.renormalise):
            raise BadEdit(f"{states[0]} is a state, which has neither heads nor a sum: leave head and renormalise out")
        wrong = [name for name in sites if self.sites[name].kind == "self" or (one.kind == "replace" and encoder)]
        if wrong and (one.of_columns or one.function is not None):
            raise BadEdit(f"{wrong[0]} is no attention of the image to the text: {one.kind} of a word cannot be there")

    def __enter__(self) -> "Editing":
        if id(self.model) in _edited:
            raise BadEdit("this model is being edited already: give all edits to one edit(model, Edit(...), Edit(...))")
        model, family = self.model, self.family
        modules = {name: self.sites[name].module for name in self.attention}
        watched = {
            family.denoiser: (plain(model.get_submodule(family.denoiser)), [family.text]),
            family.encoder: (plain(model.get_submodule(family.encoder)), [family.ids]),
        }
        scheduler = getattr(model, family.scheduler)
        with ExitStack() as wires:
            _edited[id(model)] = self
            wires.callback(_edited.pop, id(model))
            wires.enter_context(Arguments(watched, self._begin))
            wires.enter_context(ChangeAttention(modules, self._attend))
            wires.enter_context(States(self.state_modules, self._change))
            wires.enter_context(wrapped(model, family.encode_prompt, self._encoding))
            wires.enter_context(wrapped(model, family.evaluate, self._evaluating))
            wires.enter_context(wrapped(scheduler, "set_timesteps", self._beginning))
            wires.enter_context(wrapped(scheduler, "step", self._stepping))
            self.wires = wires.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self.wires.close()

    # --- where the run is

    def _encoding(self, encode_prompt: Callable) -> Callable:
        def wrapper(*arguments, **named):
            self.held = True
            try:
                result = encode_prompt(*arguments, **named)
            finally:
                self.held = False
            self.texts = self.family.texts(Said(result))
            if self.states or any(self.sites[name].kind == "encoder" for name in self.attention):
                self.unread = [(branch, item) for branch, some in self.texts.items() for item in range(len(some))]
                result = encode_prompt(*arguments, **named)
                self.texts = self.family.texts(Said(result))
            return result

        return wrapper

    def _beginning(self, set_timesteps: Callable) -> Callable:
        def wrapper(*arguments, **named):
            result = set_timesteps(*arguments, **named)
            self.step, self.count = 0, len(self.family.times(getattr(self.model, self.family.scheduler))) - 1
            for one in self.edits:
                if not any(one.at(step, self.count) for step in range(self.count)):
                    raise BadEdit(
                        f"edit of {one.site}: steps {one.steps!r} are none of this run's {self.count} "
                        f"(0 to {self.count - 1}), so it would change nothing"
                    )
            return result

        return wrapper

    def _stepping(self, step: Callable) -> Callable:
        signature = inspect.signature(step)

        def wrapper(*arguments, **named):
            self.step = signature.bind(*arguments, **named).arguments["index"]  # a run may begin in the midst
            return step(*arguments, **named)

        return wrapper

    def _evaluating(self, evaluate: Callable) -> Callable:
        """One evaluation aside counts as the only step of a run."""

        def wrapper(*arguments, **named):
            aside, self.step, self.count = (self.step, self.count, self.texts), 0, 1
            try:
                return evaluate(*arguments, **named)
            finally:
                self.step, self.count, self.texts = aside

        return wrapper

    def _begin(self, name: str, given) -> None:
        """The encoder or the denoiser is about to run: which row is which text?"""
        if self.held:
            return
        if name == self.family.denoiser:
            states = {branch: [text.states for text in some] for branch, some in self.texts.items()}
            self.rows = list(places(self.family.text_rows(given), states, self.family.rows))
        else:
            self.rows = [self._whose(ids) for ids in given.tolist()]

    def _whose(self, ids: list[int]) -> Place | None:
        def same(place: Place) -> bool:
            own = self.texts[place[0]][place[1]].ids
            return tuple(ids[: len(own)]) == tuple(own)

        place = next(filter(same, self.unread), None)
        if place is not None:
            self.unread.remove(place)
        return place

    def _edited_rows(self, one: Edit) -> list[tuple[int, str, Encoded]]:
        rows = [(row, *place) for row, place in enumerate(self.rows) if place is not None]
        return [(row, branch, self.texts[branch][item]) for row, branch, item in rows if branch in one.branches]

    # --- the changes

    def _attend(self, call: Call, value: Tensor, output: Tensor) -> Tensor:
        edits = [one for one in self.attention[call.site] if one.at(self.step, self.count)]
        if self.held or not edits:
            return output
        rows, heads, _, keys = call.shape
        if rows != len(self.rows):
            raise BadEdit(f"{call.site}: expected {len(self.rows)} rows, one for each text, but {rows} came")
        whole = output.new_ones(rows, heads, 1, 1)
        factor = torch.ones(rows, heads, keys, 1, dtype=torch.float64)
        given: list[tuple[int, list[int], list[int], Tensor]] = []
        functions = [one.function for one in edits if one.function is not None]
        touched: set[int] = set()
        for one in edits:
            chosen = one.heads(heads)
            for row, branch, text in self._edited_rows(one):
                if one.function is not None:
                    touched |= {at for token in text.tokens if (at := self._column(call, token)) is not None}
                elif not one.of_columns:
                    whole[row, chosen] *= one.factor
                else:
                    columns, part = self._share(call, one, text)
                    touched |= set(columns)
                    if one.kind == "replace":
                        given.append((row, chosen, columns, self._recorded(call, one, branch, len(columns))))
                    else:
                        scaled = 1 + (one.factor - 1) * torch.from_numpy(part)
                        for head in chosen:
                            factor[row, head, columns, 0] *= scaled
        if touched:
            columns = sorted(touched)
            place = {column: index for index, column in enumerate(columns)}

            def change(before: Tensor) -> Tensor:
                after = before * factor[:, :, columns].to(before)
                for row, chosen, own, maps in given:
                    for head in chosen:
                        after[row, head, [place[column] for column in own]] = maps[head].to(before)
                for function in functions:
                    after = _same_shape(function(after), after, call.site)
                return after

            renormalise = any(one.renormalise for one in edits)
            output = attended_anew(call, value, output, change, columns, renormalise=renormalise)
        return output * whole if (whole != 1).any() else output

    def _column(self, call: Call, token: Token) -> int | None:
        return token.position if self.sites[call.site].kind == "encoder" else token.column

    def _share(self, call: Call, one: Edit, text: Encoded) -> tuple[list[int], np.ndarray]:
        """The columns of the edited tokens, and how much of each is edited."""
        pairs = [(self._column(call, token), share) for token, share in zip(text.tokens, one.shares(text)) if share]
        pairs = [(column, share) for column, share in pairs if column is not None]
        if not pairs:
            raise BadEdit(f"edit of {one.site}: no token of {one.word or one.token!r} reaches {call.site}")
        return [column for column, _ in pairs], np.array([share for _, share in pairs])

    def _recorded(self, call: Call, one: Edit, branch: str, count: int) -> Tensor:
        """[head, column, cell]: what the word got at this site and step of the other trace."""
        trace = self.sources[one.source]
        if trace.manifest["steps"]["count"] != self.count:
            raise BadEdit(
                f"{one.source} was drawn in {trace.manifest['steps']['count']} steps, this run has {self.count}, so "
                "its steps are other moments. Record that trace with as many steps."
            )
        maps = trace.attention(branch=branch, sites=call.site, steps=self.step, grid="native")[call.site][0]
        _, heads, cells, _ = call.shape
        if "head" not in maps.dims or (maps.sizes["head"], maps.sizes["y"] * maps.sizes["x"]) != (heads, cells):
            raise BadEdit(
                f"{call.site} has {heads} heads and {cells} cells; in {one.source} it has {dict(maps.sizes)}. "
                'Record that trace with keep="heads", the same model and size.'
            )
        columns = [token.column for token in self._source_tokens(one, trace, branch)]
        if not set(columns) <= set(maps.token.values.tolist()):
            raise BadEdit(
                f"{one.source} kept the attention to some words only, and this edit needs that to "
                f"{one.word if one.source_word is None else one.source_word!r}. Record that trace with this word too."
            )
        own = torch.from_numpy(maps.sel(token=columns).values.reshape(heads, len(columns), cells))
        return own if len(columns) == count else own.sum(1, keepdim=True).expand(-1, count, -1) / count

    def _source_tokens(self, one: Edit, trace: Trace, branch: str) -> list[Token]:
        word = one.word if one.source_word is None else one.source_word
        tokens = trace.tokens(branch)
        found = [token for token, share in zip(tokens, shares(tokens, trace.span(word, branch))) if share]
        if not found:
            raise BadEdit(f"in {one.source} no token stands for {word!r}: it was cut from a prompt that is too long")
        return found

    def _change(self, name: str, state: Tensor) -> Tensor | None:
        if self.held:
            return None
        state = state.clone()
        for one in self.states[name]:
            if one.function is not None:
                state = _same_shape(one.function(state), state, name)
                continue
            for row, branch, text in self._edited_rows(one):
                share = one.shares(text) if one.of_columns else np.ones(len(text.tokens))
                at = [token.position for token, part in zip(text.tokens, share) if part]
                if not at:
                    raise BadEdit(f"edit of {one.site}: no token of {one.word!r} reaches {name}: it was cut")
                if one.kind == "patch":
                    state[row, at] = self._patch(name, one, branch, len(at), state.shape[-1]).to(state)
                else:
                    part = torch.from_numpy(share[share > 0])[:, None].to(state)
                    state[row, at] *= 1 + (one.factor - 1) * part
        return state

    def _patch(self, name: str, one: Edit, branch: str, count: int, width: int) -> Tensor:
        """[token, feature]: the word's state in the other trace. Other numbers of tokens get the mean of its tokens."""
        trace = self.sources[one.source]
        states = trace.encoder_states(branch)
        number = list(self._state_modules()).index(name)
        if number not in states.layer or states.sizes["feature"] != width:
            raise BadEdit(
                f"{one.source} has the states of layers {states.layer.values.tolist()}, {states.sizes['feature']} "
                f"wide; a patch of {name} needs state {number}, {width} wide. Record it with the same model."
            )
        at = [token.position for token in self._source_tokens(one, trace, branch)]
        own = torch.from_numpy(states.sel(layer=number).values[at])
        return own if len(at) == count else own.mean(0, keepdim=True).expand(count, -1)


def _same_shape(after: Any, before: Tensor, where: str) -> Tensor:
    if not isinstance(after, Tensor) or after.shape != before.shape:
        came = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
        raise BadEdit(f"{where}: the function must return a tensor of shape {tuple(before.shape)}; {came} came")
    return after
