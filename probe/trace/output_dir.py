"""An empty folder for a trace: what is ours may be replaced when that is asked for, what is not never is."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.path_error import checked_path, short_path
from toushi.probe.trace import manifest as layout

MADE_BY = "Toushi"  # the PNG text `Software` of every picture that we draw


class WriteFailed(ToushiError):
    """The trace cannot be written there, or could not be written further; what is finished can be read."""


def check_room(folder: Path, overwrite: bool = False) -> None:
    """Raises WriteFailed, or PathError, unless `make_room` may make this folder and empty it. Changes nothing."""
    checked_path(folder)
    try:
        if not folder.exists():
            return
        if (other := next(foreign(folder), None)) is not None:
            raise WriteFailed(
                f"{folder} holds {other.relative_to(folder)}, which is no part of a trace. "
                "Choose another folder, or move that file away."
            )
        if not overwrite and any(not path.name.endswith(".tmp") for path in folder.iterdir()):
            raise WriteFailed(f"{folder} is not empty. Choose another folder, or replace what is in it (--overwrite).")
    except NotADirectoryError:
        raise WriteFailed(f"{short_path(folder)} cannot be a folder: a file of that name is in the way.") from None
    except OSError as error:
        raise WriteFailed(f"Cannot write in {short_path(folder)}: {reason(error)}. Choose another folder.") from None


def make_room(folder: str | Path, overwrite: bool = False) -> Path:
    """An empty folder at this place. A trace, a collection or our pictures in it are cleared if `overwrite`."""
    folder = Path(folder)
    check_room(folder, overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
    except (FileExistsError, NotADirectoryError):
        raise WriteFailed(f"{short_path(folder)} cannot be a folder: a file of that name is in the way.") from None
    except OSError as error:
        raise WriteFailed(f"Cannot write in {short_path(folder)}: {reason(error)}. Choose another folder.") from None
    return folder


def foreign(folder: Path) -> Iterator[Path]:
    """Everything below the folder that we did not put there."""
    trace = _is_trace(folder)
    for path in sorted(folder.iterdir()):
        if layout.is_member(path.name) and path.is_dir() and not path.is_symlink():
            yield from foreign(path)
        elif not path.is_file() or not (layout.is_ours(path.name) if trace else _is_picture(path) or _is_rest(path)):
            yield path


def save_picture(image, path: Path) -> None:
    """The PIL picture as PNG, marked as ours."""
    path.write_bytes(picture_bytes(image))


def picture_bytes(image) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    about, file = PngInfo(), io.BytesIO()
    about.add_text("Software", MADE_BY)
    image.save(file, "PNG", pnginfo=about)
    return file.getvalue()


def _is_trace(folder: Path) -> bool:
    paths = [folder / layout.MANIFEST, folder / layout.MEMBERS]
    return any(b'"toushi-' in path.read_bytes()[:4096] for path in paths if path.is_file())


def _is_picture(path: Path) -> bool:
    """Our picture without a trace: what `toushi trace --no-record` leaves."""
    from PIL import Image

    if path.name != layout.IMAGE:
        return False
    try:
        with Image.open(path) as image:
            return image.format == "PNG" and image.info.get("Software") == MADE_BY
    except (OSError, ValueError, SyntaxError):  # what PIL raises for files that are no pictures
        return False


def _is_rest(path: Path) -> bool:
    """What a killed writer leaves before there is a manifest."""
    return path.name.endswith(".tmp") and layout.is_ours(path.name)


def _clear(folder: Path) -> None:
    """Removes all of it, the manifest last: cut short, the folder is still known as ours."""
    last = {layout.MANIFEST: 2, layout.MEMBERS: 1}
    for path in sorted(folder.iterdir(), key=lambda path: last.get(path.name, 0)):
        if path.is_dir():
            _clear(path)
            path.rmdir()
        else:
            path.unlink()


def reason(error: Exception) -> str:
    """What the system said: "No space left on device", also where safetensors wraps it into a sentence of its own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    wrapped = re.search(r"I/O error: (.+?) \(os error \d+\)", str(error))
    return wrapped[1] if wrapped else str(error)
