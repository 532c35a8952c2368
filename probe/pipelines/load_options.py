"""The options of loading a model, for Python and the command line alike. Every trace has them in its manifest.

Needs no torch, so that `toushi … --help` answers at once.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import install_command
from toushi.probe.base.private_text import public_text

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Dtype, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # our name -> torch's
MAX_THREADS = 1024
OFFLOADS = ("none", "model", "sequential", "group")
OFFLOAD_ALIASES = {"medvram": "model", "lowvram": "sequential"}  # the names in other programs
MODEL_ATTRIBUTE = "load_options"  # of a loaded model: its LoadOptions
DEVICES = ("cpu", "cuda", "mps", "xpu", "meta")
INSTALL = {
    "accelerate": f"Install what offload needs, {install_command('accelerate')}, or load without offload",
    "peft": f"Install what a LoRA needs, {install_command('peft')}, or load without the LoRA",
    "bitsandbytes": "Install what 4-bit loading needs, pip install bitsandbytes accelerate, or load without quantize "
    "(offload saves memory, too)",
}


class BadOption(ToushiError):
    """An option of loading that does not exist, does not fit the model, or needs a library that is not installed."""


@dataclass(frozen=True)
class LoadOptions:
    engine: Literal["own", "diffusers"] = "own"
    """Implementation of Z-Image: our own, or that of diffusers."""
    device: str | None = None
    """cpu, cuda or mps; if not given the first of cuda, mps, cpu that is available."""
    threads: int | None = None
    """CPU threads to compute with. If not given: 1 for mini-unet and its twins, which are too small to gain from
    more; for a pipeline as many as torch takes."""
    dtype: Dtype | None = None
    """Precision of the computation. If not given: bf16 for a pipeline on CUDA, else fp32."""
    offload: Literal["none", "model", "sequential", "group"] = "none"
    """Weights wait in main memory and are moved to the GPU one component of the pipeline at a time (model), one block
    (group) or one layer (sequential: least memory, slowest). The picture and its maps stay the same."""
    vae_tiling: bool = False
    """The VAE decodes tile by tile: less memory for large pictures, slightly different pixels."""
    compile: bool = False
    """torch.compile each repeated block: faster from the second step on. Recorded steps are computed uncompiled."""
    lora: tuple[str, ...] = ()
    """LoRA files (.safetensors), each FILE or FILE:SCALE, such as style.safetensors:0.8."""
    quantize: Literal["4bit"] | None = None
    """Load transformer and text encoders in 4 bits (bitsandbytes)."""
    embedding_cache: Path | None = None
    """A folder that keeps the embeddings of each prompt, so that the text encoders need not compute them again."""

    def __post_init__(self):
        object.__setattr__(self, "dtype", None if self.dtype is None else _dtype(self.dtype))
        object.__setattr__(self, "device", None if self.device is None else str(self.device))
        if self.device is not None and self.device.partition(":")[0] not in DEVICES:
            raise BadOption(f"device must be one of {', '.join(DEVICES)}; {self.device!r} came")
        check_threads(self.threads)
        offload = OFFLOAD_ALIASES.get(self.offload, self.offload)
        if offload not in OFFLOADS:
            raise BadOption(f"offload must be one of {', '.join(OFFLOADS)} (or medvram, lowvram); {offload!r} came")
        object.__setattr__(self, "offload", offload)
        if self.engine not in ("own", "diffusers"):
            raise BadOption(f"engine must be own or diffusers; {self.engine!r} came")
        if self.quantize not in (None, "4bit"):
            raise BadOption(f"quantize must be 4bit or left out; {self.quantize!r} came")
        lora = (self.lora,) if isinstance(self.lora, str | Path) else self.lora
        object.__setattr__(self, "lora", tuple(map(str, lora)))
        if self.embedding_cache is not None:
            object.__setattr__(self, "embedding_cache", Path(self.embedding_cache))
        for file, _ in self.lora_files():
            if not file.is_file():
                raise BadOption(f"there is no LoRA file {file}; expected a .safetensors file, or FILE:SCALE")
            if file.suffix != ".safetensors":
                raise BadOption(
                    f"{file} is no .safetensors file; other kinds of LoRA files could execute code: convert it"
                )
        needed = {"accelerate": self.offload != "none", "peft": bool(self.lora), "bitsandbytes": bool(self.quantize)}
        for library, is_needed in needed.items():
            if is_needed and find_spec(library) is None:
                raise BadOption(f"{library} is not installed. {INSTALL[library]}")

    def lora_files(self) -> list[tuple[Path, float]]:
        """File and scale of each LoRA."""
        return [_lora(argument) for argument in self.lora]

    def refuse(self, model: str, reasons: Mapping[str, str]) -> None:
        """Raises BadOption if an option was given that the model does not take: `reasons` has the reason for each."""
        for name, reason in reasons.items():
            if getattr(self, name) != getattr(LoadOptions, name):
                raise BadOption(f"--{name.replace('_', '-')} makes no sense for {model}: {reason}")

    def resolve(self, device: object, dtype: object) -> "LoadOptions":
        """The same options with the device and dtype that the model was loaded with."""
        return replace(self, device=str(device), dtype=_dtype(dtype))

    def manifest_entry(self) -> dict[str, object]:
        """The options as JSON, without the LoRAs: they can be turned off later, so a recording reads them from the model."""
        options = {name: value for name, value in asdict(self).items() if name != "lora"}
        cache = self.embedding_cache
        return {**options, "embedding_cache": None if cache is None else public_text(str(cache))}


def options_of(model: object) -> LoadOptions | None:
    """The options that `load` loaded this model with, device and dtype included. None for other models."""
    return getattr(model, MODEL_ATTRIBUTE, None)


def check_threads(count: int | None) -> None:
    """Raises BadOption for a number of CPU threads that is not from 1 to MAX_THREADS."""
    if count is not None and not (isinstance(count, int) and 1 <= count <= MAX_THREADS):
        raise BadOption(f"threads must be a whole number from 1 to {MAX_THREADS}; {count!r} came")


def _dtype(dtype: object) -> Dtype:
    """The short name of a dtype: of that name, of torch's name, or of a torch.dtype."""
    name = str(dtype).removeprefix("torch.")
    for short, torch_name in DTYPES.items():
        if name in (short, torch_name):
            return short
    raise BadOption(f"dtype must be one of {', '.join(DTYPES)}; {name!r} came")


def _lora(argument: str) -> tuple[Path, float]:
    """File and scale of FILE or FILE:SCALE. A path may have a colon, so what follows the last one must be a number."""
    file, colon, scale = argument.rpartition(":")
    if not colon or Path(argument).is_file():
        return Path(argument), 1.0
    try:
        if math.isfinite(number := float(scale)):
            return Path(file), number
    except ValueError:
        if len(file) == 1:  # C:\style.safetensors
            return Path(argument), 1.0
    raise BadOption(
        f"a LoRA is given as FILE or FILE:SCALE, such as style.safetensors:0.8; the scale in {argument!r} is no number"
    )
