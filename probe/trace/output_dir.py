"""The folder that a trace is written to. Existing Toushi files are deleted only with `overwrite`, other files never."""

import re
from collections.abc import Iterator
from pathlib import Path

from toushi.probe.base.path_error import checked_path, short_path
from toushi.probe.trace.image_file import is_toushi_picture
from toushi.probe.trace.trace_errors import WriteFailed
from toushi.probe.trace.trace_format import MANIFEST, MEMBERS, is_member, is_trace_file


def check_output_dir(folder: Path, overwrite: bool = False) -> None:
    """Raises WriteFailed, or PathError, unless `prepare_output_dir` may create this folder and empty it. Changes nothing."""
    checked_path(folder)
    try:
        if not folder.exists():
            return
        if (other := next(unknown_files(folder), None)) is not None:
            raise WriteFailed(
                f"{folder} holds {other.relative_to(folder)}, which is not part of a trace. "
                "Choose another folder, or move that file elsewhere."
            )
        if not overwrite and any(not path.name.endswith(".tmp") for path in folder.iterdir()):
            raise WriteFailed(
                f"{folder} is not empty. Choose another folder, {_resume_hint(folder)}or replace what is in it (--overwrite)."
            )
    except NotADirectoryError:
        raise WriteFailed(f"{short_path(folder)} cannot be a folder: a file of that name is in the way.") from None
    except OSError as error:
        raise WriteFailed(f"Cannot write in {short_path(folder)}: {reason(error)}. Choose another folder.") from None


def prepare_output_dir(folder: str | Path, overwrite: bool = False) -> Path:
    """An empty folder at this place. With `overwrite` a trace, a collection or Toushi's pictures in it are deleted."""
    folder = Path(folder)
    check_output_dir(folder, overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
    except (FileExistsError, NotADirectoryError):
        raise WriteFailed(f"{short_path(folder)} cannot be a folder: a file of that name is in the way.") from None
    except OSError as error:
        raise WriteFailed(f"Cannot write in {short_path(folder)}: {reason(error)}. Choose another folder.") from None
    return folder


def unknown_files(folder: Path) -> Iterator[Path]:
    """Everything below the folder that Toushi did not write."""
    trace = _is_trace(folder)
    for path in sorted(folder.iterdir()):
        if is_member(path.name) and path.is_dir() and not path.is_symlink():
            yield from unknown_files(path)
        elif not path.is_file() or not (
            is_trace_file(path.name) if trace else is_toushi_picture(path) or _is_leftover(path)
        ):
            yield path


def _is_trace(folder: Path) -> bool:
    paths = [folder / MANIFEST, folder / MEMBERS]
    return any(b'"toushi-' in path.read_bytes()[:4096] for path in paths if path.is_file())


def _resume_hint(folder: Path) -> str:
    manifest = folder / MANIFEST
    unfinished = manifest.is_file() and re.search(rb'"complete": *false', manifest.read_bytes()) is not None
    return "finish the interrupted run in it (--resume, for mini-unet and its twins), " if unfinished else ""


def _is_leftover(path: Path) -> bool:
    """Whether this is a file that a killed writer leaves before there is a manifest."""
    return path.name.endswith(".tmp") and is_trace_file(path.name)


def _clear(folder: Path) -> None:
    """Deletes all files, the manifest last: a process that is killed meanwhile leaves a folder that is known as a trace."""
    last = {MANIFEST: 2, MEMBERS: 1}
    for path in sorted(folder.iterdir(), key=lambda path: last.get(path.name, 0)):
        if path.is_dir():
            _clear(path)
            path.rmdir()
        else:
            path.unlink()


def reason(error: Exception) -> str:
    """The system's own message, such as "No space left on device", also if safetensors wraps it into a longer one."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    wrapped = re.search(r"I/O error: (.+?) \(os error \d+\)", str(error))
    return wrapped[1] if wrapped else str(error)
