"""`with edit(model, Edit(...)):` changes what the model attends to, or what its text encoder made of a word.

    with edit(model, Edit("unet.*.cross_attention", "scale", word="猫", factor=3, renormalise=True)):
        picture = model.sample("左边是猫，右边是月亮", seed=0)

Attention says where a model looked; only an intervention says whether that mattered. An `Edit` is data: a recording
inside (or around) the `with` notes it in the manifest, and `edits_of_manifest` makes it again. The recorded attention
of an edited site is the softmax as the site computed it, before the edit. Everything after the site, and every state of
the encoder, is as the edit made it.

Where image and text lie in one sequence, a word is edited where the image looks at it: how the text looks at itself
and at the image stays. A whole head is the head of both.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from toushi.hooks.attention import Call
from toushi.probe.editing.attention_editor import edited_attention
from toushi.probe.editing.edit_spec import BadEdit, Edit, edits_of_manifest
from toushi.probe.editing.state_editor import edited_states
from toushi.probe.pipelines.family import (
    SchedulerStep,
    UnknownSite,
    submodule,
    unwrapped,
)
from toushi.probe.pipelines.registry import family_of
from toushi.probe.session.sampling_session import session_of, subscribe
from toushi.probe.session.subscriber import Evaluation, Run, Subscriber

if TYPE_CHECKING:
    from toushi.probe.trace.picture_trace import Trace

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


def edits_of(model) -> list[dict[str, Any]]:
    """The edits that hold for this model now, as JSON."""
    session = session_of(model)
    return [] if session is None else session.describe().get("edits", [])


class Editing(Subscriber):
    """Made by `edit`."""

    def __init__(self, model, edits: list[Edit]):
        self.model, self.edits = unwrapped(model), edits
        self.family = family_of(self.model)
        self.sources = _open_sources(one.source for one in edits if one.source is not None)
        self.known_sites = self.family.sites(self.model)
        if self.family.hidden_attention(self.model) is not None:  # the encoder's layers stand in for their attention
            self.known_sites = {name: site for name, site in self.known_sites.items() if site.kind != "encoder"}
        self.known_states = self._known_states()
        self.attention: dict[str, list[Edit]] = {}  # site -> its edits
        self.states: dict[str, list[Edit]] = {}
        for one in edits:
            sites = [] if one.kind == "patch" else fnmatch.filter(self.known_sites, one.site)
            states = [] if one.kind == "replace" or sites else fnmatch.filter(self.known_states, one.site)
            self._check(one, sites, states)
            for name in sites:
                self.attention.setdefault(name, []).append(one)
            for name in states:
                self.states.setdefault(name, []).append(one)
        self.encoder_sites = [name for name in self.attention if self.known_sites[name].kind == "encoder"]
        self.edits_encoder = bool(self.states or self.encoder_sites)
        self.reached: set[str] = set()  # sites in the text encoder at which some edit found the prompt
        self.is_step_made = False
        self.subscription = ExitStack()

    def _known_states(self) -> dict[str, nn.Module]:
        """Embeddings and layers of the text encoder, in order: states 0, 1, …"""
        layers = self.family.encoder_layers(self.model)
        if not layers:
            return {}
        embeddings = submodule(self.model, self.family.embeddings)
        numbered = {f"{self.family.layers}.{i}": unwrapped(module) for i, module in enumerate(layers)}
        return {self.family.embeddings: embeddings, **numbered}

    def _check(self, one: Edit, sites: list[str], states: list[str]) -> None:
        if not sites and not states:
            known = list(self.known_states) if one.kind == "patch" else [*self.known_sites, *self.known_states]
            for glob, why in self.family.not_recorded(self.model).items():
                if fnmatch.fnmatchcase(one.site, glob):
                    raise UnknownSite(f"{one.site!r} cannot be edited: {why}")
            if not known:
                raise UnknownSite(f"the text encoder of {self.family.name} has no layers that are known")
            near = get_close_matches(one.site, known, n=3, cutoff=0.3) or known[:3]
            raise UnknownSite(f"nothing to {one.kind} matches {one.site!r}; near it: {', '.join(near)}")
        encoder = states or [name for name in sites if self.known_sites[name].kind == "encoder"]
        if encoder and one.steps is not None:
            raise BadEdit(f"{encoder[0]} lies in the text encoder, which runs before the first step: remove steps")
        if states and (one.head is not None or one.renormalise):
            raise BadEdit(f"{states[0]} is a state, which has neither heads nor a sum: remove head and renormalise")
        wrong = [n for n in sites if self.known_sites[n].kind == "self" or (one.kind == "replace" and encoder)]
        if wrong and (one.of_columns or one.function is not None):
            raise BadEdit(f"{wrong[0]} is no attention of the image to the text: {one.kind} of a word cannot be there")
        if unknown := [name for name in one.branches if name not in self.family.branches]:
            raise BadEdit(
                f"edit of {one.site}: branch must be {' or '.join(self.family.branches)}; {unknown[0]!r} came"
            )

    def __enter__(self) -> "Editing":
        session = session_of(self.model)
        if session is not None and any(isinstance(other, Editing) for other in session.subscribers):
            raise BadEdit("this model is being edited already: give all edits to one edit(model, Edit(...), Edit(...))")
        self.reached.clear()
        self.is_step_made = False
        self.family.check(self.model, {name: self.known_sites[name] for name in self.attention})
        self.subscription.enter_context(subscribe(self.model, self))
        return self

    def __exit__(self, kind, error, traceback) -> None:
        unread = {
            name: why for name, why in self.attention_hook.unread_modules().items() if not why.startswith("did not run")
        }
        self.subscription.close()
        if kind is None and unread:
            listed = "; ".join(f"{name} {why}" for name, why in unread.items())
            raise BadEdit(f"these sites could not be edited: {listed}")
        if kind is None and self.is_step_made:
            self._check_reached()

    def _check_reached(self) -> None:
        """Raises BadEdit for an edit of the prompt in a text encoder that did not read it: it changed nothing."""
        for name in (*self.states, *self.encoder_sites):
            edits = self.states.get(name) or self.attention[name]
            if name not in self.reached and any("cond" in one.branches for one in edits):
                raise BadEdit(
                    f"the edit of {name} changed nothing: the text encoder did not read the prompt inside this edit, since "
                    "it came as embeddings; give the prompt, or make the embeddings inside"
                )

    # --- events of the session

    def attention_modules(self) -> Mapping[str, nn.Module]:
        return {name: self.known_sites[name].module for name in self.attention}

    def state_modules(self) -> Mapping[str, nn.Module]:
        return {name: self.known_states[name] for name in self.states}

    def on_run_begin(self, run: Run) -> None:
        for one in () if run.single else self.edits:
            if not any(one.at(step, run.count) for step in range(run.count)):
                raise BadEdit(
                    f"edit of {one.site}: steps {one.steps!r} are none of this run's {run.count} (0 to {run.count - 1}), "
                    "so it would change nothing"
                )

    def on_start_index(self, run: Run, index: int) -> None:
        if run.denoiser_ran and any(one.steps is not None for one in self.edits):
            raise BadEdit(
                f"this run is at step {index} without saying so before, so the wrong steps were edited: "
                "edit all of them (remove steps)"
            )

    def on_evaluation(self, evaluation: Evaluation) -> None:
        _ = evaluation.rows  # matched before the model can change its inputs

    def on_attention_edit(self, call: Call, value: Tensor, output: Tensor) -> Tensor:
        return edited_attention(self, call, value, output)

    def on_state_edit(self, name: str, state: Tensor) -> Tensor | None:
        return edited_states(self, name, state)

    def on_step(self, run: Run, step: SchedulerStep) -> None:
        self.is_step_made |= not run.single

    def describe(self) -> dict[str, Any]:
        return {"edits": [one.as_json() for one in self.edits]}


def _open_sources(folders: Iterable[str]) -> "dict[str, Trace]":
    folders = list(folders)
    if not folders:
        return {}
    from toushi.probe.trace.open import open_trace  # half a second of imports, which recording can do without

    return {folder: open_trace(folder) for folder in folders}
