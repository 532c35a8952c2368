"""`with edit(model, Edit(...)):` changes what the model attends to, or what its text encoder made of a word.

    with edit(model, Edit("unet.*.cross_attention", "scale", word="猫", factor=3, renormalise=True)):
        picture = model.sample("左边是猫，右边是月亮", seed=0)

Attention says where a model looked; only an intervention says whether that mattered. An `Edit` is data: a recording
inside (or around) the `with` notes it in the manifest, and `edits_of_manifest` makes it again. The recorded attention
of an edited site is the softmax as the site computed it, before the edit. Everything after the site, and every state of
the encoder, is recorded after the edit.

If image and text share one sequence, an edit of a word changes the attention of the image to it. Attention of the text
to itself and to the image stays. An edit of a whole head changes both.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import overload

from torch import Tensor, nn

from toushi.hooks.attention import Call
from toushi.probe.editing.attention_editor import edit_attention
from toushi.probe.editing.denoiser_states import HEADS, edit_denoiser_state, heads_of
from toushi.probe.editing.edit_plan import EditPlan
from toushi.probe.editing.edit_spec import BadEdit, Edit, edits_of_manifest
from toushi.probe.editing.state_editor import edit_states
from toushi.probe.pipelines.family import Model, SchedulerStep, unwrap
from toushi.probe.pipelines.registry import family_of
from toushi.probe.session.sampling_session import session_of, subscribe
from toushi.probe.session.subscriber import Evaluation, Run, Subscriber

__all__ = ["BadEdit", "Edit", "Editing", "edit", "edits_of_manifest"]


@overload
def edit(model: Model, first: Edit | Iterable[Edit], *more: Edit) -> "Editing": ...
@overload
def edit(model: Model, first: str, function: Callable[[Tensor], Tensor], /) -> "Editing": ...
def edit(model: Model, first: Edit | Iterable[Edit] | str, *more: Edit | Callable[[Tensor], Tensor]) -> "Editing":
    """A context manager. Inside it, the edits change the model.

    Call it as `edit(model, Edit(...), Edit(...))`, with a list of edits, or as `edit(model, site, function)`. Give all
    edits of a model to one `edit`: scales multiply. If one edit renormalises, the result of all of them is renormalised.

    A function gets attention probabilities [row, head, text column, cell], an encoder state [row, position, feature], or a
    state of the denoiser as its module returns it, of heads [row, head, query, feature]. It returns what replaces it.

    Raises BadEdit for edits that contradict themselves or the model; UnknownSite for a glob that matches nothing;
    UnknownFamily.
    """
    if isinstance(first, str):
        if len(more) != 1 or isinstance(more[0], Edit) or not callable(more[0]):
            raise BadEdit("expected edit(model, site, function), with one function")
        return Editing(model, [Edit(first, "function", function=more[0])])
    arguments = [first, *more] if isinstance(first, Edit) else [*first, *more]
    edits = [edit for edit in arguments if isinstance(edit, Edit)]
    if not edits or len(edits) < len(arguments):
        raise BadEdit(f"expected Edit(...) or a site and a function, but {arguments!r:.120} came")
    return Editing(model, edits)


class Editing(Subscriber):
    """Made by `edit`."""

    def __init__(self, model: Model, edits: list[Edit]):
        self.model, self.edits = unwrap(model), edits
        self.family = family_of(self.model)
        self.plan = EditPlan(self.family, self.model, edits)
        self.edits_encoder = bool(self.plan.encoder_edits())
        self.is_step_made = False
        self.subscription = ExitStack()

    def __enter__(self) -> "Editing":
        session = session_of(self.model)
        if session is not None and any(isinstance(other, Editing) for other in session.subscribers):
            raise BadEdit("this model is being edited already: give all edits to one edit(model, Edit(...), Edit(...))")
        self.plan.reached.clear()
        self.is_step_made = False
        attention = self.plan.site_edits.keys() | heads_of(self.plan.denoiser)
        self.family.check(self.model, {name: self.plan.sites[name] for name in attention})
        self.subscription.enter_context(subscribe(self.model, self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        unread = self.attention_hook.unread_modules().items()
        self.subscription.close()
        if kind is not None:
            return
        if reasons := [f"{name} {reason}" for name, reason in unread if not reason.startswith("did not run")]:
            raise BadEdit(f"these sites could not be edited: {'; '.join(reasons)}")
        if self.is_step_made:
            self._check_reached()

    def _check_reached(self) -> None:
        """Raises BadEdit for an edit of a module that did not run, or of the prompt in an encoder that did not read it."""
        for name in self.plan.denoiser:
            if name not in self.plan.reached:
                raise BadEdit(
                    f"the edit of {name} changed nothing: it did not run inside this edit; name another module"
                )
        for name, edits in self.plan.encoder_edits().items():
            if name not in self.plan.reached and any("cond" in edit.branches for edit in edits):
                raise BadEdit(
                    f"the edit of {name} changed nothing: the text encoder did not read the prompt inside this edit, since "
                    "it came as embeddings; give the prompt, or make the embeddings inside"
                )

    # --- events of the session

    def attention_modules(self) -> Mapping[str, nn.Module]:
        attention = {name: self.plan.sites[name].module for name in self.plan.site_edits}
        return attention | heads_of(self.plan.denoiser)

    def state_modules(self) -> Mapping[str, nn.Module]:
        denoiser = {name: module for name, module in self.plan.denoiser.items() if not name.endswith(HEADS)}
        return {name: self.plan.states[name] for name in self.plan.state_edits} | denoiser

    def on_run_begin(self, run: Run) -> None:
        for edit in () if run.single else self.edits:
            if not any(edit.holds_at(step, run.count) for step in range(run.count)):
                raise BadEdit(
                    f"edit of {edit.site}: steps={edit.steps!r} selects none of the {run.count} steps of this run (0 to {run.count - 1}), "
                    "so the edit would change nothing"
                )

    def on_start_index(self, run: Run, index: int) -> None:
        if run.denoiser_ran and any(edit.steps is not None for edit in self.edits):
            raise BadEdit(
                f"this run is at step {index}, not at step {run.index} as expected (image-to-image), so `steps` would "
                "select the wrong ones: remove steps"
            )

    def on_evaluation(self, evaluation: Evaluation) -> None:
        _ = evaluation.rows  # matched before the model can change its inputs

    def on_attention_edit(self, call: Call, value: Tensor, output: Tensor) -> Tensor:
        if call.site in self.plan.site_edits:
            output = edit_attention(self.plan, self.session, call, value, output)
        heads = call.site + HEADS
        return edit_denoiser_state(self.plan, self.session, heads, output) if heads in self.plan.denoiser else output

    def on_state_edit(self, name: str, state: Tensor) -> Tensor | None:
        if name in self.plan.denoiser:
            return edit_denoiser_state(self.plan, self.session, name, state)
        return edit_states(self.plan, self.session.encoder_batch, name, state)

    def on_step(self, run: Run, step: SchedulerStep) -> None:
        self.is_step_made |= not run.single

    def describe(self) -> dict[str, object]:
        return {"edits": [edit.as_json() for edit in self.edits]}
