"""A run that cannot be recorded, or not all of it, and why."""

from collections import Counter
from collections.abc import Mapping, Sequence

from toushi.hooks.attention import Call
from toushi.probe.base.errors import ToushiError
from toushi.probe.pipelines.family import DenoiserInputs


class Unrecordable(ToushiError):
    """The attention of the model cannot be read, or its rows, cells or columns are not the expected ones."""


class KeptMean(UserWarning):
    """All heads would not fit the budget, so only their mean is kept."""


class StepsNotComputed(UserWarning):
    """The model did not compute some attention in some steps, so the trace has no maps of it there."""


class SiteLeftOut(UserWarning):
    """An attention of a pipeline of no known family is not recorded, because it is not certain that it is to the text."""


def unread_message(reasons: Mapping[str, str]) -> str:
    """An error message for sites that could not be read, each with its reason."""
    listed = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    return f"these sites could not be read: {listed}. Leave them out with sites=…"


def not_computed_message(steps_of: Mapping[str, Sequence[int]], steps: int, sites: int) -> str:
    """A warning for sites whose attention was not computed at some steps: site -> these steps, of `steps` and `sites`."""
    counts = Counter(step for missing in steps_of.values() for step in missing)
    return (
        f"at {len(counts)} of {steps} recorded steps the model did not compute the attention of up to "
        f"{max(counts.values())} of {sites} sites (a cache reuses earlier results). The trace has no maps there, and means "
        "over steps are over the other steps"
    )


def check_shape(call: Call, kind: str, inputs: DenoiserInputs, rows: int, columns: int) -> int:
    """Number of image cells of the call. Raises Unrecordable if rows, sequence or keys are not the expected ones.

    rows     of the batch, one for each text
    columns  that the keys of the text have at least
    """
    came, _, cells, keys = call.shape
    if came != rows:
        raise Unrecordable(f"{call.site}: expected {rows} rows, one for each text, but {came} came")
    if kind != "cross":
        return cells
    if inputs.joint is not None:
        image = inputs.grid[0] * inputs.grid[1]
        last = max(sequence.image for sequence in inputs.joint) + image
        if cells != keys or cells < last:
            raise Unrecordable(f"{call.site}: expected one sequence of at least {last}, but {cells}x{keys} came")
        cells, columns = image, max(sequence.text + sequence.columns for sequence in inputs.joint)
    if keys < columns:
        raise Unrecordable(f"{call.site}: expected {columns} text columns, but it has {keys} keys")
    if inputs.key_count not in (None, keys):
        raise Unrecordable(
            f"{call.site}: has {keys} keys, and the text has {inputs.key_count} columns: which keys are the text's is not "
            "known. Leave it out with sites=…"
        )
    return cells
