"""Since which release diffusers has a class, so that tests run with every release of the supported range."""

from importlib import metadata

import pytest
from packaging.version import Version

SINCE = {  # the classes that the oldest supported release lacks
    "Flux2KleinPipeline": "0.37",
    "Flux2KleinInpaintPipeline": "0.38",
    "LongCatImagePipeline": "0.37",
    "ErnieImagePipeline": "0.38",
    "ZImageControlNetPipeline": "0.37",
    "ZImageControlNetInpaintPipeline": "0.37",
    "ZImageInpaintPipeline": "0.37",
}


def older_than(release: str) -> bool:
    """Whether the installed diffusers is older."""
    return Version(metadata.version("diffusers")) < Version(release)


def need(name: str) -> None:
    """Skips the test, by the name of the class, where the installed diffusers is older than it."""
    since = SINCE.get(name)
    if since is not None and older_than(since):
        pytest.skip(f"{name} needs diffusers {since}, and {metadata.version('diffusers')} is installed")


same_schedule = pytest.mark.skipif(
    older_than("0.39"), reason="ZImagePipeline has the released schedule and rule of guidance since diffusers 0.39"
)
