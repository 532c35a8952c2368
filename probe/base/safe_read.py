"""Reading a file that may be anything: a link, a device, far too large."""

import os
import stat
from pathlib import Path

from toushi.probe.base.errors import ToushiError


def read_regular_file(path: Path, limit: int = 2**28, error: type[ToushiError] = ToushiError) -> bytes:
    """The content of a regular file of at most `limit` bytes. Anything else raises `error`.

    A link is refused, because it can lead out of the folder.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}.") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):  # fdopen would refuse a folder with another error
        os.close(descriptor)
        raise error(f"{path} must be a regular file; something else has that name.")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > limit:
            raise error(f"{path} has {status.st_size} bytes; more than {limit} cannot be right.")
        try:
            return file.read(limit)
        except OSError as reason:
            raise error(f"{path} cannot be read: {reason.strerror}.") from None
