"""One error, which says what to do, for names that the file system refuses: too long, bad characters, no permission.

Python raises OSError or ValueError for them wherever a name is first used. So every name is checked here, once.
"""

import errno
import os
from pathlib import Path

from toushi.probe.base.bilingual_text import Bilingual, Messages
from toushi.probe.base.errors import ToushiError

MAX_CHARACTERS = 200  # characters of a name in a message
CAUSES = {errno.ENAMETOOLONG: "long", errno.EACCES: "denied", errno.EPERM: "denied"}
MESSAGES = Messages(
    {
        "long": (
            "The name {name} has {length} characters, more than the system allows (usually 255 bytes between two "
            "slashes). Give a shorter one.",
            "“{name}”有 {length} 个字符，超出了系统的限制（每一级文件夹名通常最多 255 字节）。请换一个短些的名字。",
        ),
        "denied": (
            "You have no permission to open {name}. Change its permissions, or those of the folders above it, or "
            "choose another.",
            "没有权限打开“{name}”。请修改它或上层文件夹的权限，或另选一个。",
        ),
        "character": (
            "The name {name} holds the character {character}, which no file name can have. Remove it.",
            "“{name}”里有文件名中不能出现的字符 {character}，请去掉它。",
        ),
        "other": (
            "{name} cannot be opened: {reason}. Look at its permissions and its disk, or choose another.",
            "打不开“{name}”：{reason}。请检查它的权限和所在磁盘，或另选一个。",
        ),
    }
)


class PathError(ToushiError):
    """The system cannot open the file or folder of this name. `message` is the error in both languages."""

    def __init__(self, path: str | os.PathLike, error: OSError | ValueError):
        name = os.fspath(path)
        character = next((c for c in name if c == "\0" or "\ud800" <= c <= "\udfff"), None)
        if isinstance(error, OSError):
            cause = CAUSES.get(error.errno or 0, "other")
        else:
            cause = "other" if character is None else "character"
        self.message: Bilingual = MESSAGES[cause].format(
            name=short_path(name),
            length=len(name),
            character="" if character is None else f"U+{ord(character):04X}",
            reason=getattr(error, "strerror", None) or error,
        )
        super().__init__(self.message.en)


def checked_path(path: str | os.PathLike) -> Path:
    """The path, which need not exist. Raises PathError where the system cannot look at it, or into it if it is a folder."""
    try:
        os.stat(os.path.join(path, "."))  # the dot needs the permission to look inside
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise PathError(path, error) from None
    return Path(path)


def short_path(path: str | os.PathLike) -> str:
    """The name for a message: only its beginning and end where it is long, escapes where it cannot be printed."""
    name = os.fspath(path)
    if len(name) > MAX_CHARACTERS:
        name = f"{name[: MAX_CHARACTERS // 2]}…{name[-MAX_CHARACTERS // 2 + 1 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
