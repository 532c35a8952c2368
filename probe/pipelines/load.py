"""`load(name)`: a model by the name it is shipped under, by its folder, or a diffusers pipeline by folder or hub id."""

import json
import re
import warnings
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import missing_library_named
from toushi.probe.models.cpu_threads import cpu_threads
from toushi.probe.models.mini_unet import SHIPPED, MiniUNet
from toushi.probe.pipelines.load_options import DTYPES, BadOption, Loading
from toushi.probe.pipelines.out_of_memory import enough_memory, out_of_memory
from toushi.probe.pipelines.private_api import has_repeated_blocks, parts_without_offload


class UnknownModel(ToushiError):
    pass


class NoGain(UserWarning):
    """An option that costs time and gains nothing here."""


def shipped() -> list[str]:
    """Names of the models in this repository: their folders under `SHIPPED`."""
    return sorted(file.parent.relative_to(SHIPPED).as_posix() for file in SHIPPED.rglob("config.json"))


def model_files(name: str) -> list[Path]:
    """The files with the weights of one of our own models, by its name or folder; what it shares comes last."""
    folder = folder_of(name)
    if folder is None or not (folder / "config.json").is_file():
        raise UnknownModel(f"{name!r} is no model of our own; there are: {', '.join(shipped())}, or a folder")
    try:
        shares = json.loads((folder / "config.json").read_text()).get("shares")
    except (OSError, ValueError, AttributeError) as error:
        raise UnknownModel(f"{folder / 'config.json'} cannot be read: {error}") from error
    files = [folder / "model.safetensors"]
    return files if shares is None else [*files, SHIPPED / shares["model"] / "model.safetensors"]


def load(
    name: str = "mini-unet",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    engine: str = "own",
    **options,
) -> Any:
    """The model, ready to draw and to be recorded.

    `name` is a shipped model, a folder that `save` wrote, or a diffusers pipeline: its folder, or `owner/name` on the
    hub. A Z-Image is our own implementation of it unless `engine` is "diffusers". Without `device`: CUDA, then MPS,
    then the CPU; without `dtype`: fp32, for a pipeline on CUDA bf16. `options` are those of `Loading`, such as
    offload="group", lora="style.safetensors:0.8", quantize="4bit", embedding_cache="runs/texts".

    A mini-unet computes with one CPU thread, or with `threads`; whatever else runs in the process keeps its own number.
    For a pipeline, whose call is not ours, `threads` is set for the whole process, as torch.set_num_threads does.
    """
    if unknown := [option for option in options if option not in Loading.__dataclass_fields__]:
        near = get_close_matches(unknown[0], Loading.__dataclass_fields__, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(Loading.__dataclass_fields__)}"
        raise BadOption(f"there is no option {unknown[0]!r} of loading; {hint}")
    return loaded(name, Loading(device=device, dtype=dtype, engine=engine, **options))  # pyright: ignore[reportArgumentType]


def loaded(name: str, loading: Loading) -> Any:
    """The model of this name, loaded so; see `load`."""
    home = folder_of(name)
    with enough_memory("the model", loading), missing_library_named():
        if home is not None and not home.is_relative_to(SHIPPED) and (model := user_model(home, loading)) is not None:
            return model
        if home is None or (home / "model_index.json").is_file():
            return pipeline(name if home is None else home, loading)
        return small(home, loading)


def folder_of(name: str) -> Path | None:
    """Where the model lies; None if it can only be on the hub."""
    known = shipped()
    folder = SHIPPED / name if name in known else Path(name)
    if (folder / "model_index.json").is_file() or (folder / "config.json").is_file():
        return folder
    mistyped = get_close_matches(name, known, n=1, cutoff=0.85)
    if not folder.parent.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not mistyped:
        return None
    near = mistyped or get_close_matches(name, known, n=1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"there are: {', '.join(known)}; or a folder with config.json or model_index.json, or a hub id"
    )
    what = (
        "the folder holds no model" if folder.is_dir() else "no such folder" if folder.parent != Path() else "no model"
    )
    raise UnknownModel(f"{what}: {name!r}; {hint}")


def user_model(folder: Path, loading: Loading) -> Any | None:
    """The model of a family that is not shipped; None if the folder holds another."""
    from toushi.probe.pipelines.registry import user_families

    device = torch.device(loading.device or best_device())
    dtype = loading.dtype or "fp32"
    for family in user_families():
        model = None if family.load_folder is None else family.load_folder(folder, device, torch_dtype(dtype))
        if model is not None:
            never = ("engine", "offload", "vae_tiling", "compile", "lora", "quantize", "embedding_cache")
            loading.refuse(family.name, dict.fromkeys(never, "its family loads it with a device and a dtype alone"))
            model.loading = loading.resolved(str(device), dtype)
            model.name_or_path = str(folder)  # traces tell by it which weights they are of
            return model
    return None


def small(folder: Path, loading: Loading) -> MiniUNet:
    """A mini-unet. Most options are for models that are large."""
    fits = "it is a few megabytes and draws in seconds as it is; leave it out"
    never: dict[str, str] = dict.fromkeys(("offload", "vae_tiling", "compile", "quantize"), fits)
    never["lora"] = "LoRA files are for diffusers pipelines; leave it out"
    never["embedding_cache"] = "it remembers its prompts by itself; leave it out"
    never["engine"] = "it has one engine, our own; leave it out"
    loading.refuse("mini-unet", never)
    threads = loading.threads or MiniUNet.threads
    with cpu_threads(threads):
        model = mini_unet(folder).to(loading.device or best_device(), torch_dtype(loading.dtype or "fp32"))
    model.threads = threads
    model.loading = replace(loading.resolved(str(model.device), str(model.dtype)), threads=threads)
    if folder.is_relative_to(SHIPPED):
        model.name = folder.relative_to(SHIPPED).as_posix()
    return model


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


def pipeline(name: Path | str, loading: Loading):
    """The pipeline of a folder or a hub id, of safetensors only: nothing is unpickled."""
    from toushi.probe.pipelines.family import submodule
    from toushi.probe.pipelines.registry import family_of

    device = torch.device(loading.device or best_device())
    dtype = loading.dtype or ("bf16" if device.type == "cuda" else "fp32")
    if loading.quantize is not None and device.type != "cuda":
        raise BadOption(
            f"diffusers loads in 4 bits on a CUDA GPU only, and this is {device}: take --dtype bf16, and leave quantize out"
        )
    if loading.threads is not None:
        torch.set_num_threads(loading.threads)
    with without_advice():
        found = opened(name, torch_dtype(dtype), loading)
        family = family_of(found)
        if loading.embedding_cache is not None:
            from toushi.probe.pipelines.embedding_cache import keep_texts

            keep_texts(found, family, loading.embedding_cache)  # first: it looks at the weights as they were loaded
        if loading.lora:
            from toushi.probe.pipelines.lora import put_in

            put_in(found, loading.loras())
    found.loading = loading.resolved(str(device), dtype)
    if loading.vae_tiling:
        tile(found)
    if loading.compile:
        compile_blocks(submodule(found, family.denoiser))
    if loading.offload == "none":
        return found.to(device)
    if device.type == "cpu":
        warnings.warn(
            NoGain("offload moves weights between a GPU and main memory; on the CPU it only costs time"), stacklevel=2
        )
    put_off(found, family.denoiser, device, loading.offload)
    return found


# What diffusers, transformers and safetensors raise at a folder that they cannot make a pipeline of.
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, ImportError, OSError, RuntimeError, SafetensorError)


def opened(name: Path | str, dtype: torch.dtype, loading: Loading):
    """From the folder, or from the hub, into main memory."""
    from diffusers import DiffusionPipeline

    try:
        folder = str(name) if isinstance(name, Path) else DiffusionPipeline.download(name, use_safetensors=True)
        check_files(Path(folder))
        kind = DiffusionPipeline.load_config(folder)["_class_name"]
        if kind == "ZImagePipeline" and loading.engine == "own":
            from toushi.probe.models.z_image import ZImage

            other = "our own Z-Image does not take it: add --engine diffusers, or leave it out"
            loading.refuse("this engine", {"lora": other, "quantize": other})
            return ZImage.from_folder(folder, dtype)
        more = {} if loading.quantize is None else {"quantization_config": in_four_bits(folder, dtype)}
        found = DiffusionPipeline.from_pretrained(
            folder, use_safetensors=True, dtype=dtype, local_files_only=True, **more
        )
    except ToushiError:
        raise
    except UNREADABLE as error:
        if out_of_memory(error):
            raise
        where = "a folder" if isinstance(name, Path) else "a repository that can be reached"
        raise UnknownModel(
            f"{name} is not {where} with a diffusers pipeline: {' '.join(str(error).split())}"
        ) from error
    found.set_progress_bar_config(disable=True)
    return found


def check_files(folder: Path) -> None:
    """Raises UnknownModel if files are missing that the folder's own lists name."""
    try:
        parts = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnknownModel(f"{folder} has no model_index.json that can be read ({error}): download it again") from None
    if not isinstance(parts, dict) or not isinstance(parts.get("_class_name"), str):
        raise UnknownModel(
            f"{folder} is no folder with a diffusers pipeline: its model_index.json names no pipeline class "
            "(_class_name). Expected a folder that save_pretrained wrote, or a downloaded repository."
        )
    for part in parts:
        for index in sorted((folder / part).glob("*.safetensors.index.json")):
            listed = shards(index)
            if missing := [file for file in listed if not (folder / part / file).is_file()]:
                raise UnknownModel(
                    f"{folder / part} lacks {len(missing)} of its {len(listed)} weight files, among them {missing[0]}: "
                    "download them again (the folder has only part of the model)"
                )


def shards(index: Path) -> list[str]:
    """The files that an index of weights names; they must lie beside it."""
    try:
        listed = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UnknownModel(f"{index} cannot be read ({error}): download it again") from None
    if outside := [file for file in listed if Path(file).name != file]:
        raise UnknownModel(f"{index} names {outside[0]!r}, which is not beside it: do not trust this folder")
    return listed


def in_four_bits(folder: str, dtype: torch.dtype):
    """For `from_pretrained`: the large parts in 4 bits."""
    from diffusers import DiffusionPipeline
    from diffusers.quantizers import PipelineQuantizationConfig

    parts = DiffusionPipeline.load_config(folder)
    large = [name for name in parts if name.startswith(("unet", "transformer", "text_encoder")) and parts[name][0]]
    kind = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return PipelineQuantizationConfig("bitsandbytes_4bit", kind, components_to_quantize=large)


def tile(model) -> None:
    if not hasattr(getattr(model, "vae", None), "enable_tiling"):
        raise BadOption(f"the VAE of this {type(model).__name__} cannot tile; leave --vae-tiling out")
    model.vae.enable_tiling()


def compile_blocks(denoiser: nn.Module, **how) -> None:
    """torch.compile of each repeated block by itself, which is quick, since blocks that are alike share their code."""
    if has_repeated_blocks(denoiser):
        denoiser.compile_repeated_blocks(**how)
        return
    for blocks in (child for child in denoiser.children() if isinstance(child, nn.ModuleList)):
        for block in blocks:
            block.compile(**how)


def put_off(model, denoiser: str, device: torch.device, way: str) -> None:
    """Offload; on this device the model computes."""
    from toushi.probe.pipelines.offload import offload

    if isinstance(model, nn.Module):  # our own
        offload(dict(model.named_children()), denoiser, device, way, order=("text_encoder", denoiser, "vae"))
        model.execution_device = device
        return
    if way == "model":
        model.enable_model_cpu_offload(device=device)
        return
    parts = {name: part for name, part in model.components.items() if isinstance(part, nn.Module)}
    offload(parts, denoiser, device, way, whole=parts_without_offload(model) if way == "sequential" else ())


def torch_dtype(name: str) -> torch.dtype:
    return getattr(torch, DTYPES[name])


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
