"""Going on with a recorded run that was broken off, so that nothing tells it from one that was not.

Each finished step holds its latents in the sampler's own precision, and nothing else passes from step to step, so the
rest of the run is the same to the last bit if the same program computes it in the same way. What could round
differently (other weights, packages, threads, device) is refused with the reason.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from toushi.probe.base.errors import ToushiError
from toushi.probe.editing.edit import edit, edits_of_manifest
from toushi.probe.models.cpu_threads import cpu_threads
from toushi.probe.pipelines.registry import family_of
from toushi.probe.recording.policy import DISK, Policy
from toushi.probe.recording.provenance import environment
from toushi.probe.recording.record import Recording
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.writer import TraceWriter


class CannotResume(ToushiError):
    """The run cannot be gone on with so that it ends as it would have ended."""


def resume(model, folder: str | Path, callback: Callable | None = None):
    """Finishes the run whose trace is in the folder, and returns its picture (PIL).

    The trace is then what it would have been, bit for bit in every array; only times on the clock differ.
    `callback(index, latents)` is called after each step. Raises CannotResume.
    """
    trace = open_trace(folder)
    manifest = trace.manifest
    check(model, trace)
    assert manifest.size is not None and manifest.edits is not None and manifest.kept is not None  # or check refuses
    steps, done = manifest.steps.count, trace.steps
    how = {
        "steps": steps,
        "guidance": manifest.guidance,
        "sampler": manifest.sampler,
        "size": manifest.size,
        "seed": manifest.seed,
        "callback": callback,
    }
    if done:
        how["latents"] = torch.from_numpy(trace.latent(done[-1]).values.copy())[None]
        how["first_step"] = done[-1] + 1
    draw = (manifest.prompt, manifest.negative_prompt or "")
    edits = edits_of_manifest(manifest.edits)
    edited = edit(model, edits) if edits else nullcontext()
    if done and not _missing(trace):  # only steps that are not kept, if any, and the picture
        with edited:
            picture = model.sample(*draw, **how)
        with TraceWriter(folder, manifest, resume=trace.files) as writer:
            writer.write_image(picture)
        return picture
    kept, recorded = manifest.kept, manifest.steps.recorded
    words = None if kept.words is None else tuple(map(_word, kept.words))
    recorded, budget = None if recorded is None else tuple(recorded), DISK if kept.budget is None else kept.budget
    policy = Policy(trace.keep, words, recorded, tuple(trace.branches), kept.dtype or Policy.dtype, budget)
    with Recording(model, Path(folder), policy, list(trace.sites), resumed=trace.files), edited:
        return model.sample(*draw, **how)


def _missing(trace: Trace) -> list[int]:
    """Steps that are still to be recorded."""
    recorded = trace.manifest.steps.recorded
    last = trace.steps[-1]
    return [step for step in recorded or range(trace.manifest.steps.count) if step > last]


def _word(raw):
    """A word as it was asked for: its text, or its span."""
    if isinstance(raw, dict):
        return raw["start"], raw["end"]
    return tuple(raw) if isinstance(raw, list) else raw


def check_family(trace: Trace) -> None:
    """Raises CannotResume for a run that no model can go on with; it needs none loaded."""
    family = trace.manifest.family
    if family not in (None, "mini-unet"):
        raise CannotResume(
            f"{trace.folder} was drawn by {family}, which keeps state of its own between steps; only runs of mini-unet "
            "and its twins can be gone on with. What is finished can be read; draw it again for the rest."
        )


def check(model, trace: Trace) -> None:
    """Raises CannotResume, with the reason, if this run cannot be gone on with by this model here."""
    manifest, where = trace.manifest, trace.folder
    if trace.complete:
        raise CannotResume(f"{where} is complete: there is nothing to go on with.")
    needed = ("prompt", "seed", "guidance", "sampler", "size", "kept", "batch", "model", "versions", "threads", "edits")
    if unknown := [name for name in needed if getattr(manifest, name) is None]:
        raise CannotResume(
            f"{where} does not say its {' and '.join(unknown)} (it was not drawn by the model's own `sample`, or by an "
            "older Toushi): draw it again."
        )
    assert manifest.model is not None and manifest.versions is not None
    if manifest.batch != 1:
        raise CannotResume(
            f"{where} is one of {manifest.batch} pictures drawn in one batch, and alone it would round "
            "differently: draw them again."
        )
    check_family(trace)
    if family_of(model).name != "mini-unet":
        raise CannotResume(f"{where} was begun with mini-unet or one of its twins: name it with --model.")
    with cpu_threads(model.threads):
        now = environment(model)
    if now["model"]["weights_sha256"] is None:
        raise CannotResume("the weights of this model were never saved, so they cannot be compared: draw it again.")
    pairs = [("weights", now["model"]["weights_sha256"], manifest.model.weights_sha256)]
    pairs += [(name, now[name], getattr(manifest, name)) for name in ("threads", "device", "dtype")]
    versions = {**manifest.versions, **now["versions"]}
    pairs += [(name, now["versions"].get(name), manifest.versions.get(name)) for name in versions]
    for name, here, there in pairs:
        if here != there:
            hints = {
                "threads": f"Load the model with threads={there}, or draw it again.",
                "weights": f"Load the model that it was begun with, {manifest.model.name} of revision "
                f"{manifest.model.revision} (--model), or draw it again.",
            }
            raise CannotResume(
                f"{where} was begun with {name} {there}; here it is {here}, which may round differently. "
                f"{hints.get(name, 'Draw it again.')}"
            )
