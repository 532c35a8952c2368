"""A run that cannot be recorded, or not all of it, and why."""

from collections.abc import Mapping

from toushi.probe.base.errors import ToushiError


class Unrecordable(ToushiError):
    """The attention of the model cannot be read, or its rows, cells or columns are not the expected ones."""


class StepsNotComputed(UserWarning):
    """The model did not compute some attention in some steps, so the trace has no maps of it there."""


class SiteLeftOut(UserWarning):
    """An attention of a pipeline of no known family is not recorded, because it is not certain that it is to the text."""


def unread_message(reasons: Mapping[str, str]) -> str:
    """An error message for sites that could not be read, each with its reason."""
    listed = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    return f"these sites could not be read: {listed}. Leave them out with sites=…"
