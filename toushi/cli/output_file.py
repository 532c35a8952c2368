"""The file that a command writes at its end. It is checked first, so that a mistake costs no work."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import require
from toushi.probe.base.path_error import checked_path


def check_output_file(file: Path, option: str, endings: Sequence[str] = (), overwrite: bool = True) -> None:
    """Raises ToushiError unless the file can be written: another ending, a file or folder in the way, a folder that
    cannot be made. Creates nothing. `option` is the name of the option that chose the file."""
    if endings and file.suffix.lower() not in endings:
        raise ToushiError(f"{option} must end in {', '.join(endings)}, but {file} came")
    if checked_path(file).is_dir():
        raise ToushiError(f"{file} is a folder; choose another {option}")
    if file.exists() and not overwrite:
        raise ToushiError(f"{file} exists already; choose another {option}, or add --overwrite")
    check_can_create_in(file.parent, option)


def check_figure_file(file: Path, option: str, overwrite: bool = True) -> None:
    """As `check_output_file`, for a figure. Raises MissingLibrary without matplotlib, too."""
    check_output_file(file, option, (".pdf", ".svg", ".png"), overwrite)
    require("matplotlib")


def check_can_create_in(folder: Path, option: str) -> None:
    """Raises ToushiError unless files can be created in the folder, or in the nearest folder above it that exists."""
    home = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise ToushiError(f"cannot write to {folder}: {error.strerror or error}; choose another {option}") from None
