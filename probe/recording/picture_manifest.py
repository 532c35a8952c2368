"""The manifest of one picture of a run, as the recorder hands it to the writer."""

from typing import TYPE_CHECKING, Any

from toushi.probe.recording.provenance import environment, value_of_picture
from toushi.probe.recording.unrecordable import Unrecordable
from toushi.probe.text.alignment import segment

if TYPE_CHECKING:
    from toushi.probe.recording.run_recorder import RunRecorder


def picture_manifest(recorder: "RunRecorder", picture: int, count: int) -> dict[str, Any]:
    """Fields of the manifest of picture number `picture` of a batch of `count`."""
    model, family, policy, run = recorder.recording.model, recorder.family, recorder.policy, recorder.run
    prompts = {branch: encoded[picture].prompt for branch, encoded in recorder.session.prompts.items()}
    encoder = {
        name: {"kind": "encoder", "grid": None, "heads": getattr(site.module, "heads", None)}
        for name, site in recorder.recording.selected.items()
        if site.kind == "encoder"
    }
    pixels, grid = family.cell_pixels(model), recorder.grid
    return {
        **environment(model),
        "threads": recorder.threads,
        "edits": [],
        **recorder.session.describe(),
        "prompt": prompts.get("cond"),
        "negative_prompt": prompts.get("uncond"),
        "branches": _branches(recorder, picture),
        "sites": encoder | recorder.site_info,
        "family": family.name,
        "not_recorded": family.not_recorded(model),
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
        "safety": None if getattr(model, "safety_checker", None) is None else "not run",
        "kept": {
            "keep": policy.keep,
            "keep_reason": recorder.keep_reason or (None if policy.keep else "the run ended before its size was known"),
            "words": policy.words,
            "dtype": policy.dtype,
            "pads": policy.pads,
            "budget": policy.budget,
        },
        **{name: value_of_picture(value, picture, count) for name, value in recorder.metadata.items()},
    }


def _branches(recorder: "RunRecorder", picture: int) -> dict[str, dict]:
    """Tokens, words and kept columns of each branch, in the family's order."""
    policy, wanted = recorder.policy, recorder.policy.branches
    branches = {}
    for branch, number in recorder.columns:
        if number == picture and (wanted is None or branch in wanted):
            prompt = recorder.session.prompts[branch][picture]
            branches[branch] = {
                "tokens": prompt.tokens,
                "words": segment(prompt.prompt) if prompt.prompt is not None else [],
                "columns": None if policy.words is None else recorder.columns[branch, number].single,
                "pad_columns": recorder.columns[branch, number].pads or None,
            }
    if not branches:
        present = ", ".join(dict.fromkeys(branch for branch, _ in recorder.columns)) or "none"
        raise Unrecordable(
            f"expected a branch {' or '.join(wanted or ())}, but this run has {present} (guidance of 1?)"
        )
    return {branch: branches[branch] for branch in recorder.family.branches if branch in branches}
