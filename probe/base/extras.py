"""Optional libraries, and the extra of this package that installs each. A missing one is an error of one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from toushi.probe.base.errors import ToushiError

# Import name -> extra, as in pyproject.toml. Libraries that come with the core are not here.
EXTRAS = {
    "accelerate": "pipelines",
    "captum": "explain",
    "diffusers": "pipelines",
    "filelock": "experiments",
    "fontTools": "reports",
    "jinja2": "reports",
    "matplotlib": "figures",
    "peft": "pipelines",
    "plotly": "app",
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
    """A library of an extra of this package is not installed. The message has the command that installs it."""


def install_command(library: str) -> str:
    """The command that installs the library, with quotes for shells that expand brackets."""
    return f'pip install "toushi[{EXTRAS[library]}]"'


@contextmanager
def explain_missing_library() -> Iterator[None]:
    """Inside, the import of an optional library that is not installed raises MissingLibrary."""
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
    with explain_missing_library():
        for library in libraries:
            if find_spec(library) is None:
                raise ModuleNotFoundError(f"No module named {library!r}", name=library)
