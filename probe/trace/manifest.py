"""manifest.json, typed: `Manifest` of a picture, `EncoderManifest` of texts. docs/trace-format.md describes the folder."""

import shlex
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toushi.probe.base.atomic_io import FileDigest
from toushi.probe.text import alignment
from toushi.probe.trace.branch_tokens import Branch, check_spans, check_words
from toushi.probe.trace.strict_model import (
    Counts,
    Length,
    NamedTexts,
    Number,
    Numbers,
    Pair,
    StrictModel,
    Texts,
    limit,
    mismatch,
    validate,
)
from toushi.probe.trace.trace_errors import DamagedTrace, NewerTrace
from toushi.probe.trace.trace_format import CONCEPTS, FIRST_VERSION, FORMAT, NEGATIVE, VERSION
from toushi.probe.trace.trace_json import Json, short

SiteName = Annotated[str, Field(pattern=r"^[^\s/\x00-\x1f]{1,300}$")]
BranchName = Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]
FileName = Literal["encoder.safetensors", "image.png"]
NEWER_KINDS = {"unknown", "image"}  # of tokens, from version 2
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


# --- the run --------------------------------------------------------------------------------------------


class Site(StrictModel):
    """A module whose attention was recorded."""

    kind: Literal["cross", "self", "encoder"] = Field(
        description="cross: image to text; self: image to image; encoder: text to text."
    )
    grid: Pair | None = Field(description="Rows and columns of latent cells; null for an encoder.")
    heads: Length | None

    @model_validator(mode="after")
    def _maps_have_a_grid(self) -> Self:
        if self.grid is None and self.kind != "encoder":
            raise mismatch("grid", "[rows, columns]", None)
        return self


class Steps(StrictModel):
    count: Annotated[int, Field(ge=0, le=1_000_000)] = Field(description="Steps of the run.")
    times: Numbers | None = Field(
        None, description="The model's time at each step; one more at the end is the time after the last."
    )
    recorded: Counts | None = Field(None, description="The steps that were asked for; null: all.")

    @model_validator(mode="after")
    def _recorded_steps_exist(self) -> Self:
        if self.recorded is not None and not all(step < self.count for step in self.recorded):
            raise mismatch("recorded", f"a list of steps below {self.count}, or null", self.recorded)
        return self


class FileEntry(StrictModel):
    bytes: Annotated[int, Field(ge=0, le=2**60)]
    sha256: Digest


class ModelIdentity(StrictModel):
    name: str | None = Field(None, description="Of a shipped model, a hub id, or the name of the model's folder.")
    revision: str | None = None
    weights_sha256: str | None = None


class Parent(StrictModel):
    """The trace whose run was made again with changes."""

    name: str = Field(description="Of its folder.")
    manifest_sha256: Digest


class Lora(StrictModel):
    name: str | None = None
    file: str | None = None
    sha256: str | None = None
    scale: object = Field(None, description="A number, or a list where layers have different scales.")
    on: bool | None = None
    fused: bool | None = Field(None, description="Into the weights. A fused one ignores the scale of the call.")
    weights_sample_sha256: str | None = Field(None, description="Of some numbers of each of its weights.")
    parts: Texts | None = Field(None, description="The parts of the pipeline that it changes.")


class Component(StrictModel):
    """A part of the model as it was in memory: a module, the scheduler, an image processor, or the pipeline itself."""

    type: str = Field(description="The name of its class.")
    config: dict[str, object] | None = None
    dtype: str | None = Field(None, description="Of its first weight.")
    compiled: bool | None = Field(None, description="By torch.compile. Recorded steps run uncompiled.")
    settings: dict[str, object] | None = Field(
        None, description="Attributes of the modules inside that are on: a value, or a list of the different values."
    )
    weights_sample_sha256: str | None = Field(
        None,
        description="Of some numbers of each weight; null: they were not in memory. LoRAs count once they are fused.",
    )
    weights_sha256: str | None = Field(None, description="Of all weights, if it was asked for.")


class HeatMapRule(StrictModel):
    """A better default than the mean over all sites, from the model's card."""

    sites: Texts = Field(description="Globs of the sites that are averaged.", min_length=1, max_length=1000)
    rule: str = Field(description="How they are averaged, in words.")


class Kept(StrictModel):
    """What the recorder was asked to keep."""

    keep: str | None = Field(None, description="heads, mean or sum; null: heads where they fit the budget, else mean.")
    keep_reason: str | None = Field(None, description="Why heads or mean was chosen, if that was left open.")
    words: list[object] | None = Field(None, description="As they were named; null: all.")
    dtype: str | None = Field(None, description="Of the stored maps.")
    budget: int | None = Field(None, description="Bytes on disk.")
    pads: bool | None = Field(None, description="Whether each column of padding was to be kept by itself.")


# --- manifests ------------------------------------------------------------------------------------------


class TraceManifest(StrictModel):
    """What traces of both kinds have."""

    format: Literal["toushi-trace"]
    version: int = Field(description="Of the format.")
    kind: Literal["picture", "encoder"]
    complete: bool = Field(description="Whether the run came to its end.")
    model: ModelIdentity | None = None
    segmenter: dict[str, object] | None = Field(None, description="What cut the text into words: name, version, …")
    device: str | None = None
    gpu: NamedTexts | None = Field(None, description="The card, its driver, and the versions of CUDA and cuDNN.")
    dtype: str | None = Field(None, description="Of the model's numbers.")
    autocast: str | None = Field(None, description="The dtype of torch.autocast; null: it was off.")
    torch_settings: dict[str, object] | None = Field(None, description="Settings of torch that change rounding.")
    threads: int | None = None
    versions: NamedTexts | None = Field(None, description="Of Python and the packages.")
    git: str | None = Field(None, description="The commit, with + if files were changed since.")
    argv: Texts | None = Field(None, description="The command, if it was toushi's; without secrets.")

    @property
    def name_of_model(self) -> str | None:
        return None if self.model is None else self.model.name


class Manifest(TraceManifest):
    """A picture: what makes it again, and what was recorded of it."""

    kind: Literal["picture"]
    prompt: str | None = Field(description="null: the run was given ready-made embeddings.")
    negative_prompt: str | None = None
    concepts: str | None = Field(None, description="Texts outside the prompt, one a line: the branch `concepts`.")
    asked: object = Field(None, description="The argument `prompt`, if the text columns are not labelled by it.")
    prompt_2: str | None = Field(None, description="The prompt for the second encoder, if it was given.")
    prompt_3: str | None = Field(None, description="The prompt for the third encoder, if it was given.")
    negative_prompt_2: str | None = None
    negative_prompt_3: str | None = None
    branches: Annotated[dict[BranchName, Branch], limit(16)]
    sites: Annotated[dict[SiteName, Site], limit(10_000)]
    keep: Literal["heads", "mean", "sum"] = Field(
        description="Every head; the mean over heads; the mean over heads, summed over steps."
    )
    steps: Steps
    kept: Kept | None = None
    family: str | None = Field(None, description="The family of pipelines that it was recorded as.")
    loading: dict[str, object] | None = Field(None, description="How the pipeline was loaded: dtype, offload, ….")
    arguments: dict[str, object] | None = Field(
        None,
        description="Of the sampling call, without those that have their default. Tensors, images and other large "
        "values: their type, shape and SHA-256.",
    )
    components: dict[str, Component] | None = Field(None, description="The parts of the model as they were in memory.")
    loras: Annotated[list[Lora], Field(fail_fast=True)] | None = None
    not_recorded: NamedTexts | None = Field(None, description="Glob -> why that attention has no site.")
    not_computed: dict[SiteName, Counts] | None = Field(
        None,
        description="Site -> recorded steps at which the model did not compute its attention, for a cache reused an "
        "earlier result. The trace has no maps there.",
    )
    uncompiled: Texts | None = Field(None, description="Compiled parts, which computed uncompiled for the recording.")
    evaluations: int | None = Field(None, description="Evaluations of the denoiser in one step.")
    kept_evaluation: str | None = Field(None, description="The evaluation whose maps were kept.")
    guidance: Number | None = None
    true_guidance: Number | None = Field(None, description="Guidance by a negative prompt, if a model has two kinds.")
    strength: Number | None = Field(None, description="Of image-to-image, or the noise of a picture that was traced.")
    denoising_start: Number | None = Field(None, description="Share of the schedule at which the run began, if given.")
    denoising_end: Number | None = Field(None, description="Share of the schedule at which the run ended, if given.")
    source_image_sha256: str | None = Field(None, description="Of the pixels of the source image, if there was one.")
    inversion: dict[str, Number] | None = Field(None, description="Steps and PSNR (dB) of a picture that was inverted.")
    sampler: str | None = None
    seed: int | None = Field(None, description="null: not known, or not enough, for the generator was used before.")
    generator_state: str | None = Field(
        None, description="If the generator was used before: generator.get_state() before the call, in base64."
    )
    size: Pair | None = Field(None, description="Height and width in pixels.")
    batch: int | None = Field(None, description="How many pictures were sampled together, with this one.")
    batch_index: int | None = Field(None, description="The place in the batch, from 0.")
    edits: Annotated[list[dict[str, object]], Field(fail_fast=True)] | None = None
    parent: Parent | None = Field(None, description="The trace of which this run is an edited copy.")
    safety: str | None = Field(None, description="passed, blocked or not run. null: there is no checker.")
    heat_map: HeatMapRule | None = None
    kernel: str | None = Field(None, description="The attention kernel.")
    files: Annotated[dict[FileName, FileEntry], limit(16)] = Field(
        default_factory=dict, description="Added by the writer."
    )

    @model_validator(mode="after")
    def _spans_fit_the_prompts(self) -> Self:
        for name, branch in self.branches.items():
            if self.version < 2 and branch.pad_columns is not None:
                wanted = "null in version 1 of the format"
                raise mismatch(f"branches.{name}.pad_columns", wanted, branch.pad_columns)
            if self.version < 2 and (kinds := NEWER_KINDS & {token.kind for token in branch.tokens}):
                raise mismatch(f"branches.{name}.tokens", "only kinds of version 1 of the format", sorted(kinds))
            prompt = self.prompt_of(name) or ""
            check_spans(branch.tokens, len(prompt), f"branches.{name}.tokens")
            check_words(branch.words, prompt, f"branches.{name}.words")
        return self

    def list_file(self, name: FileName, entry: FileDigest) -> None:
        """Adds a finished file."""
        self.files = {**self.files, name: FileEntry(**entry)}

    def oldest_version(self) -> int:
        """The oldest format version whose readers understand these maps."""
        branches = self.branches.values()
        newer = any(token.kind in NEWER_KINDS for branch in branches for token in branch.tokens)
        return VERSION if newer or any(branch.pad_columns for branch in branches) else FIRST_VERSION

    def prompt_of(self, branch: str) -> str | None:
        """The text whose characters the spans of a branch count."""
        if branch == CONCEPTS:
            return self.concepts
        return self.negative_prompt if branch in NEGATIVE else self.prompt

    def tokens_of(self, branch: str) -> list[alignment.Token]:
        return [entry.token() for entry in self.branches[branch].tokens]

    def words_of(self, branch: str) -> list[alignment.Word]:
        return [entry.word() for entry in self.branches[branch].words]

    def step_shapes(self, key: str) -> list[tuple[int, ...]] | None:
        """The shapes that a tensor of this name may have in a step file, where -1 is any length from 1. None: no such name."""
        if key == "latent":
            return [(-1, -1, -1)]
        if key == "preview":
            return [(-1, -1, 3)]
        name, _, tail = key.partition("/")
        branch, _, rest = tail.partition("/")
        site = self.sites.get(name)
        if site is None or site.grid is None or branch not in self.branches or rest not in ("", "rest"):
            return None
        rows, columns = site.grid
        middle = rows * columns if site.kind == "self" else len(self.branches[branch].place_columns())
        averaged = (rows, columns) if rest else (middle, rows, columns)
        by_head = (site.heads or -1, *averaged)
        return {"heads": [by_head], "mean": [averaged], "sum": [averaged, by_head]}[self.keep]


class EncoderManifest(TraceManifest):
    """States and attention of one text encoder for many texts."""

    kind: Literal["encoder"]
    count: Annotated[int, Field(ge=0, le=10**7)] = Field(description="Texts.")
    layers: Annotated[int, Field(ge=0, le=10**4)] = Field(description="States are numbered 0..layers.")
    heads: Annotated[int, Field(ge=1, le=10**4)] | None = Field(
        None, description="null: the attention could not be read, or was not asked for."
    )
    width: Annotated[int, Field(ge=0, le=10**6)] = Field(description="Features of a state.")


# --- reading --------------------------------------------------------------------------------------------


def check_manifest(raw: Json, where: str) -> Manifest:
    """The manifest of a picture. Raises DamagedTrace, NewerTrace."""
    _check_head(raw, where)
    return validate(Manifest, raw, where)


def check_encoder_manifest(raw: Json, where: str) -> EncoderManifest:
    """The manifest of texts. Raises DamagedTrace, NewerTrace."""
    _check_head(raw, where)
    return validate(EncoderManifest, raw, where)


def check_version(raw: Mapping[str, Json], where: str) -> None:
    """Raises DamagedTrace or NewerTrace unless this version can be read."""
    version = raw.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version < 10**9:
        raise DamagedTrace(f"{where}: version must be a whole number from 1; {short(version)} is there.")
    if version > VERSION:
        raise NewerTrace(
            f"{where} has format version {version}; this Toushi reads up to {VERSION}. Open it with a newer Toushi."
        )


def _check_head(raw: Json, where: str) -> None:
    """Checks format, version and kind, which decide how the rest is read. Raises DamagedTrace, NewerTrace."""
    if not isinstance(raw, dict):
        raise DamagedTrace(f"{where}: the manifest must be a JSON object; {short(raw)} is there.")
    if (came := raw.get("format")) != FORMAT:
        folder = shlex.quote(where.removesuffix("/manifest.json"))
        study = f" It is the result of a study: toushi report {folder} shows it." if came == "toushi-run" else ""
        raise DamagedTrace(f'{where}: format must be "{FORMAT}"; {short(came)} is there, so this is no trace.{study}')
    check_version(raw, where)
    if (came := raw.get("kind")) not in ("picture", "encoder"):
        raise DamagedTrace(f'{where}: kind must be "picture" or "encoder"; {short(came)} is there.')
