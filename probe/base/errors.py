"""The one error type that a user of Toushi has to catch."""


class ToushiError(Exception):
    """Something the caller can put right. The message says what was expected, what came, and what to do."""
