"""Where a trace comes from: what a person needs to make the same picture again."""

import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toushi.probe.pipelines.lora import loras_of
from toushi.probe.pipelines.private_api import execution_device
from toushi.probe.text.alignment import segmenter

PACKAGES = (
    "toushi",
    "torch",
    "numpy",
    "safetensors",
    "tokenizers",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "bitsandbytes",
)


@lru_cache
def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@lru_cache
def git_commit() -> str | None:
    """The commit of this checkout, with `+` if tracked files were changed since; None outside of a checkout.

    An installed package may lie inside somebody else's repository, whose commits say nothing about it.
    """
    folder = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder:
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _identity(model) -> dict[str, str | None]:
    """Name and revision of the model: of one that knows where it was loaded from its hub id, or its folder's name.

    Where the folder lay on this machine says nothing to others, and figures and reports show the name.
    """
    name, revision = getattr(model, "name", None), getattr(model, "revision", None)
    path = getattr(model, "name_or_path", None)
    source = str(path or type(model).__name__)
    # A cache of the hub: models--owner--name/snapshots/commit
    if cached := re.search(r"models--([^/\\]+)[/\\]snapshots[/\\](\w+)", source):
        source, revision = cached[1].replace("--", "/"), revision or cached[2]
    elif path and (Path(source).is_absolute() or Path(source).is_dir()):
        source = Path(source).resolve().name
    return {
        "name": source if path else name or source,
        "revision": revision,
        "weights_sha256": getattr(model, "weights_sha256", None),
    }


def environment(model) -> dict:
    """Fields of the manifest that do not depend on the prompt."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    about = next(iter(parameters), torch.empty(0))
    loading = getattr(model, "loading", None)
    # Of a pipeline whose weights are put off, `device` is where they wait, not where it computes.
    device = execution_device(model) or getattr(model, "device", about.device)
    return {
        "model": _identity(model),
        "loading": None if loading is None else loading.manifest(),
        "loras": loras_of(model),
        "device": str(device).replace("cpu:0", "cpu"),  # accelerate numbers even the one that has no number
        "dtype": str(getattr(model, "dtype", about.dtype)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "segmenter": segmenter(),
        "versions": versions(),
        "git": git_commit(),
        "argv": sys.argv,
    }


def value_of_picture(value: Any, item: int, count: int) -> Any:
    """What is told of one picture out of `count`: its own entry of a list, which may have one for several pictures."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        return value
    return value[item * len(value) // count]
