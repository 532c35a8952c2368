"""How a model is loaded: one frozen choice, for Python and the command line alike, and written into every trace.

Needs no torch, so that `toushi … --help` answers at once.
"""

import math
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from toushi.probe.base.errors import ToushiError
from toushi.probe.base.extras import install_command

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # by torch's name for each
MOST_THREADS = 1024
OFFLOADS = ("none", "model", "sequential", "group")
NAMES = {"medvram": "model", "lowvram": "sequential"}  # the popular article's
INSTALL = {
    "accelerate": f"offload needs the accelerate library: {install_command('accelerate')}, or leave the offload out",
    "peft": f"a LoRA needs the peft library: {install_command('peft')}, or leave the LoRA out",
    "bitsandbytes": "4-bit loading needs the bitsandbytes library: pip install bitsandbytes accelerate, or leave "
    "quantize out (an offload saves memory too)",
}


class BadOption(ToushiError):
    """A way of loading that does not exist, does not fit the model, or needs a library that is not here."""


@dataclass(frozen=True)
class Loading:
    engine: Literal["own", "diffusers"] = "own"
    """Z-Image runs in our own implementation, or in that of diffusers."""
    device: str | None = None
    """cpu, cuda or mps; the best there is if not given."""
    threads: int | None = None
    """CPU threads to compute with. If not given: 1 for mini-unet and its twins, which are too small to gain from
    more; for a pipeline as many as torch takes."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """The numbers that the model computes with; fp32 if not given, for a pipeline on CUDA bf16."""
    offload: Literal["none", "model", "sequential", "group"] = "none"
    """Weights wait in main memory and visit the GPU: one part of the pipeline at a time (model), one block
    (group) or one layer (sequential: least memory, slowest). The picture and its maps stay the same."""
    vae_tiling: bool = False
    """The VAE opens the latents tile by tile: less memory for large pictures, slightly different pixels."""
    compile: bool = False
    """torch.compile each repeated block: faster from the second step on. Steps that are recorded run uncompiled."""
    lora: tuple[str, ...] = ()
    """LoRA files (.safetensors), each FILE or FILE:SCALE, such as style.safetensors:0.8."""
    quantize: Literal["4bit"] | None = None
    """Load transformer and text encoders in 4 bits (bitsandbytes)."""
    embedding_cache: Path | None = None
    """A folder that keeps what the text encoders said of each prompt, so that they need not run for it again."""

    def __post_init__(self):
        object.__setattr__(self, "dtype", None if self.dtype is None else _dtype(self.dtype))
        object.__setattr__(self, "device", None if self.device is None else str(self.device))
        checked_threads(self.threads)
        offload = NAMES.get(self.offload, self.offload)
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
        for file, _ in self.loras():
            if not file.is_file():
                raise BadOption(f"there is no LoRA file {file}; expected a .safetensors file, or FILE:SCALE")
            if file.suffix != ".safetensors":
                raise BadOption(f"{file} is no .safetensors file; other kinds of LoRA files could run code: convert it")
        needed = {"accelerate": self.offload != "none", "peft": bool(self.lora), "bitsandbytes": bool(self.quantize)}
        for library, is_needed in needed.items():
            if is_needed and find_spec(library) is None:
                raise BadOption(f"{INSTALL[library]} ({library} is not installed)")

    def loras(self) -> list[tuple[Path, float]]:
        """File and scale of each LoRA."""
        return [_lora(said) for said in self.lora]

    def refuse(self, model: str, never: dict[str, str]) -> None:
        """Raises BadOption if an option was chosen that this model cannot take: `never` has the reason of each."""
        for name, why in never.items():
            if getattr(self, name) != getattr(Loading, name):
                raise BadOption(f"--{name.replace('_', '-')} makes no sense for {model}: {why}")

    def resolved(self, device: str, dtype: str) -> "Loading":
        """The same with what was left open: the device and dtype that were taken."""
        return replace(self, device=device, dtype=dtype)  # pyright: ignore[reportArgumentType]

    def manifest(self) -> dict[str, Any]:
        """As JSON. The LoRAs are not told: which of them are on can change, so a recording looks for itself."""
        said = {name: value for name, value in asdict(self).items() if name != "lora"}
        return {**said, "embedding_cache": None if self.embedding_cache is None else str(self.embedding_cache)}


def checked_threads(count: int | None) -> None:
    """Raises BadOption for a number of CPU threads that nobody can mean."""
    if count is not None and not (isinstance(count, int) and 1 <= count <= MOST_THREADS):
        raise BadOption(f"threads must be a whole number from 1 to {MOST_THREADS}; {count!r} came")


DTYPE_NAMES = {name: short for short, name in DTYPES.items()}


def _dtype(dtype: Any) -> str:
    """The short name of a dtype, given by it, by torch's name, or as torch's object."""
    name = str(dtype).removeprefix("torch.")
    short = DTYPE_NAMES.get(name, name)
    if short not in DTYPES:
        raise BadOption(f"dtype must be one of {', '.join(DTYPES)}; {name!r} came")
    return short


def _lora(said: str) -> tuple[Path, float]:
    """FILE, or FILE:SCALE. A colon may be part of a path, so what follows the last one must be a number."""
    file, colon, scale = said.rpartition(":")
    if not colon or Path(said).is_file():
        return Path(said), 1.0
    try:
        if math.isfinite(number := float(scale)):
            return Path(file), number
    except ValueError:
        if len(file) == 1:  # C:\style.safetensors
            return Path(said), 1.0
    raise BadOption(
        f"a LoRA is given as FILE or FILE:SCALE, such as style.safetensors:0.8; the scale in {said!r} is no number"
    )
