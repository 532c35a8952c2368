"""Optional libraries, and the extra of this package that brings each: a missing one is an error of one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from toushi.probe.base.errors import ToushiError

# Import name -> extra, as in pyproject.toml. Libraries that come with the core are not here.
EXTRAS = {
    "accelerate": "pipelines",
    "captum": "explain",
    "diffusers": "pipelines",
    "fontTools": "reports",
    "jinja2": "reports",
    "matplotlib": "figures",
    "peft": "pipelines",
    "pyarrow": "export",
    "scipy": "experiments",
    "sentencepiece": "pipelines",
    "sklearn": "experiments",
    "streamlit": "app",
    "transformers": "pipelines",
    "typst": "reports",
    "yaml": "experiments",
    "zarr": "export",
}


class MissingLibrary(ToushiError, ImportError):
    """A library that an extra of this package brings is not installed. The message has the command that installs it."""


def install_command(library: str) -> str:
    """What a user types to get the library, with quotes for shells that expand brackets."""
    return f'pip install "toushi[{EXTRAS[library]}]"'


@contextmanager
def missing_library_named() -> Iterator[None]:
    """Inside, an import of an optional library that is not installed raises MissingLibrary."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRAS:
            raise
        raise MissingLibrary(
            f"this needs {library}, which is not installed: {install_command(library)}", name=library
        ) from error


def require(*libraries: str) -> None:
    """Raises MissingLibrary if one of these libraries is not installed. Imports none of them."""
    with missing_library_named():
        for library in libraries:
            if find_spec(library) is None:
                raise ModuleNotFoundError(f"No module named {library!r}", name=library)
