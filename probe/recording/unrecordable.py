"""A run that cannot be recorded, and why."""

from collections.abc import Mapping

from toushi.probe.base.errors import ToushiError


class Unrecordable(ToushiError):
    """The model attends in a way that cannot be read or placed."""


def described(unread: Mapping[str, str]) -> str:
    """An error message for sites that could not be read, each with its reason."""
    listed = "; ".join(f"{name} {why}" for name, why in unread.items())
    return f"these sites could not be read: {listed}. Leave them out with sites=…"
