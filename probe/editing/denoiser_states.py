"""Hidden states of the denoiser: what its modules return, and the outputs of heads before they are mixed.

    with read_states(model, "unet.middle") as states:
        model.sample("左边是狗", seed=0)
    with edit(model, Edit("unet.middle", "patch", source=states)):
        model.sample("左边是猫", seed=0)

The name of a state is the path of its module, or that of an attention site with `.heads`. Attention sites themselves are
no states: after them heads are mixed already.
"""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from toushi.hooks.attention import Call
from toushi.probe.editing.edit_spec import BadEdit, Edit, check_rows, check_shape
from toushi.probe.pipelines.family import Family, Model, UnknownSite, named_modules, unwrap
from toushi.probe.pipelines.registry import family_of
from toushi.probe.session.sampling_session import subscribe
from toushi.probe.session.subscriber import Run, Session, Subscriber

if TYPE_CHECKING:
    from toushi.probe.editing.edit_plan import EditPlan

HEADS = ".heads"  # after the name of an attention site: [row, head, query, feature]


class StateKey(NamedTuple):
    """Which state of a run."""

    site: str
    step: int
    branch: str
    evaluation: int  # of this branch in the step, from 1; Heun's method has two


@contextmanager
def read_states(model: Model, sites: str | Sequence[str]) -> Iterator["DenoiserStates"]:
    """A context manager that yields the states of what the model samples inside, at the sites that the globs match.

    They stay in memory, on the model's device: those of the latest run, of the first picture of a batch. Edits are read
    with them if `edit` is inside this `with`, not if it is around it. Raises UnknownSite for a glob that matches nothing.
    """
    states = DenoiserStates(model, [sites] if isinstance(sites, str) else sites)
    with subscribe(model, states):
        yield states


class DenoiserStates(Subscriber):
    """What `read_states` yields: `values[site, step, branch, evaluation]` is a state without its row."""

    def __init__(self, model: Model, globs: Sequence[str]):
        model = unwrap(model)
        states = denoiser_states(family_of(model), model)
        self.modules = {name: module for glob in globs for name, module in match_states(states, glob).items()}
        self.values: dict[StateKey, Tensor] = {}
        self.count: int | None = None  # steps of the run

    def attention_modules(self) -> Mapping[str, nn.Module]:
        return heads_of(self.modules)

    def state_modules(self) -> Mapping[str, nn.Module]:
        return {name: module for name, module in self.modules.items() if not name.endswith(HEADS)}

    def on_run_begin(self, run: Run) -> None:
        self.values, self.count = {}, run.count

    def on_attention_edit(self, call: Call, value: Tensor, output: Tensor) -> Tensor:
        """Reads only: the output stays."""
        self._keep(call.site + HEADS, output)
        return output

    def on_state_edit(self, name: str, state: Tensor) -> None:
        self._keep(name, state)

    def _keep(self, site: str, state: Tensor) -> None:
        for row, key in _rows(self.session, site, state):
            self.values[key] = state[row].detach().clone()


def denoiser_states(family: Family, model: Model) -> dict[str, nn.Module]:
    """Every module of the denoiser whose output is a state, and every attention whose heads are one, by name."""
    sites = family.sites(model)
    modules = {name: unwrap(module) for name, module in named_modules(model) if name.startswith(f"{family.denoiser}.")}
    states = {name: module for name, module in modules.items() if name not in sites}
    return states | {name + HEADS: site.module for name, site in sites.items() if site.kind != "encoder"}


def heads_of(states: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The attention modules, by site, whose heads are among these states."""
    return {name.removesuffix(HEADS): module for name, module in states.items() if name.endswith(HEADS)}


def match_states(states: Mapping[str, nn.Module], glob: str) -> dict[str, nn.Module]:
    """Those that the glob matches. Raises UnknownSite if there is none, BadEdit if one is inside another."""
    names = fnmatch.filter(states, glob)
    if not names:
        near = get_close_matches(glob, states, n=3, cutoff=0.3) or list(states)[:3]
        raise UnknownSite(
            f"no state of the denoiser matches {glob!r}; expected a glob of names such as {', '.join(near)}"
        )
    for name in names:
        if inner := next((other for other in names if other.startswith(f"{name}.")), None):
            raise BadEdit(f"{glob!r} matches {name} and {inner}, which is inside it: name one of them")
    return {name: states[name] for name in names}


def edit_denoiser_state(plan: "EditPlan", session: Session, name: str, state: Tensor) -> Tensor:
    """The state of `name`, [row, …], with every edit that holds at this step."""
    evaluation = session.evaluation
    if evaluation is None:
        return state
    plan.reached.add(name)
    run = evaluation.run
    edits = [edit for edit in plan.denoiser_edits[name] if edit.holds_at(run.index, run.count)]
    edited = state.clone() if edits else state
    for edit in edits:
        if edit.function is not None:
            edited = check_shape(edit.function(edited), edited, name)
            continue
        for row, key in _rows(session, name, state, all_pictures=True):
            if key.branch in edit.branches:
                place = (row, edit.heads(state.shape[1])) if name.endswith(HEADS) else row
                edited[place] = _change(edit, key, edited[place], run)
    return edited


def _change(edit: Edit, key: StateKey, before: Tensor, run: Run) -> Tensor:
    """The edited state of one row; of heads only those that are edited."""
    if edit.vector is not None:
        axis = 0 if before.dim() >= 3 and not key.site.endswith(HEADS) else -1  # [channel, y, x], else the last
        vector = before.new_tensor(edit.vector)
        if len(vector) != before.shape[axis]:
            raise BadEdit(f"{key.site} has {before.shape[axis]} features, but vector has {len(vector)} numbers")
        return before + (vector[:, None, None] if axis == 0 else vector)
    if edit.source is None:
        return before * edit.factor
    if not isinstance(edit.source, DenoiserStates):
        raise BadEdit(f"edit of {edit.site}: source must be what read_states yields; {edit.source!r:.80} came")
    if edit.source.count != run.count:
        raise BadEdit(f"the states were read in {edit.source.count} steps, this run has {run.count}: use as many")
    patch = edit.source.values.get(key)
    if patch is None:
        raise BadEdit(
            f"{key.site} was not read at step {key.step} of {key.branch} (evaluation {key.evaluation}): read a run with "
            "the same guidance and sampler, or name the branch and steps of the edit"
        )
    patch = patch[edit.heads(len(patch))] if key.site.endswith(HEADS) else patch
    if patch.shape != before.shape:
        came, expected = tuple(patch.shape), tuple(before.shape)
        raise BadEdit(
            f"{key.site} has the shape {expected} here, and {came} in the run that was read: use the same size"
        )
    return patch.to(before)


def _rows(session: Session, site: str, state: Tensor, all_pictures: bool = False) -> Iterator[tuple[int, StateKey]]:
    """Each row of the state, with its key; of one picture, unless all are asked for."""
    evaluation = session.evaluation
    if evaluation is None:
        return
    check_rows(len(state), len(evaluation.rows), site)
    for row, (branch, picture) in enumerate(evaluation.rows):
        if picture == 0 or all_pictures:
            number = evaluation.run.evaluations[branch, picture]
            yield row, StateKey(site, evaluation.run.index, branch, number)
