"""What can be wrong with a trace, for whoever reads or writes one."""

from toushi.probe.base.errors import ToushiError


class NoTrace(ToushiError):
    """The folder holds no trace."""


class DamagedTrace(ToushiError):
    """The folder holds something that the format does not allow."""


class NewerTrace(ToushiError):
    """The trace was written in a format that this version does not know."""


class NotAPicture(ToushiError):
    """A trace of a picture was expected, but the trace is of a text encoder."""


class NotAnEncoder(ToushiError):
    """A trace of a text encoder was expected, but the trace is of a picture."""


class NotRecorded(ToushiError):
    """The trace is intact, but it does not hold what was asked for."""


class BadRecord(ToushiError):
    """The writer was given something that does not fit the manifest."""


class WriteFailed(ToushiError):
    """The trace cannot be written there, or writing it failed. What is finished can be read."""
