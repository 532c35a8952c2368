"""`load(name)`: a model by the name it is shipped under, or from a folder that `save` wrote."""

from difflib import get_close_matches
from pathlib import Path

import torch
from safetensors import SafetensorError

from probe.errors import ToushiError
from probe.models.mini_unet import MiniUNet

SHIPPED = Path(__file__).parent / "weights"


class UnknownModel(ToushiError):
    pass


def load(
    name: str = "mini-unet", device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> MiniUNet:
    """The model, ready to sample. Without `device`: CUDA, then MPS, then the CPU; without `dtype`: fp32."""
    shipped = sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))
    folder = SHIPPED / name if name in shipped else Path(name)
    if not (folder / "config.json").is_file():
        near = get_close_matches(name, shipped, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(shipped)}; or a folder with config.json"
        )
        raise UnknownModel(f"no model {name!r}; {hint}")
    try:
        model = MiniUNet.from_folder(folder)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise UnknownModel(
            f"{folder} is not a mini-unet folder (config.json, tokenizer.json, model.safetensors): {error}"
        ) from error
    return model.to(device or best_device(), dtype or torch.float32)


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
