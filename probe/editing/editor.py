"""`with edit(model, Edit(...)):` changes what the model looks at, or what its encoder made of a word.

    with edit(model, Edit("unet.*.cross_attention", "scale", word="猫", factor=3, renormalise=True)):
        picture = model.sample("左边是猫，右边是月亮", seed=0)

Attention says where a model looked; only an intervention says whether that mattered. An Edit is data: a recording
inside (or around) the `with` notes it in the manifest, and `edits_of_manifest` runs it again. What is recorded under
an edit is the softmax as the edited site itself computed it, before the edit; everything after the site, and every
state of the encoder, is as the edit made it.

Where image and text lie in one sequence, a word is edited where the image looks at it: how the text looks at itself
and at the image stays. A whole head is the head of both.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toushi.hooks.attention import Call, Watch
from toushi.hooks.attention_edits import attended_anew
from toushi.hooks.module_hooks import state_hooks
from toushi.probe.editing import edit_source as source
from toushi.probe.editing.edit import BadEdit, Edit, edits_of_manifest
from toushi.probe.pipelines.family import Encoded, UnknownSite, family_of, plain, submodule
from toushi.probe.session.following import Following
from toushi.probe.session.row_matching import alike
from toushi.probe.text.alignment import Token

__all__ = ["BadEdit", "Edit", "Editing", "edit", "edits_of", "edits_of_manifest"]


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
        self.encoder = self.family.encoder.partition(".")[0]
        self.sources = _opened(one.source for one in edits if one.source is not None)
        self.attention: dict[str, list[Edit]] = {}
        self.states: dict[str, list[Edit]] = {}
        self.sites = self.family.sites(self.model)
        self.unseen = self.family.unseen(self.model)
        if self.unseen is not None:  # the encoder's layers stand in for their attention
            self.sites = {name: site for name, site in self.sites.items() if site.kind != "encoder"}
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
        of_encoder = bool(self.states) or any(self.sites[name].kind == "encoder" for name in self.attention)
        by_step = any(one.steps is not None for one in edits)
        self.run = Following(self.model, self.family, of_encoder, by_step, self._beginning)
        self.wires = ExitStack()
        self.reached: set[str] = set()  # sites in the text encoder at which some edit of the prompt found it

    def _state_modules(self) -> dict[str, nn.Module]:
        """Embeddings and layers of the text encoder, in order: states 0, 1, …"""
        layers = self.family.encoder_layers(self.model)
        if not layers:
            return {}
        embeddings = submodule(self.model, self.family.embeddings)
        names = {f"{self.family.layers}.{i}": plain(module) for i, module in enumerate(layers)}
        return {self.family.embeddings: embeddings, **names}

    def _check(self, one: Edit, sites: list[str], states: list[str], state_modules: Mapping[str, nn.Module]) -> None:
        if not sites and not states:
            known = list(state_modules) if one.kind == "patch" else [*self.sites, *state_modules]
            for glob, why in self.family.not_recorded(self.model).items():
                if fnmatch.fnmatchcase(one.site, glob):
                    raise UnknownSite(f"{one.site!r} cannot be edited: {why}")
            if not known:
                raise UnknownSite(f"the text encoder of {self.family.name} has no layers that are known")
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
        self.reached.clear()
        self.run.step = 0
        family.check(model, {name: self.sites[name] for name in self.attention})
        modules = {name: self.sites[name].module for name in self.attention}
        with ExitStack() as wires:
            _edited[id(model)] = self
            wires.callback(_edited.pop, id(model))
            wires.enter_context(self.run)
            self.watch = wires.enter_context(Watch(modules, change=self._attend))
            wires.enter_context(state_hooks(self.state_modules, self._change))
            self.wires = wires.pop_all()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        blind = {name: why for name, why in self.watch.blind().items() if not why.startswith("did not run")}
        self.wires.close()
        if kind is None and blind:
            listed = "; ".join(f"{name} {why}" for name, why in blind.items())
            raise BadEdit(f"these sites could not be edited: {listed}")
        if kind is None and self.run.step:
            self._check_reached()

    def _check_reached(self) -> None:
        """Raises BadEdit for an edit of the prompt in a text encoder that did not read it: it changed nothing."""
        encoder = [name for name in self.attention if self.sites[name].kind == "encoder"]
        for name in (*self.states, *encoder):
            edits = self.states.get(name) or self.attention[name]
            if name not in self.reached and any("cond" in one.branches for one in edits):
                raise BadEdit(
                    f"the edit of {name} changed nothing: the text encoder did not read the prompt inside this edit, since "
                    "it came as embeddings; give the prompt, or make the embeddings inside"
                )

    def _beginning(self, count: int) -> None:
        for one in self.edits:
            if not any(one.at(step, count) for step in range(count)):
                raise BadEdit(
                    f"edit of {one.site}: steps {one.steps!r} are none of this run's {count} (0 to {count - 1}), so it "
                    "would change nothing"
                )

    # --- the changes

    def _rows(self, one: Edit) -> list[tuple[int, str, Encoded, int]]:
        """The rows that it is about: number, branch, text, and where in the row the text begins."""
        return [row for row in self.run.known_rows() if row[1] in one.branches]

    def _attend(self, call: Call, value: Tensor, output: Tensor) -> Tensor:
        run = self.run
        edits = [one for one in self.attention[call.site] if one.at(run.step, run.count)]
        if run.held or not edits:
            return output
        rows, heads, queries, keys = call.shape
        if rows != len(run.rows):
            raise BadEdit(f"{call.site}: expected {len(run.rows)} rows, one for each text, but {rows} came")
        joint = run.joint if self.sites[call.site].kind == "cross" else None
        if joint is not None and (queries != keys or queries < max(one.image for one in joint) + run.cells):
            raise BadEdit(f"{call.site}: expected image and text in one sequence, but {queries}x{keys} came")
        if self.sites[call.site].kind == "cross" and run.keys not in (None, keys):
            raise BadEdit(
                f"{call.site}: looks at {keys} keys, and the text has {run.keys} columns: which keys are the text's is "
                f"not known for {self.family.name}"
            )
        whole = output.new_ones(rows, heads, 1, 1)
        factor = torch.ones(rows, heads, keys, 1, dtype=torch.float64)
        given: list[tuple[int, list[int], list[int], Tensor]] = []
        functions = [one.function for one in edits if one.function is not None]
        touched: dict[int, set[int]] = {}
        for one in edits:
            chosen = one.heads(heads)
            for row, branch, text, start in self._rows(one):
                start += 0 if joint is None else joint[row].text
                if branch == "cond":
                    self.reached.add(call.site)
                if one.function is not None:
                    own = [column for token in text.tokens if (column := self._column(call, token)) is not None]
                    touched.setdefault(row, set()).update(start + column for column in own)
                elif not one.of_columns:
                    whole[row, chosen] *= one.factor
                else:
                    columns, part = self._share(call, one, text)
                    columns = [start + column for column in columns]
                    touched.setdefault(row, set()).update(columns)
                    if one.kind == "replace":
                        cells = queries if joint is None else run.cells
                        step, trace = (run.step, run.count), self.sources[one.source]
                        maps = source.attention(trace, one, call, cells, branch, step, len(columns))
                        given.append((row, chosen, columns, maps))
                    else:
                        scaled = 1 + (one.factor - 1) * torch.from_numpy(part)
                        for head in chosen:
                            factor[row, head, columns, 0] *= scaled
        renormalise = any(one.renormalise for one in edits)
        for stretch, own in alike(touched, joint).items():
            columns = sorted(set().union(*(touched[row] for row in own)))
            place = {column: index for index, column in enumerate(columns)}
            image = None if stretch is None else slice(stretch.image, stretch.image + run.cells)

            def change(before: Tensor) -> Tensor:
                after = before * factor[own][:, :, columns].to(before)  # noqa: B023
                for row, chosen, some, maps in given:
                    for head in chosen if row in own else ():  # noqa: B023
                        after[own.index(row), head, [place[column] for column in some]] = maps[head].to(before)  # noqa: B023
                for function in functions:
                    after = _same_shape(function(after), after, call.site)
                return after

            output = attended_anew(call, value, output, change, columns, own, renormalise, image)
        return output * whole if (whole != 1).any() else output

    def _column(self, call: Call, token: Token) -> int | None:
        """Which key the token is, counted from where its text begins."""
        if self.sites[call.site].kind == "encoder":
            return token.position if self.encoder in token.encoders else None
        return token.column

    def _share(self, call: Call, one: Edit, text: Encoded) -> tuple[list[int], np.ndarray]:
        """The columns of the edited tokens, and how much of each is edited."""
        pairs = [(self._column(call, token), share) for token, share in zip(text.tokens, one.shares(text)) if share]
        pairs = [(column, share) for column, share in pairs if column is not None]
        if not pairs:
            raise BadEdit(f"edit of {one.site}: no token of {one.word or one.token!r} reaches {call.site}")
        return [column for column, _ in pairs], np.array([share for _, share in pairs])

    def _change(self, name: str, state: Tensor) -> Tensor | None:
        if self.run.held:
            return None
        changed = state.clone()
        rows = changed.transpose(0, 1) if self.family.sequence_first else changed  # a view: [row, position, feature]
        for one in self.states[name]:
            if one.function is not None:
                if any(row[1] == "cond" for row in self._rows(one)):
                    self.reached.add(name)
                rows.copy_(_same_shape(one.function(rows), rows, name))
                continue
            for row, branch, text, start in self._rows(one):
                if branch == "cond":
                    self.reached.add(name)
                shares = one.shares(text) if one.of_columns else np.ones(len(text.tokens))
                tokens = zip(text.tokens, shares)
                at = {token.position: share for token, share in tokens if share and self.encoder in token.encoders}
                if not at:
                    raise BadEdit(f"edit of {one.site}: no token of {one.word!r} reaches {name}: it was cut")
                places = [start + position for position in at]
                if one.kind == "patch":
                    trace, number = self.sources[one.source], list(self._state_modules()).index(name)
                    found = source.state(trace, one, name, number, self.encoder, branch, len(at), rows.shape[-1])
                    rows[row, places] = found.to(rows)
                else:
                    part = torch.tensor(list(at.values()))[:, None].to(rows)
                    rows[row, places] *= 1 + (one.factor - 1) * part
        return changed


def _opened(folders: Iterable[str]) -> dict:
    folders = list(folders)
    if not folders:
        return {}
    from toushi.probe.trace.open import open_trace  # half a second of imports, which recording can do without

    return {folder: open_trace(folder) for folder in folders}


def _same_shape(after: Any, before: Tensor, where: str) -> Tensor:
    if not isinstance(after, Tensor) or after.shape != before.shape:
        came = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
        raise BadEdit(f"{where}: the function must return a tensor of shape {tuple(before.shape)}; {came} came")
    return after
