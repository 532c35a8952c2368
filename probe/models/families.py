"""The family table: for each family of models one row that says where `record` finds what it needs.

A row is data and a few small functions; everything that is the same for all families is in `probe.record`.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from probe.errors import ToushiError
from probe.models.mini_unet import checked_size
from probe.text.alignment import Token


class UnknownFamily(ToushiError):
    """A model that no row of the table describes."""


class UnknownSite(ToushiError):
    """A site name or glob that matches no attention of the model."""


class Encoded(NamedTuple):
    """One prompt as the denoiser gets it: `states` [column, feature] without padding."""

    prompt: str | None
    ids: tuple[int, ...]
    tokens: tuple[Token, ...]
    states: Tensor


class Stepped(NamedTuple):
    """One step of the scheduler: what it returned, the latents after it, the clean latents that it foresaw."""

    result: Any
    latents: Tensor
    foreseen: Tensor | None


Kind = Literal["cross", "self", "encoder"]


class Site(NamedTuple):
    """A module that attends. `cross`: image cells to text; `self`: image cells to image cells."""

    module: nn.Module
    kind: Kind


@dataclass(frozen=True)
class Family:
    name: str
    knows: Callable[[Any], bool]  # is this model one of the family

    # Methods of the model, and its scheduler. `evaluate` runs the denoiser once, without scheduler.
    encode_prompt: str
    sample: str
    evaluate: str
    scheduler: str

    # The denoiser and the parameters of its `forward` that carry latents [row, channel, y, x] and text.
    denoiser: str
    latents: str
    text: str
    cross_sites: tuple[str, ...]  # globs of its attention modules
    self_sites: tuple[str, ...]
    rows: tuple[str, ...]  # the order of branches in a batch; decides only between texts that are equal

    # The text encoder: the parameter of `forward` with ids [row, position], the embeddings, the list of layers, and
    # the attention inside one layer.
    encoder: str
    ids: str
    embeddings: str
    layers: str
    attention: str

    texts: Callable[[Any], dict[str, list[Encoded]]]  # of what encode_prompt returns, for each branch
    text_rows: Callable[[Any], list[Tensor]]  # of the denoiser's text: real columns [column, feature] of each row
    text_key: Callable[[Any], Tensor]  # the tensor whose identity tells one text argument from another
    step: Callable[[Callable, Mapping[str, Any]], Stepped]  # calls scheduler.step with these arguments
    times: Callable[[Any], list[float]]  # of the scheduler: one for each step, and one more for the end
    evaluated: Callable[[Any, Mapping[str, Any]], Stepped]  # the same of `evaluate`: its result and its arguments
    factor: Callable[[Any], int]  # pixels to a latent cell
    blank: Callable[[Any, Any], Tensor]  # latents of one picture of this size, in pixels
    pictures: Callable[[Any], list]  # PIL pictures of what `sample` returns

    def encoder_layers(self, model) -> list[nn.Module]:
        return list(plain(model.get_submodule(self.layers)).children())

    def sites(self, model) -> dict[str, Site]:
        """Every attention of the model by name, in the order of its modules."""
        kinds: dict[Kind, re.Pattern] = {
            "encoder": any_of([f"{self.layers}.*.{self.attention}"]),
            "cross": any_of(self.cross_sites),
            "self": any_of(self.self_sites),
        }
        found = {}
        for name, module in model.named_modules():
            name = name.replace("_orig_mod.", "")  # torch.compile puts the module into another one
            for kind, pattern in kinds.items():
                if pattern.match(name):
                    found[name] = Site(plain(module), kind)
                    break
        return found

    def chosen(self, model, globs: str | Iterable[str] | None) -> dict[str, Site]:
        """The sites that the globs name; by default all but image self-attention, which is N x N large."""
        sites = self.sites(model)
        if globs is None:
            return {name: site for name, site in sites.items() if site.kind != "self"}
        globs, names = [globs] if isinstance(globs, str) else list(globs), set()
        for glob in globs:
            matching = {name for name in sites if fnmatch.fnmatchcase(name, glob)}
            if not matching:
                near = get_close_matches(glob, sites, n=3, cutoff=0.3) or list(sites)[:3]
                raise UnknownSite(f"no site of {self.name} matches {glob!r}; near it: {', '.join(near)}")
            names |= matching
        if not names:
            raise UnknownSite(f"no site was asked for; there are for example {', '.join(list(sites)[:3])}")
        return {name: site for name, site in sites.items() if name in names}


def any_of(globs: Iterable[str]) -> re.Pattern:
    """A pattern for names that match one of the globs."""
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs))


def plain(module: nn.Module) -> nn.Module:
    """The module that torch.compile wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


# --- mini-unet ---


def _mini_texts(result) -> dict[str, list[Encoded]]:
    positive, negative = result
    texts = {"cond": positive} if negative is None else {"cond": positive, "uncond": negative}
    return {
        branch: [
            Encoded(encoding.prompt, encoding.ids, encoding.tokens, states)
            for encoding, states in zip(text.encodings, _mini_rows(text))
        ]
        for branch, text in texts.items()
    }


def _mini_rows(text) -> list[Tensor]:
    return [states[mask] for states, mask in zip(text.states, text.mask)]


def _mini_step(step: Callable, arguments: Mapping[str, Any]) -> Stepped:
    foreseen: list[Tensor] = []
    given = arguments["velocity_of"]

    def velocity_of(latents, time):
        velocity = given(latents, time)
        if not foreseen:  # Heun asks again, ahead of the step
            foreseen.append(latents - time * velocity)
        return velocity

    after = step(velocity_of, arguments["latents"], arguments["index"])
    return Stepped(after, after, foreseen[0])


def _mini_evaluated(velocity, arguments: Mapping[str, Any]) -> Stepped:
    latents, time = arguments["latents"], arguments["time"]
    time = time.reshape(-1, 1, 1, 1).to(latents) if isinstance(time, Tensor) else time
    return Stepped(velocity, latents, latents - time * velocity.to(latents))


MINI_UNET = Family(
    name="mini-unet",
    knows=lambda model: getattr(model, "name", None) == "mini-unet",
    encode_prompt="encode_prompt",
    sample="sample",
    evaluate="denoise",
    scheduler="scheduler",
    denoiser="unet",
    latents="latents",
    text="text",
    cross_sites=("unet.*cross_attention",),
    self_sites=("unet.*self_attention",),
    rows=("uncond", "cond"),
    encoder="encoder",
    ids="ids",
    embeddings="encoder.embed",
    layers="encoder.layers",
    attention="attention",
    texts=_mini_texts,
    text_rows=_mini_rows,
    text_key=lambda text: text.states,
    step=_mini_step,
    times=lambda scheduler: scheduler.times.tolist(),
    evaluated=_mini_evaluated,
    factor=lambda model: model.vae.factor,
    blank=lambda model, size: torch.zeros_like(model.noise(1, *checked_size(size), seed=0)),
    pictures=lambda result: result if isinstance(result, list) else [result],
)

FAMILIES = (MINI_UNET,)


def family_of(model) -> Family:
    for family in FAMILIES:
        if family.knows(model):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise UnknownFamily(f"cannot record a {type(model).__name__}: expected a model of one of the families {known}")
