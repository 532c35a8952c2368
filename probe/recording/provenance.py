"""What is needed to make the picture of a trace again: model, versions, device, command."""

import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from toushi.probe.base.private_text import public_text
from toushi.probe.pipelines.family import Arguments, Model
from toushi.probe.pipelines.load_options import options_of
from toushi.probe.pipelines.lora import describe_loras
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
    """Versions of Python and of the installed packages among PACKAGES."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


@lru_cache
def git_commit() -> str | None:
    """The commit of this checkout, with `+` if tracked files were changed since; None outside of a checkout.

    An installed package may be inside another repository, whose commits say nothing about it.
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


def _model_identity(model: Model) -> dict[str, str | None]:
    """Name, revision and weights of the model. The name is its hub id, or the name of the folder it was loaded from.

    The folder's whole path says nothing to others, and figures and reports show the name.
    """
    name, revision = getattr(model, "name", None), getattr(model, "revision", None)
    path = getattr(model, "name_or_path", None)
    source = str(path or type(model).__name__)
    # The hub's cache: models--owner--name/snapshots/commit
    if cached := re.search(r"models--([^/\\]+)[/\\]snapshots[/\\](\w+)", source):
        source, revision = cached[1].replace("--", "/"), revision or cached[2]
    elif path and (Path(source).is_absolute() or Path(source).is_dir()):
        source = Path(source).resolve().name
    return {
        "name": source if path else name or source,
        "revision": revision,
        "weights_sha256": getattr(model, "weights_sha256", None),
    }


@lru_cache
def gpu_facts(device: torch.device) -> dict[str, str]:
    """The card, its driver if known, and the versions of CUDA and cuDNN: a picture's last digits depend on them."""
    facts = {"name": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    facts["cudnn"] = str(torch.backends.cudnn.version())
    with suppress(OSError):  # Linux only
        driver = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
        if version := re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", driver):
            facts["driver"] = version[1]
    return facts


def command_line(argv: Sequence[str]) -> list[str] | None:
    """The command, if it is Toushi's own, without secrets. The arguments of other programs are not ours to keep."""
    program = Path(argv[0]) if argv else Path()
    is_ours = program.name in ("toushi", "toushi.exe") or program.parts[-2:] == ("toushi", "__main__.py")
    return ["toushi", *map(public_text, argv[1:])] if is_ours else None


def precision(device: torch.device) -> dict[str, object]:
    """Fields of the manifest: the dtype of autocast, if it is on, and settings of torch that change rounding."""
    kind, backends = device.type, torch.backends
    is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return {
        "autocast": str(torch.get_autocast_dtype(kind)).removeprefix("torch.") if is_cast else None,
        "torch_settings": {
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_benchmark": backends.cudnn.benchmark,
            "fp32_precision_cuda_matmul": backends.cuda.matmul.fp32_precision,
            "fp32_precision_cudnn_conv": backends.cudnn.conv.fp32_precision,
            "fp32_precision_mkldnn_matmul": backends.mkldnn.matmul.fp32_precision,
        },
    }


def environment(model: Model, lora_factor: float = 1.0) -> dict[str, object]:
    """Fields of the manifest that do not depend on the prompt. `lora_factor`: see `lora_scale`."""
    parameter = next(model.parameters(), torch.empty(0)) if isinstance(model, nn.Module) else torch.empty(0)
    loading = options_of(model)
    # With offload `device` is where the weights wait, not where the pipeline computes.
    device = execution_device(model) or getattr(model, "device", parameter.device)
    return {
        "model": _model_identity(model),
        "loading": None if loading is None else loading.manifest_entry(),
        "loras": describe_loras(model, lora_factor),
        "device": str(device).replace("cpu:0", "cpu"),  # accelerate numbers the CPU, too
        "gpu": gpu_facts(torch.device(device)) if str(device).startswith("cuda") else None,
        "dtype": str(getattr(model, "dtype", parameter.dtype)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "segmenter": segmenter(),
        "versions": versions(),
        "git": git_commit(),
        **precision(torch.device(device)),
        "argv": command_line(sys.argv),
    }


def not_reproducible_reason(arguments: Arguments, metadata: Mapping[str, object]) -> str | None:
    """Why the picture of a pipeline's call cannot be made again from its trace, and what to do. None if it can.

    `arguments` are those of the call, `metadata` the family's fields of the manifest. Our own models, whose calls have no
    `generator`, give None.
    """
    if "generator" not in arguments:
        return None
    if arguments.get("latents") is not None:
        return "it begins from latents= that the trace does not have; keep them, or pass a generator without latents"
    if arguments["generator"] is None:
        return "its seed is not known; pass generator=torch.Generator().manual_seed(0)"
    if arguments.get("image") is not None:
        return "the trace has the checksum of image=, but not the image; keep it beside the trace"
    return None


def entry_of_picture(value: object, picture: int, count: int) -> object:
    """The value for one picture out of `count`. A list has one entry for each picture, or for several pictures."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        return value
    return value[picture * len(value) // count]
