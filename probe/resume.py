"""Finishes a recorded run that was interrupted, so that its trace equals that of an uninterrupted run.

Each finished step has its latents in the sampler's own precision, and nothing else passes from step to step. So the
rest of the run is bit-identical if the same program computes it in the same way. Whatever could round differently
(other weights, packages, threads, device) is refused with the reason.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from toushi.probe.base.errors import ToushiError
from toushi.probe.editing.editing import edit, edits_of_manifest
from toushi.probe.models.cpu_threads import cpu_threads
from toushi.probe.models.mini_unet import MiniUNet
from toushi.probe.pipelines.family import Model
from toushi.probe.pipelines.generate import StepCallback
from toushi.probe.recording.policy import DEFAULT_BUDGET, Policy, kept_words
from toushi.probe.recording.provenance import environment
from toushi.probe.recording.record import Recording
from toushi.probe.trace.open import open_trace
from toushi.probe.trace.picture_trace import Trace
from toushi.probe.trace.trace_format import CONCEPTS
from toushi.probe.trace.writer import TraceWriter


class CannotResume(ToushiError):
    """The run cannot be finished in the way in which it would have ended."""


def resume(model: Model, folder: str | Path, callback: StepCallback | None = None) -> Image.Image:
    """The picture of the run whose trace is in the folder. The run is finished, and its trace is then complete.

    Every array of the trace is bit-identical to that of an uninterrupted run; only durations differ. `callback(index,
    latents)` is called after each step. Raises CannotResume.
    """
    trace = open_trace(folder)
    manifest = trace.manifest
    model = check_resumable(model, trace)
    prompt, negative = manifest.prompt, manifest.negative_prompt or ""
    assert prompt is not None and manifest.edits is not None and manifest.kept is not None  # checked before
    done = trace.steps
    arguments: dict[str, Any] = {
        "steps": manifest.steps.count,
        "guidance": manifest.guidance,
        "sampler": manifest.sampler,
        "size": manifest.size,
        "seed": manifest.seed,
        "callback": callback,
    }
    if done:
        latent = trace.latent(done[-1])
        assert latent is not None, "each finished step has its latents"
        arguments["latents"] = torch.from_numpy(latent.values.copy())[None]
        arguments["first_step"] = done[-1] + 1
    edits = edits_of_manifest(manifest.edits)
    editing = edit(model, edits) if edits else nullcontext()
    if done and not _missing_steps(trace):  # the steps that are left, if any, are not recorded
        with editing:
            picture = model.sample(prompt, negative, **arguments)
        with TraceWriter(folder, manifest, resume=trace.files) as writer:
            writer.write_image(picture)
        return picture
    kept = manifest.kept
    policy = Policy(
        trace.keep,
        kept_words(kept.words),
        None if manifest.steps.recorded is None else tuple(manifest.steps.recorded),
        tuple(branch for branch in trace.branches if branch != CONCEPTS),
        kept.dtype or Policy.dtype,
        DEFAULT_BUDGET if kept.budget is None else kept.budget,
        bool(kept.pads),
    )
    concepts = (trace.manifest.concepts or "").splitlines()
    recording = Recording(model, Path(folder), policy, list(trace.sites), resumed=trace.files, concepts=concepts)
    with recording, editing:
        return model.sample(prompt, negative, **arguments)


def _missing_steps(trace: Trace) -> list[int]:
    """Steps that are still to be recorded."""
    recorded = trace.manifest.steps.recorded
    last = trace.steps[-1]
    return [step for step in recorded or range(trace.manifest.steps.count) if step > last]


def check_family(trace: Trace) -> None:
    """Raises CannotResume for a run that no model can finish. No model has to be loaded for it."""
    family = trace.manifest.family
    if family not in (None, "mini-unet"):
        raise CannotResume(
            f"{trace.folder} was sampled by {family}, whose scheduler keeps state between steps; only runs of mini-unet "
            "and its twins can be finished. Its finished steps can be read; sample it again for the rest."
        )


def check_resumable(model: Model, trace: Trace) -> MiniUNet:
    """The model. Raises CannotResume, with the reason, if it cannot finish this run here."""
    manifest, folder = trace.manifest, trace.folder
    if trace.complete:
        raise CannotResume(f"{folder} is complete: there is nothing to finish.")
    needed = ("prompt", "seed", "guidance", "sampler", "size", "kept", "batch", "model", "versions", "threads", "edits")
    if unknown := [name for name in needed if getattr(manifest, name) is None]:
        raise CannotResume(
            f"{folder} does not say its {' and '.join(unknown)} (it was not sampled by the model's own `sample`, or by "
            "an older Toushi): sample it again."
        )
    assert manifest.model is not None and manifest.versions is not None
    if manifest.batch != 1:
        raise CannotResume(
            f"{folder} is one of {manifest.batch} pictures of one batch, and alone it would round differently: sample "
            "them again."
        )
    check_family(trace)
    if not isinstance(model, MiniUNet):
        raise CannotResume(f"{folder} was sampled by mini-unet or one of its twins: name it with --model.")
    with cpu_threads(model.threads):
        here: dict[str, Any] = environment(model)
    if here["model"]["weights_sha256"] is None:
        raise CannotResume("the weights of this model were never saved, so they cannot be compared: sample it again.")
    pairs = [("weights", here["model"]["weights_sha256"], manifest.model.weights_sha256)]
    pairs += [(name, here[name], getattr(manifest, name)) for name in ("threads", "device", "dtype")]
    versions = {**manifest.versions, **here["versions"]}
    pairs += [(name, here["versions"].get(name), manifest.versions.get(name)) for name in versions]
    for name, now, then in pairs:
        if now != then:
            advice = {
                "threads": f"Load the model with threads={then}, or sample it again.",
                "weights": f"Load the model that it was sampled by, {manifest.model.name} of revision "
                f"{manifest.model.revision} (--model), or sample it again.",
            }
            raise CannotResume(
                f"{folder} was begun with {name} {then}; here it is {now}, which may round differently. "
                f"{advice.get(name, 'Sample it again.')}"
            )
    return model
