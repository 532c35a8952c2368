"""The family table: for each family of models one row that says where `record` finds what it needs.

A row is data and a few small functions; everything that is the same for all families is in `toushi.probe.recording.record`.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from toushi.hooks.torch_private import uncompiled
from toushi.probe.base.errors import ToushiError
from toushi.probe.models.mini_unet import MiniUNet, checked_size
from toushi.probe.pipelines.private_api import attention_implementation
from toushi.probe.text.alignment import Token


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


class Said(NamedTuple):
    """One call of the method that encodes prompts: what it returned, and all that is known of how it came about."""

    result: Any
    model: Any = None
    arguments: Mapping[str, Any] = {}  # as they were before the call
    drawing: Mapping[str, Any] = {}  # arguments of the `sample` inside which it was called
    ids: Mapping[str, Sequence["Read"]] = {}  # text encoder -> its runs during the call
    before: Mapping[str, Sequence[Encoded]] = {}  # what earlier calls inside the same `sample` gave


class Read(NamedTuple):
    """One run of a text encoder: `ids` [row][position], and `mask`, 0 at padding, if it was given one."""

    ids: list[list[int]]
    mask: list[list[int]] | None


class Stretch(NamedTuple):
    """Where one row of a joint attention has what, among its queries and keys alike."""

    image: int  # the first image cell
    text: int  # the first text column
    columns: int  # how many text columns


class Scene(NamedTuple):
    """What the denoiser is about to be run on."""

    grid: tuple[int, int]  # image cells of the finest attention: rows, columns
    key: tuple[Tensor, ...]  # whose identity tells one text from another
    texts: Callable[[], list[Tensor]]  # of each row the real text columns [column, feature]
    joint: tuple[Stretch, ...] | None = None  # of each row; None: every query is an image cell, every key a text column
    keys: int | None = None  # how many keys attention to the text must have, where nothing else proves them the text's


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

    # Methods of the model, and its scheduler. `evaluate` runs the denoiser once, without scheduler, if there is such.
    encode_prompt: str
    sample: str
    evaluate: str | None
    scheduler: str

    # The denoiser, the parameters of its `forward` that tell the scene, and the one among them that carries text.
    denoiser: str
    inputs: tuple[str, ...]
    text: str
    cross_sites: tuple[str, ...]  # globs of its attention modules
    self_sites: tuple[str, ...]
    rows: tuple[str, ...]  # the order of branches in a batch or in calls; decides only between texts that are equal

    # The text encoder: the parameter of `forward` with ids [row, position], the embeddings, the list of layers, and
    # the attention inside one layer. Without layers (None) it is not recorded.
    encoder: str
    ids: str
    embeddings: str
    layers: str | None
    attention: str

    texts: Callable[[Said], dict[str, list[Encoded]]]  # of what encode_prompt returns, for each branch
    text_rows: Callable[[Any], list[Tensor]]  # of the denoiser's text: real columns [column, feature] of each row
    scene: Callable[[Any, Mapping[str, Any]], Scene]  # of the model and the denoiser's inputs
    step: Callable[[Callable, Mapping[str, Any]], Stepped]  # calls scheduler.step with these arguments
    times: Callable[[Any], list[float]]  # of the scheduler: one for each step, and one more for the end
    evaluated: Callable[[Any, Mapping[str, Any]], Stepped] | None  # the same of `evaluate`: its result and arguments
    factor: Callable[[Any], int]  # pixels to a cell of the grid
    blank: Callable[[Any, Any], Tensor] | None  # latents of one picture of this size, in pixels
    pictures: Callable[[Any], list | None]  # PIL pictures of what `sample` returns, if it returns any
    about: Callable[[Any, Mapping[str, Any]], dict[str, Any]]  # guidance, sampler, seed, from the arguments of `sample`

    read: tuple[str, ...] = ()  # text encoders whose ids are wanted, in the order in which they are asked
    sequence_first: bool = False  # whether the encoder's states are [position, row, feature]
    beyond: Mapping[str, str] = field(default_factory=dict)  # globs of attention that is not recorded, and why
    begins: str | None = None  # the method that says at which of the scheduler's steps a run begins
    place: Callable[[Any, Mapping[str, Any], int], int | None] = (  # which step this one is, of the scheduler, the
        lambda scheduler, arguments, next: arguments.get(
            "index"
        )  # arguments of its `step`, and the step after the last
    )
    check: Callable[[Any, Mapping[str, Site]], None] = lambda model, sites: None  # raises if these cannot be read
    given: Callable[[Mapping[str, Any]], dict[str, list[Encoded]]] = (
        lambda arguments: {}
    )  # texts that `sample` is given
    picture: Callable[[Tensor, tuple[int, int]], Tensor] = lambda latents, grid: latents  # [row, channel, y, x]

    def encoder_layers(self, model) -> list[nn.Module]:
        if not self.layers or getattr(model, self.layers.partition(".")[0], None) is None:
            return []
        return list(submodule(model, self.layers).children())

    def unseen(self, model) -> str | None:
        """Why the encoder's attention cannot be read, so that of its layers only the states are kept; None if it can."""
        layers = self.encoder_layers(model)
        if not layers:
            return None
        attention = plain(plain(layers[0]).get_submodule(self.attention))
        kernel = attention_implementation(attention)
        if kernel == "sdpa":
            return None
        kind = type(plain(getattr(model, self.encoder.partition(".")[0]))).__name__
        return (
            f"{kind} attends in {kernel}, not in scaled_dot_product_attention: its hidden states are kept, no attention"
        )

    def not_recorded(self, model) -> dict[str, str]:
        """Globs of the attention that no site stands for, each with the reason."""
        reasons = dict(self.beyond)
        if (why := self.unseen(model)) is not None:
            reasons[f"{self.layers}.*.{self.attention}"] = why
        names = [name for name, _ in named_modules(model)]
        return {glob: why for glob, why in reasons.items() if fnmatch.filter(names, glob)}

    def sites(self, model) -> dict[str, Site]:
        """Every attention of the model by name, in the order of its modules. Of an encoder whose attention cannot be
        read its layers stand here."""
        encoder = any_of([f"{self.layers}.*.{self.attention}"] if self.layers else [])
        if self.layers and self.unseen(model) is not None:
            encoder = re.compile(re.escape(self.layers) + r"\.[0-9]+\Z")
        kinds: dict[Kind, re.Pattern] = {
            "encoder": encoder,
            "cross": any_of(self.cross_sites),
            "self": any_of(self.self_sites),
        }
        found = {}
        for name, module in named_modules(model):
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
                self._refuse_beyond(model, glob)
                near = get_close_matches(glob, sites, n=3, cutoff=0.3) or list(sites)[:3]
                raise UnknownSite(f"no site of {self.name} matches {glob!r}; near it: {', '.join(near)}")
            names |= matching
        if not names:
            raise UnknownSite(f"no site was asked for; there are for example {', '.join(list(sites)[:3])}")
        return {name: site for name, site in sites.items() if name in names}

    def _refuse_beyond(self, model, glob: str) -> None:
        """Raises UnknownSite with the reason, if the glob means attention that is known, but not recordable."""
        meant = [name for name, _ in named_modules(model) if fnmatch.fnmatchcase(name, glob)]
        for beyond, why in self.not_recorded(model).items():
            if fnmatch.filter(meant, beyond):
                raise UnknownSite(f"{glob!r} cannot be recorded: {why}")


def any_of(globs: Iterable[str]) -> re.Pattern:
    """A pattern for names that match one of the globs."""
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs) or "(?!)")


def plain(module: nn.Module) -> nn.Module:
    """The module that torch.compile wrapped, or the module itself."""
    return uncompiled(module)


def submodule(model, path: str) -> nn.Module:
    """The module at this path of a model, or of a pipeline, whose components are its first names."""
    first, _, rest = path.partition(".")
    component = plain(getattr(model, first))
    return plain(component.get_submodule(rest)) if rest else component


def named_modules(model) -> Iterator[tuple[str, nn.Module]]:
    """Every module of a model, or of a pipeline, with its path."""
    if isinstance(model, nn.Module):
        yield from model.named_modules()
        return
    for first, component in model.components.items():
        if isinstance(component, nn.Module):
            for rest, module in plain(component).named_modules():
                yield f"{first}.{rest}".rstrip("."), module


# --- mini-unet ---


def _mini_texts(said: Said) -> dict[str, list[Encoded]]:
    positive, negative = said.result
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


def _mini_scene(model, inputs: Mapping[str, Any]) -> Scene:
    latents, text = inputs["latents"], inputs["text"]
    return Scene((latents.shape[-2], latents.shape[-1]), (text.states,), lambda: _mini_rows(text))


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


def evaluated_flow(velocity, arguments: Mapping[str, Any]) -> Stepped:
    latents, time = arguments["latents"], arguments["time"]
    time = time.reshape(-1, 1, 1, 1).to(latents) if isinstance(time, Tensor) else time
    return Stepped(velocity, latents, latents - time * velocity.to(latents))


MINI_UNET = Family(
    name="mini-unet",
    knows=lambda model: isinstance(model, MiniUNet),  # whatever its weights are called
    encode_prompt="encode_prompt",
    sample="sample",
    evaluate="denoise",
    scheduler="scheduler",
    denoiser="unet",
    inputs=("latents", "text"),
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
    scene=_mini_scene,
    step=_mini_step,
    times=lambda scheduler: scheduler.times.tolist(),
    evaluated=evaluated_flow,
    factor=lambda model: model.vae.factor,
    blank=lambda model, size: torch.zeros_like(model.noise(1, *checked_size(size), seed=0)),
    pictures=lambda result: result if isinstance(result, list) else [result],
    about=lambda model, arguments: {name: arguments.get(name) for name in ("guidance", "sampler", "seed")},
)

FAMILIES = (MINI_UNET,)


def family_of(model) -> Family:
    from toushi.probe.pipelines.generic import generic
    from toushi.probe.pipelines.table import PIPELINES  # rows of this table, made of what is above

    families = (*FAMILIES, *PIPELINES)
    for family in families:
        if family.knows(model):
            return family
    if (family := generic(model)) is not None:
        return family
    known = ", ".join(family.name for family in families)
    raise UnknownFamily(
        f"cannot record a {type(model).__name__}: expected a model of one of the families {known}. "
        "Of diffusers these are text-to-image pipelines, whole, not their transformer alone."
    )
