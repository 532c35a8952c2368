"""Names that the file system refuses, as one error that says what to do: too long, impossible characters, no permission.

Python raises OSError or ValueError for these wherever a name is first looked at, so it is looked at here, once.
"""

import errno
import os
from pathlib import Path
from typing import Literal

from toushi.probe.base.errors import ToushiError

LONGEST = 80  # characters of a name in a message
CAUSES = {errno.ENAMETOOLONG: "long", errno.EACCES: "denied", errno.EPERM: "denied"}


class PathError(ToushiError):
    """The system cannot open what has this name. `cause` and `values` are for a message in another language."""

    def __init__(self, path: str | os.PathLike, error: OSError | ValueError):
        name = os.fspath(path)
        character = next((c for c in name if c == "\0" or "\ud800" <= c <= "\udfff"), None)
        self.cause: Literal["long", "denied", "character", "other"] = "other"
        if isinstance(error, OSError):
            self.cause = CAUSES.get(error.errno, "other")  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        elif character is not None:
            self.cause = "character"
        self.values = {
            "name": short_path(name),
            "length": len(name),
            "character": f"U+{ord(character):04X}" if character is not None else "",
            "reason": getattr(error, "strerror", None) or str(error),
        }
        super().__init__(MESSAGES[self.cause].format(**self.values))


MESSAGES = {
    "long": "The name {name} has {length} characters, more than the system allows (usually 255 bytes between two "
    "slashes). Give a shorter one.",
    "denied": "You have no permission to open {name}. Change its permissions, or those of the folders above it, or "
    "choose another.",
    "character": "The name {name} holds the character {character}, which no file name can have. Remove it.",
    "other": "{name} cannot be opened: {reason}. Look at its permissions and its disk, or choose another.",
}


def checked_path(path: str | os.PathLike) -> Path:
    """The path, if the system can look at it and, where it is a folder, into it; it need not exist. Raises PathError."""
    try:
        os.stat(os.path.join(path, "."))  # the dot asks for the right to look inside
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise PathError(path, error) from None
    return Path(path)


def short_path(path: str | os.PathLike) -> str:
    """The name for a message: its beginning and end where it is long, escapes for what cannot be printed."""
    name = os.fspath(path)
    if len(name) > LONGEST:
        name = f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 + 1 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
