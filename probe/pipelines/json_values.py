"""Any value of a call or a config as JSON: small values as they are, large ones by shape and SHA-256."""

import hashlib
import json
import math
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass

import numpy as np
import torch
from PIL import Image

from toushi.probe.base.private_text import HIDDEN, is_secret_name, public_text

MAX_LENGTH = 10_000  # characters of JSON; a longer list or object is described by its SHA-256


def json_value(value: object, name: str = "") -> object:
    """The value as JSON, without secrets. `name` is its parameter or key: a token or a password is not shown.

    Tensors, arrays and images become {type, shape, dtype, sha256}, generators {type, device, seed}, functions
    {type, name}, and other objects {type}.
    """
    if is_secret_name(name) and value is not None:
        return HIDDEN
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return public_text(value)
    if isinstance(value, np.generic):
        return json_value(value.item())
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return _short({str(key): json_value(item, str(key)) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return _short([json_value(item) for item in value])
    if isinstance(value, Set):
        return _short(sorted((json_value(item) for item in value), key=repr))
    return {"type": type(value).__name__, **_description(value)}


def _short(value: dict | list) -> object:
    content = json.dumps(value, ensure_ascii=False)
    if len(content) <= MAX_LENGTH:
        return value
    return {"type": type(value).__name__, "length": len(value), "sha256": _sha256(content.encode())}


def _description(value: object) -> dict[str, object]:
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return {"shape": list(value.shape), "dtype": dtype, "sha256": _sha256(tensor_bytes(value))}
    if isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value).tobytes()
        return {"shape": list(value.shape), "dtype": value.dtype.name, "sha256": _sha256(content)}
    if isinstance(value, Image.Image):
        shape = [value.height, value.width, len(value.getbands())]
        return {"shape": shape, "dtype": value.mode, "sha256": _sha256(value.tobytes())}
    if isinstance(value, torch.Generator):
        seed = seed_of(value)
        used = {} if seed is not None else {"state_sha256": _sha256(tensor_bytes(value.get_state()))}
        return {"device": str(value.device), "seed": seed, **used}
    name = getattr(value, "__qualname__", None)
    return {} if name is None else {"name": name}


def seed_of(generator: torch.Generator) -> int | None:
    """The seed of a generator that nothing was taken from yet. None for one that was used: its seed does not tell what
    comes next."""
    fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    return generator.initial_seed() if torch.equal(fresh.get_state(), generator.get_state()) else None


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The numbers of the tensor, as they are in memory when it is contiguous."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
