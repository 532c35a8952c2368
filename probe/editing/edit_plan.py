"""Which sites and states of a model its edits change."""

import fnmatch
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

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
        for edit in edits:
            sites = [] if edit.kind == "patch" else fnmatch.filter(self.sites, edit.site)
            states = (
                [] if edit.kind in ("replace", "move", "keep_only") or sites else fnmatch.filter(self.states, edit.site)
            )
            self._check(edit, model, sites, states)
            for name in sites:
                self.site_edits.setdefault(name, []).append(edit)
            for name in states:
                self.state_edits.setdefault(name, []).append(edit)
        self.sources = _open_sources([edit.source for edit in edits if edit.source is not None])
        self.reached: set[str] = set()  # sites and states of the encoder at which an edit met the prompt

    def encoder_edits(self) -> dict[str, list[Edit]]:
        """The edits of sites and states in the text encoder."""
        sites = {name: edits for name, edits in self.site_edits.items() if self.sites[name].kind == "encoder"}
        return self.state_edits | sites

    def _check(self, edit: Edit, model: Model, sites: list[str], states: list[str]) -> None:
        if not sites and not states:
            known = list(self.states) if edit.kind == "patch" else [*self.sites, *self.states]
            for glob, reason in self.family.not_recorded(model).items():
                if fnmatch.fnmatchcase(edit.site, glob):
                    raise UnknownSite(f"{edit.site!r} cannot be edited: {reason}")
            if not known:
                raise UnknownSite(f"the layers of the text encoder of {self.family.name} are not known")
            near = get_close_matches(edit.site, known, n=3, cutoff=0.3) or known[:3]
            kinds = "state" if edit.kind == "patch" else "site or state"
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
        if unknown := [name for name in edit.branches if name not in self.family.branches]:
            raise BadEdit(
                f"edit of {edit.site}: branch must be {' or '.join(self.family.branches)}; {unknown[0]!r} came"
            )


def _encoder_states(family: Family, model: Model) -> dict[str, nn.Module]:
    """Embeddings and layers of the text encoder, in order."""
    layers = family.encoder_layers(model)
    if not layers:
        return {}
    numbered = {f"{family.layers}.{i}": unwrap(module) for i, module in enumerate(layers)}
    return {family.embeddings: submodule(model, family.embeddings), **numbered}


def _open_sources(folders: Sequence[str | Path]) -> "dict[str | Path, Trace]":
    if not folders:
        return {}
    from toushi.probe.trace.open import open_trace  # half a second of imports that recording does not need

    return {folder: open_trace(folder) for folder in folders}
