"""`load(name)`: a shipped model by its name, a model by its folder, or a diffusers pipeline by its folder or hub id."""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import torch
from safetensors import SafetensorError
from torch import nn

from toushi.hooks.watched_modules import is_watched
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import explain_missing_library
from toushi.probe.base.path_error import checked_path
from toushi.probe.models.cpu_threads import cpu_threads
from toushi.probe.models.mini_dit import MiniDiT
from toushi.probe.models.mini_unet import SHIPPED, MiniUNet, MiniUNetConfig
from toushi.probe.pipelines.family import Model, submodule
from toushi.probe.pipelines.load_options import DTYPES, MODEL_ATTRIBUTE, BadOption, Dtype, LoadOptions
from toushi.probe.pipelines.model_index import UnknownModel, check_weight_files, read_model_index
from toushi.probe.pipelines.out_of_memory import explain_out_of_memory, is_out_of_memory
from toushi.probe.pipelines.private_api import has_repeated_blocks, parts_without_offload

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig

    from toushi.probe.models.z_image import ZImage

Device = str | torch.device | None
ShippedModel = Literal["mini-unet", "mini-unet-turbo", "twins/bidirectional", "twins/causal"]


class NoGain(UserWarning):
    """An option that costs time and saves nothing on this device."""


def shipped_models() -> list[str]:
    """Names of the shipped models: their folders below `SHIPPED`."""
    return sorted(file.parent.relative_to(SHIPPED).as_posix() for file in SHIPPED.rglob("config.json"))


def model_files(name: str) -> list[Path]:
    """The weight files of one of our own models, by its name or folder. A file shared with another model comes last."""
    folder = model_folder(name)
    if folder is None or not (folder / "config.json").is_file():
        raise UnknownModel(
            f"{name!r} is not a model of Toushi; expected {', '.join(shipped_models())}, or a folder with one"
        )
    try:
        shares = json.loads((folder / "config.json").read_text()).get("shares")
    except (OSError, ValueError, AttributeError) as error:
        raise UnknownModel(f"{folder / 'config.json'} cannot be read: {error}") from error
    files = [folder / "model.safetensors"]
    return files if shares is None else [*files, SHIPPED / shares["model"] / "model.safetensors"]


@overload
def load(
    name: ShippedModel = "mini-unet", device: Device = None, dtype: str | torch.dtype | None = None, **options: object
) -> MiniUNet: ...
@overload
def load(name: str, device: Device = None, dtype: str | torch.dtype | None = None, **options: object) -> Model: ...
def load(
    name: str = "mini-unet", device: Device = None, dtype: str | torch.dtype | None = None, **options: object
) -> Model:
    """The model, ready to sample and to be recorded.

    name     a shipped model, a folder that `save` wrote, or a diffusers pipeline: its folder, or `owner/name` on the hub
    device   by default the first of CUDA, MPS and CPU that is available
    dtype    "fp32", "bf16", "fp16" or torch's; by default bf16 for a pipeline on CUDA, else fp32
    options  the other fields of `LoadOptions`, such as engine="diffusers", offload="group", quantize="4bit",
             lora="style.safetensors:0.8", embedding_cache="runs/texts"

    A mini-unet computes with `threads` CPU threads, by default one; other code in the process is not affected. For a
    pipeline, `threads` are set for the whole process, as torch.set_num_threads does.

    Raises UnknownModel, BadOption, BadLora or OutOfMemory.
    """
    known = LoadOptions.__dataclass_fields__
    if unknown := [option for option in options if option not in known]:
        near = get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise BadOption(f"there is no option {unknown[0]!r} of loading; {hint}")
    return load_model(name, replace(LoadOptions(), device=device, dtype=dtype, **options))


def load_own(name: str, device: Device = None, dtype: str | torch.dtype | None = None, **options: object) -> MiniUNet:
    """`load`, for what only our own models can do. Raises UnknownModel for a diffusers pipeline and our own Z-Image."""
    model: Model = load(name, device, dtype, **options)
    if not isinstance(model, MiniUNet):
        raise UnknownModel(
            f"expected one of our own models, {', '.join(shipped_models())}, but {name!r} is another kind"
        )
    return model


def load_model(name: str, loading: LoadOptions) -> Model:
    """The model of this name, with these options; see `load`."""
    folder = model_folder(name)
    with explain_out_of_memory("the model", loading), explain_missing_library():
        if folder is None:
            return load_pipeline(name, loading)
        if not folder.is_relative_to(SHIPPED) and (model := load_user_model(folder, loading)) is not None:
            return model
        if (folder / "model_index.json").is_file():
            return load_pipeline(folder, loading)
        return load_mini_unet(folder, loading)


def model_folder(name: str) -> Path | None:
    """The folder of a model. None if the name can only be a hub id. Raises UnknownModel if it is neither."""
    known = shipped_models()
    folder = SHIPPED / name if name in known else checked_path(name)
    if (folder / "model_index.json").is_file() or (folder / "config.json").is_file():
        return folder
    mistyped = get_close_matches(name, known, n=1, cutoff=0.85)
    if not folder.parent.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not mistyped:
        return None
    near = mistyped or get_close_matches(name, known, n=1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"expected {', '.join(known)}, a folder with config.json or model_index.json, or a hub id (OWNER/NAME)"
    )
    problem = f"there is no {'folder' if folder.parent != Path() else 'model'} {name!r}"
    if folder.is_dir():
        problem = f"the folder {name!r} holds no model"
    raise UnknownModel(f"{problem}; {hint}")


def cached_configs(hub_id: str) -> Path | None:
    """The folder of a hub id in the hub's cache on this machine; None if it is not there. Nothing is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.txt", "*.model"], local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def load_user_model(folder: Path, loading: LoadOptions) -> Model | None:
    """The model of a registered family. None if no registered family loads this folder."""
    from toushi.probe.pipelines.registry import user_families

    device = torch.device(loading.device or best_device())
    dtype: Dtype = loading.dtype or "fp32"
    for family in user_families():
        model = None if family.load_folder is None else family.load_folder(folder, device, torch_dtype(dtype))
        if model is not None:
            refused = ("engine", "offload", "vae_tiling", "compile", "lora", "quantize", "embedding_cache")
            loading.refuse(family.name, dict.fromkeys(refused, "its family loads it with a device and a dtype alone"))
            if loading.threads is not None:
                torch.set_num_threads(loading.threads)
            setattr(model, MODEL_ATTRIBUTE, loading.resolve(device, dtype))
            model.name_or_path = str(folder)  # the manifest names the weights by it
            return model
    return None


def load_mini_unet(folder: Path, loading: LoadOptions) -> MiniUNet:
    """A mini-unet. Most options are for large models and are refused."""
    small = "it is a few megabytes and samples in seconds; leave it out"
    reasons: dict[str, str] = dict.fromkeys(("offload", "vae_tiling", "compile", "quantize"), small)
    reasons["lora"] = "LoRA files are for diffusers pipelines; leave it out"
    reasons["embedding_cache"] = "it remembers its prompts by itself; leave it out"
    reasons["engine"] = "it has one engine, our own; leave it out"
    loading.refuse("mini-unet", reasons)
    threads = loading.threads or MiniUNet.threads
    with cpu_threads(threads):
        model = read_mini_unet(folder).to(loading.device or best_device(), torch_dtype(loading.dtype or "fp32"))
    model.threads = threads
    setattr(model, MODEL_ATTRIBUTE, replace(loading.resolve(model.device, model.dtype), threads=threads))
    if folder.is_relative_to(SHIPPED):
        model.name = folder.relative_to(SHIPPED).as_posix()
    return model


def read_mini_unet(folder: Path) -> MiniUNet:
    """The mini-unet of a folder, on the CPU. Raises UnknownModel if the folder has none."""
    try:
        config = MiniUNetConfig.from_json((folder / "config.json").read_text("utf-8"))
        model = (MiniUNet if config.dit is None else MiniDiT).from_folder(folder)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise UnknownModel(
            f"{folder} is not a mini-unet folder (config.json, tokenizer.json, model.safetensors): {error}"
        ) from error
    model.is_watched = is_watched
    return model


@contextmanager
def quiet_library_logs() -> Iterator[None]:
    """Hides warnings and advice of transformers and diffusers inside the `with`; their errors are still logged."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = [(library, library.get_verbosity()) for library in (diffusers_logging, transformers_logging)]
    try:
        for library, _ in before:
            library.set_verbosity_error()
        yield
    finally:
        for library, verbosity in before:
            library.set_verbosity(verbosity)


def load_pipeline(name: Path | str, loading: LoadOptions) -> "ZImage | DiffusionPipeline":
    """The pipeline of a folder or a hub id. Only safetensors are read; nothing is unpickled."""
    from toushi.probe.pipelines.registry import family_of

    device = torch.device(loading.device or best_device())
    dtype: Dtype = loading.dtype or ("bf16" if device.type == "cuda" else "fp32")
    if loading.quantize is not None and device.type != "cuda":
        raise BadOption(
            f"diffusers loads in 4 bits on a CUDA GPU only, and this is {device}: use --dtype bf16 instead of quantize"
        )
    if loading.threads is not None:
        torch.set_num_threads(loading.threads)
    with quiet_library_logs():
        pipeline = open_pipeline(name, torch_dtype(dtype), loading)
        family = family_of(pipeline)
        if loading.embedding_cache is not None:
            from toushi.probe.pipelines.embedding_cache import cache_encode_prompt

            # Before the LoRAs, because it digests the weights of the files.
            cache_encode_prompt(pipeline, family, loading.embedding_cache)
        if loading.lora:
            from diffusers.pipelines.pipeline_utils import DiffusionPipeline

            from toushi.probe.pipelines.lora import load_loras

            assert isinstance(pipeline, DiffusionPipeline), "our own Z-Image refuses LoRAs"
            load_loras(pipeline, loading.lora_files())
    setattr(pipeline, MODEL_ATTRIBUTE, loading.resolve(device, dtype))
    if loading.vae_tiling:
        enable_vae_tiling(pipeline)
    if loading.compile:
        compile_blocks(submodule(pipeline, family.denoiser))
    if loading.offload == "none":
        return pipeline.to(device)
    if device.type == "cpu":
        warnings.warn(
            NoGain("offload moves weights between a GPU and main memory; on the CPU it only costs time"), stacklevel=2
        )
    enable_offload(pipeline, family.denoiser, device, loading.offload)
    return pipeline


# What diffusers, transformers and safetensors raise for a folder that has no pipeline, or a damaged one.
LOAD_ERRORS = (KeyError, TypeError, ValueError, AttributeError, ImportError, OSError, RuntimeError, SafetensorError)


def open_pipeline(name: Path | str, dtype: torch.dtype, loading: LoadOptions) -> "ZImage | DiffusionPipeline":
    """The pipeline of a folder or a hub id, in main memory. Raises UnknownModel if there is none."""
    import diffusers
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from toushi.probe.pipelines.registry import refuse_pipeline_class

    try:
        kind = read_model_index(name).kind if isinstance(name, Path) else hub_pipeline_class(name)
        if isinstance(own := getattr(diffusers, kind, None), type):
            refuse_pipeline_class(own)
        folder = Path(name if isinstance(name, Path) else DiffusionPipeline.download(name, use_safetensors=True))
        check_weight_files(folder)
        kind = read_model_index(folder).kind
        if kind == "ZImagePipeline" and loading.engine == "own":
            from toushi.probe.models.z_image import ZImage

            reason = "our own Z-Image does not take it: add --engine diffusers, or leave it out"
            loading.refuse("this engine", {"lora": reason, "quantize": reason})
            return ZImage.from_folder(folder, dtype)
        if not hasattr(diffusers, kind):
            raise UnknownModel(
                f"{name} is a {kind}, and diffusers {diffusers.__version__} has no such pipeline: "
                "pip install --upgrade diffusers"
            )
        more: dict[str, object] = {dtype_argument(diffusers.__version__): dtype}
        if loading.quantize is not None:
            more["quantization_config"] = bnb_4bit_config(folder, dtype)
        pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True, **more)
    except ToushiError:
        raise
    except LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        where = "a folder" if isinstance(name, Path) else "a repository that can be reached"
        raise UnknownModel(
            f"{name} is not {where} with a diffusers pipeline: {' '.join(str(error).split())}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def hub_pipeline_class(hub_id: str) -> str:
    """The pipeline class of a repository. Only its model_index.json is downloaded."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    index = DiffusionPipeline.load_config(hub_id)
    return str(index.get("_class_name")) if isinstance(index, dict) else ""


def dtype_argument(version: str) -> str:
    """What `from_pretrained` of this release of diffusers calls the dtype; the older name warns since 0.40."""
    major, minor = version.split(".")[:2]
    return "dtype" if (int(major), int(minor)) >= (0, 40) else "torch_dtype"


def bnb_4bit_config(folder: Path, dtype: torch.dtype) -> "PipelineQuantizationConfig":
    """`quantization_config` for `from_pretrained`: denoiser and text encoders in 4 bits."""
    from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig

    components = read_model_index(folder).components
    large = [name for name in components if name.startswith(("unet", "transformer", "text_encoder"))]
    large = [name for name in large if components[name][0] is not None]
    kind = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return PipelineQuantizationConfig("bitsandbytes_4bit", kind, components_to_quantize=large)


def enable_vae_tiling(model: Model) -> None:
    """The VAE decodes tile by tile from now on. Raises BadOption if it cannot."""
    enable_tiling = getattr(getattr(model, "vae", None), "enable_tiling", None)
    if enable_tiling is None:
        raise BadOption(f"the VAE of this {type(model).__name__} cannot tile; leave --vae-tiling out")
    enable_tiling()


def compile_blocks(denoiser: nn.Module, **options: object) -> None:
    """Compiles each repeated block by itself, which is quick: equal blocks share their compiled code."""
    compile_repeated_blocks = getattr(denoiser, "compile_repeated_blocks", None)
    if compile_repeated_blocks is not None and has_repeated_blocks(denoiser):
        compile_repeated_blocks(**options)
        return
    for blocks in (child for child in denoiser.children() if isinstance(child, nn.ModuleList)):
        for block in blocks:
            block.compile(**options)


def enable_offload(model: "ZImage | DiffusionPipeline", denoiser: str, device: torch.device, mode: str) -> None:
    """Weights stay in main memory; what computes is moved to this device. `mode` is one of OFFLOADS."""
    from toushi.probe.pipelines.offload import offload

    if isinstance(model, nn.Module):  # our own
        offload(dict(model.named_children()), denoiser, device, mode, order=("text_encoder", denoiser, "vae"))
        model.execution_device = device
        return
    if mode == "model":
        model.enable_model_cpu_offload(device=device)
        return
    parts = {name: part for name, part in model.components.items() if isinstance(part, nn.Module)}
    offload(parts, denoiser, device, mode, whole=parts_without_offload(model) if mode == "sequential" else ())


def torch_dtype(name: Dtype) -> torch.dtype:
    """torch's dtype of this short name."""
    return getattr(torch, DTYPES[name])


def best_device() -> str:
    """The first of CUDA, MPS and CPU that is available."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
