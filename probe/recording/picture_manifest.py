"""The manifest of one picture of a run, for the trace writer."""

from collections.abc import Mapping
from typing import Protocol, TypedDict

from toushi.probe.pipelines.family import SiteKind
from toushi.probe.pipelines.lora import lora_scale
from toushi.probe.recording.policy import KeptColumns
from toushi.probe.recording.provenance import entry_of_picture, environment
from toushi.probe.recording.recording_plan import RecordingPlan
from toushi.probe.recording.unrecordable import Unrecordable
from toushi.probe.session.row_matching import PromptKey
from toushi.probe.session.subscriber import Run, Session
from toushi.probe.text.alignment import segment
from toushi.probe.trace.trace_format import CONCEPTS


class SiteEntry(TypedDict):
    """Of a site in the manifest."""

    kind: SiteKind
    grid: list[int] | None
    heads: int | None


class RunFacts(Protocol):
    """What a recorder knows about a run at its first recorded step."""

    plan: RecordingPlan
    session: Session
    run: Run
    metadata: Mapping[str, object]  # of the family: guidance, sampler, seed, …
    recorded_steps: list[int]
    keep: str | None
    keep_reason: str | None
    columns: dict[PromptKey, KeptColumns]
    site_entries: dict[str, SiteEntry]
    left_out: dict[str, str]  # site -> why it was not recorded
    kernels: set[str]
    threads: int

    @property
    def grid(self) -> tuple[int, int]:
        """The finest one; (0, 0) if no step was recorded."""
        ...


def picture_manifest(recorder: RunFacts, picture: int, count: int) -> dict[str, object]:
    """Fields of the manifest of one picture of a batch of `count`, as known at the first recorded step.

    Raises Unrecordable if a subscriber describes one of them.
    """
    plan, session, run, grid = recorder.plan, recorder.session, recorder.run, recorder.grid
    model, family, policy = plan.model, plan.family, plan.policy
    prompts = {branch: encoded[picture].prompt for branch, encoded in session.prompts.items()}
    heads = {name: getattr(plan.sites[name].module, "heads", None) for name in plan.site_names("encoder")}
    encoder = {name: SiteEntry(kind="encoder", grid=None, heads=number) for name, number in heads.items()}
    pixels = family.cell_pixels(model)
    parent = None if plan.resumed is None else plan.resumed.manifest.parent
    described = {"edits": [], "parent": parent and parent.model_dump(), **session.describe()}
    asked = entry_of_picture(run.arguments.get("prompt"), picture, count)
    fields = {
        **environment(model, lora_scale(run.arguments)),
        "threads": recorder.threads,
        "prompt": prompts.get("cond"),
        "negative_prompt": prompts.get("uncond"),
        "concepts": plan.concepts and plan.concepts.prompt.prompt,
        **({} if asked is None or asked == prompts.get("cond") else {"asked": asked}),
        "branches": _branches(recorder, picture),
        "sites": {**encoder, **recorder.site_entries},
        "family": family.name,
        "not_recorded": family.not_recorded(model) | recorder.left_out,
        "keep": recorder.keep or "heads",
        "steps": {
            "count": run.count,
            "times": run.times(picture),
            "recorded": None if len(recorder.recorded_steps) == run.count else recorder.recorded_steps,
        },
        "evaluations": max(run.evaluations.values(), default=None),
        "kept_evaluation": "first",
        "size": [grid[0] * pixels, grid[1] * pixels] if grid[0] else None,
        "kernel": ", ".join(sorted(recorder.kernels)) or None,
        "heat_map": getattr(model, "heat_map", None),
        "batch": count,
        "batch_index": picture,
        "safety": None if getattr(model, "safety_checker", None) is None else "not run",
        "kept": {
            "keep": policy.keep,
            "keep_reason": recorder.keep_reason or (None if policy.keep else "the run ended before its size was known"),
            "words": policy.words,
            "dtype": policy.dtype,
            "pads": policy.pads,
            "budget": policy.budget,
        },
        **{name: entry_of_picture(value, picture, count) for name, value in recorder.metadata.items()},
    }
    if own := sorted(fields.keys() & described.keys()):
        raise Unrecordable(f"a subscriber describes the manifest field {own[0]!r}, which a recording writes: rename it")
    return fields | described


def _branches(recorder: RunFacts, picture: int) -> dict[str, dict[str, object]]:
    """Tokens, words and kept columns of each branch, in the family's order."""
    plan, selected = recorder.plan, recorder.plan.policy.branches
    branches, concepts = {}, {}
    for branch, number in recorder.columns:
        if branch == CONCEPTS:
            assert plan.concepts is not None
            concepts[branch] = {"tokens": plan.concepts.prompt.tokens, "words": plan.concepts.words, "columns": None}
        elif number == picture and (selected is None or branch in selected):
            prompt, columns = recorder.session.prompts[branch][picture], recorder.columns[branch, number]
            branches[branch] = {
                "tokens": prompt.tokens,
                "words": segment(prompt.prompt) if prompt.prompt is not None else [],
                "cut": prompt.cut,
                "columns": None if plan.policy.words is None else columns.single,
                "pad_columns": columns.pads or None,
            }
    if not branches:
        present = ", ".join(dict.fromkeys(branch for branch, _ in recorder.columns)) or "none"
        raise Unrecordable(
            f"expected a branch {' or '.join(selected or ())}, but this run has {present} (is guidance off?)"
        )
    return {branch: branches[branch] for branch in plan.family.branches if branch in branches} | concepts
