"""A run that cannot be recorded, and why."""

from collections.abc import Mapping

from toushi.probe.base.errors import ToushiError


class Unrecordable(ToushiError):
    """The attention of the model cannot be read, or its rows, cells or columns are not the expected ones."""


def unread_message(reasons: Mapping[str, str]) -> str:
    """An error message for sites that could not be read, each with its reason."""
    listed = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
    return f"these sites could not be read: {listed}. Leave them out with sites=…"
