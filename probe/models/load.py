"""`load(name)`: a model by the name it is shipped under, by its folder, or a diffusers pipeline by folder or hub id."""

import json
import re
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from probe.errors import ToushiError
from probe.models.mini_unet import SHIPPED, MiniUNet


class UnknownModel(ToushiError):
    pass


Engine = Literal["own", "diffusers"]


def shipped() -> list[str]:
    """Names of the models in this repository: their folders under `SHIPPED`."""
    return sorted(file.parent.relative_to(SHIPPED).as_posix() for file in SHIPPED.rglob("config.json"))


def model_files(name: str) -> list[Path]:
    """The files with the weights of one of our own models, by its name or folder; what it shares comes last."""
    folder = SHIPPED / name if name in shipped() else Path(name)
    files = [folder / "model.safetensors"]
    try:
        shares = json.loads((folder / "config.json").read_text()).get("shares")
    except (OSError, ValueError) as error:
        raise UnknownModel(f"no model {name!r} of our own: there are {', '.join(shipped())}, or a folder") from error
    return files if shares is None else [*files, SHIPPED / shares["model"] / "model.safetensors"]


def load(
    name: str = "mini-unet",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    engine: Engine = "own",
) -> Any:
    """The model, ready to draw and to be recorded.

    `name` is a shipped model, a folder that `save` wrote, or a diffusers pipeline: its folder, or `owner/name` on the
    hub. A Z-Image is our own implementation of it unless `engine` is "diffusers". Without `device`: CUDA, then MPS,
    then the CPU; without `dtype`: fp32, for a pipeline on CUDA bf16.
    """
    known = shipped()
    folder = SHIPPED / name if name in known else Path(name)
    if (folder / "model_index.json").is_file():
        return pipeline(folder, device or best_device(), dtype, engine)
    if (folder / "config.json").is_file():
        model = mini_unet(folder).to(device or best_device(), dtype or torch.float32)
        if name in known:
            model.name = name
        return model
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return pipeline(name, device or best_device(), dtype, engine)
    near = get_close_matches(name, known, n=1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"there are: {', '.join(known)}; or a folder with config.json or model_index.json, or a hub id"
    )
    raise UnknownModel(f"no model {name!r}; {hint}")


def mini_unet(folder: Path) -> MiniUNet:
    try:
        return MiniUNet.from_folder(folder)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise UnknownModel(
            f"{folder} is not a mini-unet folder (config.json, tokenizer.json, model.safetensors): {error}"
        ) from error


@contextmanager
def without_advice():
    """Keeps what transformers and diffusers advise to install besides off the screen; their errors stay."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    said = [(kind, kind.get_verbosity()) for kind in (diffusers_logging, transformers_logging)]
    try:
        for kind, _ in said:
            kind.set_verbosity_error()
        yield
    finally:
        for kind, before in said:
            kind.set_verbosity(before)


def pipeline(name: Path | str, device: str | torch.device, dtype: torch.dtype | None, engine: Engine):
    """The pipeline of a folder or a hub id, of safetensors only: nothing is unpickled."""
    from probe.models.families import family_of

    with without_advice():
        found = loaded(name, device, dtype, engine)
    family_of(found)
    return found.to(device)


def loaded(name: Path | str, device: str | torch.device, dtype: torch.dtype | None, engine: Engine):
    from diffusers import DiffusionPipeline

    dtype = dtype or (torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32)
    try:
        folder = str(name) if isinstance(name, Path) else DiffusionPipeline.download(name, use_safetensors=True)
        kind = DiffusionPipeline.load_config(folder)["_class_name"]
        if kind == "ZImagePipeline" and engine == "own":
            from probe.models.z_image import ZImage

            return ZImage.from_folder(folder, dtype)
        found = DiffusionPipeline.from_pretrained(
            folder, use_safetensors=True, dtype=dtype, local_files_only=True
        )
    except ToushiError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OSError, RuntimeError, SafetensorError) as error:
        where = "a folder" if isinstance(name, Path) else "a repository that can be reached"
        raise UnknownModel(
            f"{name} is not {where} with a diffusers pipeline: {' '.join(str(error).split())}"
        ) from error
    found.set_progress_bar_config(disable=True)
    return found


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
