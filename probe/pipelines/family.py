"""A family of pipelines: where the session finds prompts, rows, steps and attention sites of its models.

A `Family` is data and a few small functions. What is the same for all families is in `probe/session` and in its
subscribers. `registry.py` knows the families, `families/` has one file for each.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from toushi.hooks.torch_private import uncompiled
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.private_api import attention_implementation
from toushi.probe.text.alignment import Span, Token


class Pipeline(Protocol):
    """A model that is no `nn.Module`, such as every pipeline of diffusers."""

    @property
    def components(self) -> Mapping[str, object]:
        """Its modules, tokenizers and scheduler by name."""
        ...


Model = nn.Module | Pipeline
M = TypeVar("M")
Arguments = Mapping[str, Any]  # of a call, by parameter
Images = list[Image.Image] | None  # None: no pictures, but latents or an error


class UnknownFamily(ToushiError):
    """A model of no known family."""


class UnknownSite(ToushiError):
    """A site name or glob that matches no attention of the model."""


class PromptTokens(NamedTuple):
    """One prompt as a text encoder reads it."""

    prompt: str | None
    ids: tuple[int, ...]  # without padding
    tokens: tuple[Token, ...]  # positions count from the first token that is not padding
    cut: int | None = None  # the first character of the prompt that no encoder reads, because it is too long


class EncodedPrompt(NamedTuple):
    """One prompt as the denoiser gets it: `states` [column, feature] without padding."""

    prompt: str | None  # None if it came as embeddings: its words are not known
    ids: tuple[int, ...]  # of the first text encoder, without padding
    tokens: tuple[Token, ...]
    states: Tensor
    cut: int | None = None  # the first character of the prompt that no encoder reads, because it is too long

    def why_no_column(self, span: Span) -> str:
        """The reason why no text column stands for these characters of the prompt."""
        return "it was cut" if self.cut is not None and self.cut < span[1] else "its tokens are not known"


class EncoderInputs(NamedTuple):
    """The inputs of one call of a text encoder: `ids` [row][position]; `mask` is 0 at padding, None if there was none."""

    ids: list[list[int]]
    mask: list[list[int]] | None


class EncodePromptCall(NamedTuple):
    """One call of the method that encodes prompts."""

    result: Any  # what the method returned; None during the call
    model: Any = None
    arguments: Mapping[str, Any] = {}  # as they were before the call
    sample_arguments: Mapping[str, Any] = {}  # of the sampling call around it; empty outside of one
    encoder_calls: Mapping[str, Sequence[EncoderInputs]] = {}  # text encoder -> its calls inside this one, in order
    earlier: Mapping[str, Sequence[EncodedPrompt]] = {}  # results of earlier calls inside the same sampling call


class JointSequence(NamedTuple):
    """Where image and text are in one row of a joint attention, the same for queries and keys."""

    image: int  # index of the first image cell
    text: int  # index of the first text column
    columns: int  # number of text columns


class DenoiserInputs(NamedTuple):
    """The inputs of one evaluation of the denoiser, before it computes."""

    grid: tuple[int, int]  # image cells of the finest attention: rows, columns
    text_tensors: tuple[Tensor, ...]  # tensors whose identity tells one text from another
    texts: Callable[[], list[Tensor]]  # of each row the text states [column, feature] without padding
    joint: tuple[JointSequence, ...] | None = None  # of each row; None: every query is an image cell, every key text
    key_count: int | None = None  # number of keys that attention to the text must have, if that is not known otherwise
    text_sites: Set[str] | None = None  # sites that got the text as keys, filled during the evaluation; None: all
    branches: tuple[str, ...] | None = None  # of each row, where the arguments tell it; None: equal states tell it


class SchedulerStep(NamedTuple):
    """One step of the scheduler: its return value, the latents after it, and the denoised latents that it predicts."""

    result: object
    latents: Tensor
    denoised: Tensor | None


SiteKind = Literal["cross", "self", "encoder"]


class Site(NamedTuple):
    """An attention module. `cross`: image cells to text; `self`: image cells to image cells; `encoder`: text to text."""

    module: nn.Module
    kind: SiteKind


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the models of one family are read. `families/stable_diffusion.py` is a good one to copy.

    `Any` in the type of a field is what belongs to the family: its model, its scheduler, what its methods return.
    """

    name: str
    matches: Callable[[Any], bool]  # whether a model is of this family
    pipeline_classes: tuple[str, ...] = ()  # names of its pipeline classes, for messages and tables

    # --- the denoiser
    denoiser: str  # attribute of the model
    denoiser_inputs: tuple[str, ...]  # parameters of its `forward` that `read_inputs` needs
    read_inputs: Callable[[Any, Arguments], DenoiserInputs]  # (model, values of these parameters)
    cross_attention: tuple[str, ...]  # globs of module paths: image cells attend to the text
    cell_pixels: Callable[[Any], int]  # pixels along one side of a cell of the finest grid

    # --- the prompts
    encoded_prompts: Callable[[EncodePromptCall], dict[str, list[EncodedPrompt]]]
    """After a call of `encode_prompt`: branch -> one prompt for each picture."""
    tokens_of_encoder_call: Callable[[EncodePromptCall, int], tuple[str, list[PromptTokens]]] | None = None
    """Branch and rows of one call of the recorded text encoder, from its ids alone: (call, index of the encoder's call)."""
    prompts_from_arguments: Callable[[Arguments], dict[str, list[EncodedPrompt]]] = lambda arguments: {}
    """Embeddings among the arguments of the sampling call that do not pass through `encode_prompt`."""
    branches: tuple[str, ...] = ("cond", "uncond")  # every branch that this family can have, in the trace's order
    branch_order: tuple[str, ...] = ("uncond", "cond")  # in a batch, or in calls; decides only between equal states
    unguided: float = 1.0  # guidance at which, and below which, the model ignores the negative prompt
    image_optional: tuple[str, ...] = ()  # pipeline classes that take an image, and generate without one too

    hooks: Callable[[Any], AbstractContextManager[None]] = lambda model: nullcontext()
    """Hooks of the family's own, open while the model is followed."""

    # --- the text encoder that is recorded
    text_encoder: str = "text_encoder"
    input_ids: str = "input_ids"  # parameter of its `forward`: ids [row, position]
    embeddings: str = ""  # path of the module whose output is state 0
    layers: str | None = None  # path of the list of layers; None: the encoder is not recorded
    layer_attention: str = "self_attn"  # path of the attention inside one layer
    sequence_first: bool = False  # whether its states are [position, row, feature]
    text_encoders: tuple[str, ...] = ()  # every text encoder whose ids label columns, in that order

    # --- sampling
    encode_prompt: str = "encode_prompt"  # methods of the model
    sample: str = "__call__"
    evaluate: str | None = None  # a method that evaluates the denoiser once, without scheduler, if there is one
    scheduler: str = "scheduler"
    step: Callable[[Callable[..., Any], Arguments], SchedulerStep]  # calls scheduler.step with these arguments
    step_index: Callable[[Any, Arguments, int], int | None] = lambda scheduler, arguments, expected: arguments.get(
        "index"
    )
    """Index of the current step: (scheduler, arguments of its `step`, index after the last step)."""
    timesteps: Callable[[Any], list[float]]  # of the scheduler: one for each step, and one for the end
    timesteps_method: str | None = None  # method of the model that shortens the schedule (image-to-image)
    evaluation_step: Callable[[Any, Arguments], SchedulerStep] | None = None  # (result of `evaluate`, its arguments)
    unpack_latents: Callable[[Tensor, tuple[int, int]], Tensor] = lambda latents, grid: latents
    """(latents, grid) -> latents [row, channel, y, x]."""
    images: Callable[[Any], Images]  # the pictures in what `sample` returned
    metadata: Callable[[Any, Arguments], dict[str, object]]  # manifest fields: (model, arguments of `sample`)
    blank_latents: Callable[[Any, int | tuple[int, int]], Tensor] | None = None
    """(model, size in pixels) -> latents of one picture, for `forecast`."""

    load_folder: Callable[[Path, torch.device, torch.dtype], Any | None] | None = None
    """For `load` and the commands: the model of a folder with a config.json, or None if the folder holds another."""

    # --- what cannot be recorded, and how large a trace becomes
    self_attention: tuple[str, ...] = ()  # globs of module paths: image cells attend to image cells
    unrecorded_attention: Mapping[str, str] = field(default_factory=dict)  # glob of module paths -> reason
    check: Callable[[Any, Mapping[str, Site]], None] = lambda model, sites: None  # raises if these cannot be read
    text_columns: Callable[[Any, int], int] | None = None
    """For the size estimate: (model, tokens of the prompt) -> text columns. None: as many as the encoder reads."""
    joint: bool = False  # whether text and image share one sequence, so that a trace keeps `rest`, too

    def encoder_layers(self, model: Model) -> list[nn.Module]:
        """The layers of the recorded text encoder, in order; none if the model has no such encoder."""
        if not self.layers or getattr(model, self.layers.partition(".")[0], None) is None:
            return []
        return list(submodule(model, self.layers).children())

    def hidden_attention(self, model: Model) -> str | None:
        """Why the encoder's attention cannot be read, so that only states of its layers are kept. None if it can."""
        layers = self.encoder_layers(model)
        if not layers:
            return None
        attention = unwrap(unwrap(layers[0]).get_submodule(self.layer_attention))
        encoder = unwrap(getattr(model, self.text_encoder.partition(".")[0]))
        kernel = attention_implementation(attention, encoder)
        if kernel == "sdpa":
            return None
        return (
            f"{type(encoder).__name__} computes attention by {kernel}, not by scaled_dot_product_attention: its hidden "
            "states are kept, its attention is not"
        )

    def not_recorded(self, model: Model) -> dict[str, str]:
        """Globs of the model's attention that is no site, each with the reason."""
        reasons = dict(self.unrecorded_attention)
        if (reason := self.hidden_attention(model)) is not None:
            reasons[f"{self.layers}.*.{self.layer_attention}"] = reason
        names = [name for name, _ in named_modules(model)]
        return {glob: reason for glob, reason in reasons.items() if fnmatch.filter(names, glob)}

    def sites(self, model: Model) -> dict[str, Site]:
        """Every attention of the model by name, in the order of its modules.

        If the attention of the text encoder cannot be read, the encoder's layers are its sites.
        """
        encoder = glob_pattern([f"{self.layers}.*.{self.layer_attention}"] if self.layers else [])
        if self.layers and self.hidden_attention(model) is not None:
            encoder = re.compile(re.escape(self.layers) + r"\.[0-9]+\Z")
        patterns: dict[SiteKind, re.Pattern] = {
            "encoder": encoder,
            "cross": glob_pattern(self.cross_attention),
            "self": glob_pattern(self.self_attention),
        }
        sites = {}
        for name, module in named_modules(model):
            name = name.replace("_orig_mod.", "")  # torch.compile puts the module into another one
            for kind, pattern in patterns.items():
                if pattern.match(name):
                    sites[name] = Site(unwrap(module), kind)
                    break
        return sites

    def select_sites(self, model: Model, globs: str | Iterable[str] | None) -> dict[str, Site]:
        """The sites that the globs match. Without globs all but image self-attention, whose maps are cells x cells.

        Raises UnknownSite for a glob that matches nothing, with the reason or the nearest names.
        """
        sites = self.sites(model)
        if globs is None:
            return {name: site for name, site in sites.items() if site.kind != "self"}
        globs, names = [globs] if isinstance(globs, str) else list(globs), set()
        for glob in globs:
            matching = {name for name in sites if fnmatch.fnmatchcase(name, glob)}
            if not matching:
                self._refuse_unrecorded(model, glob)
                near = get_close_matches(glob, sites, n=3, cutoff=0.3) or list(sites)[:3]
                raise UnknownSite(
                    f"no site of {self.name} matches {glob!r}; expected a glob of sites such as {', '.join(near)} "
                    "(`toushi sites` lists all)"
                )
            names |= matching
        if not names:
            raise UnknownSite(
                f"the list of sites is empty; expected globs of sites such as {', '.join(list(sites)[:3])}"
            )
        return {name: site for name, site in sites.items() if name in names}

    def _refuse_unrecorded(self, model: Model, glob: str) -> None:
        """Raises UnknownSite with the reason if the glob matches attention that cannot be recorded."""
        names = [name for name, _ in named_modules(model) if fnmatch.fnmatchcase(name, glob)]
        for pattern, reason in self.not_recorded(model).items():
            if fnmatch.filter(names, pattern):
                raise UnknownSite(f"{glob!r} cannot be recorded: {reason}")


def glob_pattern(globs: Iterable[str]) -> re.Pattern:
    """A pattern that matches the names that one of the globs matches."""
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs) or "(?!)")


def unwrap(module: M) -> M:
    """The module that torch.compile, DataParallel or peft's `get_peft_model` wrapped, or the module itself."""
    inner = uncompiled(module)
    if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = inner.module
    elif isinstance(inner, nn.Module) and hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()  # pyright: ignore[reportCallIssue]
    return inner if inner is module else unwrap(inner)  # pyright: ignore[reportReturnType]


def submodule(model: Model, path: str) -> nn.Module:
    """The module at this path of a model. The first name of the path is an attribute of the model."""
    first, _, rest = path.partition(".")
    component = unwrap(getattr(model, first))
    return unwrap(component.get_submodule(rest)) if rest else component


def named_modules(model: Model) -> Iterator[tuple[str, nn.Module]]:
    """Every module of a model with its path. The paths of a pipeline begin with the names of its components."""
    if isinstance(model, nn.Module):
        yield from model.named_modules()
        return
    for first, component in model.components.items():
        if isinstance(component, nn.Module):
            for rest, module in unwrap(component).named_modules():
                yield f"{first}.{rest}".rstrip("."), module
