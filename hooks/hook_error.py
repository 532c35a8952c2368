"""What can go wrong between a wire and a module."""


class HookError(Exception):
    """A site cannot be wired or read. The message names the site, the reason and the way out."""
