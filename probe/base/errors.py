"""The error type that a user of Toushi has to catch."""


class ToushiError(Exception):
    """A mistake that the caller can correct. The message says what was expected, what came, and what to do."""
