"""The file that a command writes at its end. It is checked first, so that a mistake costs no work."""

import tempfile
from pathlib import Path

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import require
from toushi.probe.base.path_error import checked_path


def check_output_file(file: Path, option: str, overwrite: bool = True) -> None:
    """Raises ToushiError unless this file, which the option names, can be written. Creates nothing."""
    if checked_path(file).is_dir():
        raise ToushiError(f"{file} is a folder; choose another {option}")
    if file.exists() and not overwrite:
        raise ToushiError(f"{file} exists already; choose another {option}, or add --overwrite")
    check_can_create_in(file.parent, option)


def check_figure_file(file: Path, option: str, overwrite: bool = True) -> None:
    """As `check_output_file`, for a figure. Raises MissingLibrary without matplotlib, too."""
    if file.suffix.lower() not in (".pdf", ".svg", ".png"):
        raise ToushiError(f"{option} must end in .pdf, .svg, .png, but {file} came")
    check_output_file(file, option, overwrite)
    require("matplotlib")


def check_can_create_in(folder: Path, option: str) -> None:
    """Raises ToushiError unless files can be created in the folder, or in the nearest folder above it that exists."""
    home = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise ToushiError(f"cannot write to {folder}: {error.strerror or error}; choose another {option}") from None
