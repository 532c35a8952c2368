"""Every test checks the shapes and types in the signatures of the packages below, at each call.

A class or function is wrapped when its module is imported, so this file must come before the first import of toushi.
What tests start as a process of its own is not checked.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # a model that is not here is refused at once; huggingface_hub reads it when imported
)

install_import_hook(["toushi.hooks", "toushi.probe.models", "toushi.probe.analysis"], "typechecker.typechecked")

settings.register_profile("toushi", deadline=None)  # a busy machine is no fault
settings.load_profile("toushi")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """The folder of a mini-unet with random weights."""
    from toushi.probe.models.mini_unet import MiniUNet

    folder = tmp_path_factory.mktemp("models") / "tiny"
    MiniUNet.tiny().save(folder)
    return str(folder)


@pytest.fixture
def figures_in_this_process(monkeypatch):
    """`toushi trace` draws its figures in this process: in another one matplotlib would be imported again and again."""
    monkeypatch.setattr("toushi.cli.trace.figure_process", partial(ThreadPoolExecutor, 1))


@pytest.fixture
def fails(capsys):
    """fails(*arguments) -> the error, which is one line on stderr that begins with `toushi: `; exit code 2."""
    from toushi import main

    def run(*arguments) -> str:
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if line.strip() and not line.startswith("toushi: warning")]
        errors = [line for line in errors if "?step/s" not in line]
        assert code == 2 and len(errors) == 1 and errors[0].startswith("toushi: "), said
        return errors[0]

    return run
