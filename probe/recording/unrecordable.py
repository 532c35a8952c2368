"""A run that cannot be recorded, or not all of it, and why."""

from collections import Counter
from collections.abc import Mapping, Sequence

from toushi.probe.base.errors import ToushiError


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
