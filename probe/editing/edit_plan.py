"""Which sites and states of a model its edits change."""

import fnmatch
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from torch import nn

from toushi.probe.editing.denoiser_states import HEADS, denoiser_states, match_states
from toushi.probe.editing.edit_spec import BadEdit, Edit
from toushi.probe.pipelines.family import Family, Model, Site, UnknownSite, submodule, unwrap

if TYPE_CHECKING:
    from toushi.probe.trace.picture_trace import Trace


class EditPlan:
    """The edits of a model by site and by state. Raises BadEdit or UnknownSite for edits that the model cannot have."""

    def __init__(self, family: Family, model: Model, edits: Sequence[Edit]):
        self.family, self.edits = family, edits
        self.sites: dict[str, Site] = family.sites(model)  # that can be edited
        if family.hidden_attention(model) is not None:  # the encoder's sites are its layers, not attention
            self.sites = {name: site for name, site in self.sites.items() if site.kind != "encoder"}
        self.states: dict[str, nn.Module] = _encoder_states(family, model)  # state 0, 1, …
        self.site_edits: dict[str, list[Edit]] = {}
        self.state_edits: dict[str, list[Edit]] = {}
        self.denoiser_edits: dict[str, list[Edit]] = {}
        self.denoiser: dict[str, nn.Module] = {}  # edited states of the denoiser
        for edit in edits:
            sites = [] if edit.kind in ("patch", "add") else fnmatch.filter(self.sites, edit.site)
            states = (
                [] if edit.kind in ("replace", "move", "keep_only") or sites else fnmatch.filter(self.states, edit.site)
            )
            inner = {} if sites or states else self._denoiser_states(edit, model)
            self.denoiser |= inner
            if not inner:
                self._check(edit, model, sites, states)
            for edits_of, names in ((self.site_edits, sites), (self.state_edits, states), (self.denoiser_edits, inner)):
                for name in names:
                    edits_of.setdefault(name, []).append(edit)
        self.sources = _open_sources([edit.folder for edit in edits if edit.folder is not None])
        self.reached: set[str] = set()  # states of the denoiser that ran; of the encoder, where an edit met the prompt

    def encoder_edits(self) -> dict[str, list[Edit]]:
        """The edits of sites and states in the text encoder."""
        sites = {name: edits for name, edits in self.site_edits.items() if self.sites[name].kind == "encoder"}
        return self.state_edits | sites

    def _denoiser_states(self, edit: Edit, model: Model) -> dict[str, nn.Module]:
        """The states of the denoiser that are edited; none if the edit is of another kind, or matches none of them."""
        known = denoiser_states(self.family, model)
        if edit.has_columns or edit.folder is not None or not fnmatch.filter(known, edit.site):
            return {}
        states = match_states(known, edit.site)
        if edit.renormalise or (edit.head is not None and not all(name.endswith(HEADS) for name in states)):
            raise BadEdit(
                f"{next(iter(states))} is a state, which has no heads and no sum of 1: remove head and renormalise"
            )
        self._check_branches(edit)
        return states

    def _check_branches(self, edit: Edit) -> None:
        if unknown := [name for name in edit.branches if name not in self.family.branches]:
            raise BadEdit(
                f"edit of {edit.site}: branch must be {' or '.join(self.family.branches)}; {unknown[0]!r} came"
            )

    def _check(self, edit: Edit, model: Model, sites: list[str], states: list[str]) -> None:
        if not sites and not states:
            known = list(self.states) if edit.folder is not None else [*self.sites, *self.states]
            known += [] if edit.folder is not None or edit.has_columns else denoiser_states(self.family, model)
            for glob, reason in self.family.not_recorded(model).items():
                if fnmatch.fnmatchcase(edit.site, glob):
                    raise UnknownSite(f"{edit.site!r} cannot be edited: {reason}")
            if not known:
                raise UnknownSite(f"the layers of the text encoder of {self.family.name} are not known")
            near = get_close_matches(edit.site, known, n=3, cutoff=0.3) or known[:3]
            kinds = "state" if edit.kind in ("patch", "add") else "site or state"
            raise UnknownSite(
                f"no {kinds} of {self.family.name} matches {edit.site!r}; expected a glob of names such as "
                f"{', '.join(near)} (`toushi sites` lists all sites)"
            )
        encoder = states or [name for name in sites if self.sites[name].kind == "encoder"]
        if encoder and edit.steps is not None:
            raise BadEdit(f"{encoder[0]} is in the text encoder, which computes before the first step: remove steps")
        if states and (edit.head is not None or edit.renormalise):
            raise BadEdit(f"{states[0]} is a state, which has no heads and no sum of 1: remove head and renormalise")
        wrong = [
            name for name in sites if self.sites[name].kind == "self" or (edit.kind in ("replace", "move") and encoder)
        ]
        if wrong and (edit.has_columns or edit.function is not None):
            raise BadEdit(
                f"{wrong[0]} is not an image-to-text site, so {edit.kind} cannot change its attention to a word: choose other sites"
            )
        if states and (edit.kind == "add" or (edit.source is not None and edit.folder is None)):
            raise BadEdit(
                f"{states[0]} is in the text encoder: {edit.kind} with these arguments is of the denoiser's states"
            )
        self._check_branches(edit)


def _encoder_states(family: Family, model: Model) -> dict[str, nn.Module]:
    """Embeddings and layers of the text encoder, in order."""
    layers = family.encoder_layers(model)
    if not layers:
        return {}
    numbered = {f"{family.layers}.{i}": unwrap(module) for i, module in enumerate(layers)}
    return {family.embeddings: submodule(model, family.embeddings), **numbered}


def _open_sources(folders: Sequence[str]) -> "dict[str, Trace]":
    if not folders:
        return {}
    from toushi.probe.trace.open import open_trace  # half a second of imports that recording does not need

    return {folder: open_trace(folder) for folder in folders}
