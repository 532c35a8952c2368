"""Makes the run of a trace again with changes, and compares the new trace with it.

    edit_run("runs/cat", "runs/no-cat", remove=["猫"])

Everything else is as the manifest of the trace says: model, prompt, seed, steps, guidance, sampler, size, edits. The
manifest of the new trace names the old one as its parent.
"""

import fnmatch
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

from toushi.probe.base.errors import ToushiError
from toushi.probe.editing.editing import Edit, edit, edits_of_manifest
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.family import Model
from toushi.probe.pipelines.generate import StepCallback, generate
from toushi.probe.pipelines.load import load_model
from toushi.probe.pipelines.load_options import LoadOptions
from toushi.probe.pipelines.model_index import UnknownModel
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.policy import DEFAULT_BUDGET, Policy, kept_words
from toushi.probe.recording.provenance import environment
from toushi.probe.recording.record import record
from toushi.probe.session.sampling_session import subscribe
from toushi.probe.session.subscriber import Subscriber
from toushi.probe.text.alignment import WordSpec, find_word, list_words, segment
from toushi.probe.text.word_changes import replace_words
from toushi.probe.trace.comparison import Comparison, compare
from toushi.probe.trace.manifest import Kept, Manifest
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.output_dir import check_output_dir
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.trace_format import CONCEPTS, MANIFEST

Direction = Literal["left", "right", "up", "down"]
SHIFTS: dict[str, tuple[float, float]] = {"left": (0, -0.5), "right": (0, 0.5), "up": (-0.5, 0), "down": (0.5, 0)}
# Arguments of a sampling call that `generate` gives again, or that do not change the picture.
GIVEN = {
    *("prompt", "negative", "negative_prompt", "steps", "num_inference_steps", "seed", "generator", "sampler"),
    *("guidance", "guidance_scale", "true_cfg_scale", "size", "height", "width", "use_resolution_binning"),
    *("callback", "callback_steps", "callback_on_step_end", "callback_on_step_end_tensor_inputs"),
    *("output_type", "return_dict"),
}


class CannotRepeat(ToushiError):
    """The run of a trace cannot be made again."""


def edit_run(
    trace: Trace | str | Path,
    folder: str | Path,
    *,
    without: WordSpec | Sequence[WordSpec] = (),
    swap: Mapping[str, str] | None = None,
    remove: WordSpec | Sequence[WordSpec] = (),
    scale: Mapping[str, float] | None = None,
    move: Mapping[str, Direction] | None = None,
    keep_only: str | Sequence[str] = (),
    knock_out: str | Sequence[str] = (),
    head: int | Sequence[int] | None = None,
    edits: Sequence[Edit] = (),
    model: Model | str | None = None,
    overwrite: bool = False,
    callback: StepCallback | None = None,
) -> Comparison:
    """The comparison of the trace, A, with the new trace in `folder`, B, whose run differs by these changes.

    without    words that are left out of the prompt
    swap       word of the prompt -> the text that replaces it, with any number of tokens
    remove     words to which no image cell attends, at any image-to-text site; the other text gets their attention
    scale      word -> factor of the attention to it, at every image-to-text site; each sum is 1 again
    move       word -> left, right, up or down: its map shifted by half the picture, around the edge
    keep_only  words; of the text, only they are attended to. Special tokens and pads keep their attention
    knock_out  globs of attention sites whose output becomes zero, or with `head` that of these heads, before heads are
               mixed
    edits      more edits, of any kind
    model      the model, or its name or folder; by default the one that the manifest names

    `without` and `swap` come first: all other changes, and the edits that the trace has already, name words of the
    changed prompt. Raises CannotRepeat if the manifest does not tell enough, UnknownWord, AmbiguousWord, BadEdit.
    """
    trace = trace if isinstance(trace, Trace) else open_trace(trace)
    manifest, folder = trace.manifest, Path(folder)
    check_repeatable(trace)
    if trace.folder.resolve().is_relative_to(folder.resolve()):
        raise ToushiError(f"{folder} holds the trace that is edited; write the new one to another folder")
    check_output_dir(folder, overwrite)
    if head is not None and not knock_out:
        raise ToushiError("head needs knock_out: name the site of these heads, such as unet.middle.cross_attention")
    if not any((without, swap, remove, scale, move, keep_only, knock_out, edits)):
        raise ToushiError("there is nothing to change; name a change, such as remove")
    without, remove = list_words(without), list_words(remove)
    keep_only, knock_out = ([texts] if isinstance(texts, str) else texts for texts in (keep_only, knock_out))
    shifts = {word: _shift(direction) for word, direction in (move or {}).items()}
    assert manifest.prompt is not None and manifest.seed is not None  # checked before
    prompt = replace_words(manifest.prompt, [*((word, "") for word in without), *(swap or {}).items()])
    before = [*edits_of_manifest(manifest.edits or []), *edits]
    _check_words(prompt, [*remove, *(scale or {}), *shifts, *keep_only], before)
    model = _load(manifest, model) if model is None or isinstance(model, str) else model
    _check_model(model, trace)

    changes = [*before, *(Edit(glob, "zero", head=head) for glob in knock_out)]
    for glob in _cross_attention(model):
        changes += [Edit(glob, "zero", word=word, renormalise=True) for word in remove]
        changes += [Edit(glob, "scale", word=word, factor=n, renormalise=True) for word, n in (scale or {}).items()]
        changes += [Edit(glob, "move", word=word, shift=shift, renormalise=True) for word, shift in shifts.items()]
        changes += [Edit(glob, "keep_only", word=tuple(keep_only), renormalise=True)] if keep_only else []
    negative, kept = manifest.negative_prompt or "", manifest.kept or Kept.model_validate({})
    recording = record(
        model,
        folder,
        trace.keep,
        kept_words(kept.words) if prompt == manifest.prompt else None,
        list(trace.sites) or None,
        manifest.steps.recorded,
        [branch for branch in trace.branches if branch != CONCEPTS],
        overwrite,
        dtype=kept.dtype or Policy.dtype,
        budget=kept.budget or DEFAULT_BUDGET,
        pads=bool(kept.pads),
        concepts=(manifest.concepts or "").splitlines(),
    )
    with recording, subscribe(model, _Child(trace)), edit(model, changes) if changes else nullcontext():
        generate(
            model,
            prompt,
            negative,
            steps=manifest.steps.count,
            seed=manifest.seed,
            guidance=_guidance(manifest, negative),
            sampler=manifest.sampler if isinstance(model, MiniUNet) else None,
            size=manifest.size,
            callback=callback,
        )
    return compare(trace, folder)


def check_repeatable(trace: Trace) -> None:
    """Raises CannotRepeat, with what the manifest lacks, for a run that cannot be made again. No model is loaded."""
    manifest, folder = trace.manifest, trace.folder
    missing = [name for name in ("model", "prompt", "seed", "size") if getattr(manifest, name) is None]
    if missing:
        raise CannotRepeat(f"{folder} does not say its {' and '.join(missing)}, so the run cannot be made again")
    if manifest.source_image_sha256 is not None or manifest.strength is not None:
        raise CannotRepeat(f"{folder} began from an image, which the trace does not have: edit that run in Python")
    arguments = manifest.arguments or {}
    generator = arguments.get("generator")
    more = sorted(arguments.keys() - GIVEN)
    if isinstance(generator, dict) and generator.get("device", "cpu") != "cpu":
        more.append(f"a generator on {generator['device']}")
    if more:
        raise CannotRepeat(
            f"{folder} was called with {', '.join(more)}, which cannot be given again here: use edit(model, ...) and "
            "record(model, ...) around the same call in Python"
        )
    if manifest.batch not in (None, 1):
        raise CannotRepeat(
            f"{folder} is one of {manifest.batch} pictures of one batch, whose noise belongs together: sample its prompt alone"
        )


class _Child(Subscriber):
    """Notes the trace that was edited in the manifest of the new one."""

    def __init__(self, parent: Trace):
        digest = hashlib.sha256((parent.folder / MANIFEST).read_bytes()).hexdigest()
        self.parent = {"name": parent.folder.resolve().name, "manifest_sha256": digest}

    def describe(self) -> dict[str, object]:
        return {"parent": self.parent}


def _check_words(prompt: str, names: Iterable[WordSpec], edits: Iterable[Edit]) -> None:
    """Raises UnknownWord or AmbiguousWord unless the prompt has each word once."""
    words = segment(prompt)
    of_edits = [word for edit in edits if edit.branch in (None, "cond") for word in edit.words]
    for word in (*names, *of_edits):
        find_word(prompt, words, word)


def _shift(direction: str) -> tuple[float, float]:
    if direction not in SHIFTS:
        raise ToushiError(f"move must be one of {', '.join(SHIFTS)}, but {direction!r} came")
    return SHIFTS[direction]


def _cross_attention(model: Model) -> list[str]:
    """The globs of the model's image-to-text sites."""
    family = family_of(model)
    names = [name for name, site in family.sites(model).items() if site.kind == "cross"]
    return [glob for glob in family.cross_attention if fnmatch.filter(names, glob)]


def _guidance(manifest: Manifest, negative: str) -> float | None:
    """The guidance that `generate` takes. A guidance-distilled pipeline has two kinds, of which one is meant."""
    true = manifest.true_guidance
    return true if true is not None and (negative or true > 1 or manifest.guidance is None) else manifest.guidance


def _load(manifest: Manifest, name: str | None) -> Model:
    """The model that sampled the trace, loaded in the same way. Raises CannotRepeat if that is not possible here."""
    if loras := [lora.file or lora.name for lora in manifest.loras or [] if lora.on is not False]:
        raise CannotRepeat(
            f"the run used the LoRA {loras[0]}, whose file the trace does not have: load the model with it in Python, and "
            "pass it, edit_run(trace, folder, model=pipeline)"
        )
    loading = {
        name: value for name, value in (manifest.loading or {}).items() if name in LoadOptions.__dataclass_fields__
    }
    options: dict[str, Any] = {"device": manifest.device, "dtype": manifest.dtype, **loading, "embedding_cache": None}
    device = str(options["device"] or "cpu")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.partition(":")[0], True):
        raise CannotRepeat(
            f"the run computed on {device}, which this machine does not have: load the model in Python, and pass it, "
            "edit_run(trace, folder, model=pipeline)"
        )
    try:
        return load_model(name or str(manifest.name_of_model), LoadOptions(**options))
    except UnknownModel as error:
        if name is not None:
            raise
        raise CannotRepeat(
            f"the model of the trace, {manifest.name_of_model}, is not here ({error}): name its folder with --model"
        ) from None


def _check_model(model: Model, trace: Trace) -> None:
    """Raises CannotRepeat if it is another model than that of the trace, or has another scheduler."""
    manifest = trace.manifest
    here: Any = environment(model)["model"]
    assert manifest.model is not None  # checked before
    for name in ("weights_sha256", "revision"):
        now, then = here[name], getattr(manifest.model, name)
        if now != then and None not in (now, then):
            raise CannotRepeat(
                f"{trace.folder} was sampled by {manifest.model.name} with {name} {then}; here it is {now}: name the "
                "model's folder with --model"
            )
    scheduler = type(getattr(model, "scheduler", None)).__name__
    if not isinstance(model, MiniUNet) and manifest.sampler not in (None, scheduler):
        raise CannotRepeat(
            f"{trace.folder} was sampled with {manifest.sampler}, and this model has {scheduler}: load the model in "
            "Python, set its scheduler, and pass it, edit_run(trace, folder, model=pipeline)"
        )
