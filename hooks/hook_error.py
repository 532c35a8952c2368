"""The error of hooks: a module that cannot be hooked, or whose attention or state cannot be read."""


class HookError(Exception):
    """A module cannot be hooked or read. The message names it, the reason and what to do."""
