"""Keeps the embeddings of prompts in a folder, so that the text encoders need not compute them again.

A file is named by the digest of everything that the embeddings depend on: weights, configs and tokenizers of the
encoders, the arguments of `encode_prompt` with the prompt among them, device and versions. The ids that the encoders
got are kept, too, so that the columns have their labels. safetensors and JSON only; no prompt becomes a file's name.
"""

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from toushi.hooks.watched_modules import is_watched
from toushi.probe.base.atomic_io import write_atomic
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.safe_read import read_regular_file
from toushi.probe.models.mini_unet import PromptCut
from toushi.probe.pipelines.encoder_identity import encoder_digests, plain_settings, weight_sample_digest
from toushi.probe.pipelines.encoder_inputs import ENCODER_PARAMETERS, note_encoder_inputs
from toushi.probe.pipelines.family import Arguments, EncoderInputs, Family, unwrap
from toushi.probe.pipelines.load_options import BadOption
from toushi.probe.pipelines.lora import describe_loras
from toushi.probe.pipelines.private_api import execution_device

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from toushi.probe.models.z_image import ZImage

FORMAT = "toushi-text-1"


class NotCached(UserWarning):
    """Embeddings could not be kept, or kept ones could not be used. They were computed as without a cache."""


def cache_encode_prompt(model: "ZImage | DiffusionPipeline", family: Family, folder: Path) -> None:
    """From now on the model keeps the embeddings of its prompts in the folder."""
    cache = EncodePromptCache(model, family, folder)
    for name, value in (
        ("encode_prompt_cache", cache),
        (family.encode_prompt, cache.wrap(getattr(model, family.encode_prompt))),
    ):
        setattr(model, name, value)


class EncodePromptCache:
    """Answers of `encode_prompt` in a folder."""

    def __init__(self, model: "ZImage | DiffusionPipeline", family: Family, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadOption(f"cannot keep embeddings in {folder}: {error.strerror}; choose another folder") from None
        from transformers import PreTrainedModel

        self.model, self.folder = model, folder
        self.encoders = {
            name: encoder
            for name in (getattr(model, "components", None) or dict(model.named_children()))
            if name.startswith("text_encoder") and isinstance(encoder := getattr(model, name), PreTrainedModel)
        }
        self.noted_encoders = {
            name: (unwrap(encoder), ENCODER_PARAMETERS)
            for name, encoder in self.encoders.items()
            if name in family.text_encoders
        }
        self.digests = encoder_digests(model, self.encoders)
        self.weight_sample = weight_sample_digest(self.encoders)
        self.encoder_calls: Mapping[str, Sequence[EncoderInputs]] | None = None
        """What the encoders got when the latest answer was computed; None if it did not come from the folder."""

    def wrap(self, encode_prompt: Callable) -> Callable:
        """The method, with the answers of the folder where there are any."""
        signature = inspect.signature(encode_prompt)

        @wraps(encode_prompt)
        def wrapper(*arguments, **named):
            self.encoder_calls = None
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            key = self.key(bound.arguments)
            if key is None:
                return encode_prompt(*arguments, **named)
            device = bound.arguments.get("device") or execution_device(self.model)
            if (answer := self.read(key, torch.device(device or self.model.device))) is not None:
                return answer
            with (
                note_encoder_inputs(self.noted_encoders) as encoder_calls,
                warnings.catch_warnings(record=True) as raised,
            ):
                warnings.simplefilter("always")
                answer = encode_prompt(*arguments, **named)
            cuts = [str(warning.message) for warning in raised if issubclass(warning.category, PromptCut)]
            for warning in raised:
                warnings.warn(warning.message, warning.category, stacklevel=2)
            self.write(key, answer, encoder_calls, cuts)
            return answer

        return wrapper

    def key(self, arguments: Arguments) -> str | None:
        """SHA-256 of everything that the answer depends on. None if the answer must be computed."""
        if any(is_watched(unwrap(encoder)) for encoder in self.encoders.values()):
            return None  # somebody reads or edits the encoder
        if (sample := weight_sample_digest(self.encoders)) is not None and sample != self.weight_sample:
            warnings.warn(
                NotCached("the text encoder was changed since it was loaded: its embeddings are not kept"), stacklevel=3
            )
            return None
        # The scale of the sampling call is among the arguments, as `lora_scale`.
        loras = [lora for lora in describe_loras(self.model) if set(lora["parts"]) & set(self.encoders)]
        if any(lora["sha256"] is None for lora in loras):
            return None
        question = {
            "format": FORMAT,
            "asked": {name: value for name, value in arguments.items() if name not in ("self", "device")},
            "encoders": self.digests,
            "loras": loras,
            "settings": plain_settings(self.model),
            "device": str(execution_device(self.model) or self.model.device),
            "threads": torch.get_num_threads(),
            "versions": [metadata.version(name) for name in ("torch", "transformers", "diffusers")],
        }
        try:
            return hashlib.sha256(json.dumps(question, sort_keys=True, default=_dtype_name).encode()).hexdigest()
        except TypeError:  # embeddings or pictures among the arguments
            return None

    # --- the folder

    def write(
        self, key: str, answer: object, encoder_calls: Mapping[str, Sequence[EncoderInputs]], cuts: list[str]
    ) -> None:
        """Keeps the answer. Warns if it cannot."""
        tensors: dict[str, Tensor] = {}
        try:
            structure = _pack(answer, tensors)
        except TypeError as error:
            warnings.warn(NotCached(f"these embeddings are not kept: {error}"), stacklevel=3)
            return
        content = save(tensors)
        about = {
            "format": FORMAT,
            "result": structure,
            "read": {name: [list(inputs) for inputs in calls] for name, calls in encoder_calls.items()},
            "cut": cuts,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        try:
            write_atomic(self.folder / f"{key}.safetensors", content, shared=True)
            write_atomic(self.folder / f"{key}.json", json.dumps(about), shared=True)  # last: it has the checksum
        except OSError as error:
            warnings.warn(NotCached(f"cannot keep embeddings in {self.folder}: {error.strerror}"), stacklevel=3)

    def read(self, key: str, device: torch.device) -> object:
        """The answer; None if there is none. Warns if its files are damaged."""
        if not os.path.lexists(self.folder / f"{key}.json"):
            return None
        try:
            about = json.loads(read_regular_file(self.folder / f"{key}.json"))
            content = read_regular_file(self.folder / f"{key}.safetensors")
            if about["format"] != FORMAT or about["sha256"] != hashlib.sha256(content).hexdigest():
                raise ValueError("its checksum is wrong")
            answer = _unpack(about["result"], load(content), device)
            encoder_calls = {
                name: [EncoderInputs(*inputs) for inputs in calls] for name, calls in about["read"].items()
            }
            cuts = [str(cut) for cut in about["cut"]]
        except (ToushiError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            warnings.warn(
                NotCached(f"embeddings in {self.folder} are damaged ({error}): they are computed again"), stacklevel=3
            )
            return None
        self.encoder_calls = encoder_calls
        for cut in cuts:
            warnings.warn(PromptCut(cut), stacklevel=3)
        return answer


def _dtype_name(value: object) -> str:
    if isinstance(value, torch.dtype):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no plain value")


# --- an answer as JSON and tensors ---


def _pack(value: object, tensors: dict[str, Tensor]) -> dict[str, object]:
    """The value as JSON. Its tensors are put into `tensors`. Raises TypeError for other types."""
    if value is None or isinstance(value, str | bool | int | float):
        return {"value": value}
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name, "cpu": value.device.type == "cpu"}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else type(value).__name__
        if kind in ("list", "tuple", "EncodedPrompts"):
            return {kind: [_pack(item, tensors) for item in value]}
    raise TypeError(f"encode_prompt returned a {type(value).__name__}")


def _unpack(structure: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """The value that was packed. Tensors that were not on the CPU are moved to `device`."""
    if "tensor" in structure:
        tensor = tensors[structure["tensor"]]
        return tensor if structure["cpu"] else tensor.to(device)
    if "value" in structure:
        return structure["value"]
    ((kind, items),) = structure.items()
    values = [_unpack(item, tensors, device) for item in items]
    if kind == "EncodedPrompts":
        from toushi.probe.models.z_image import EncodedPrompts

        return EncodedPrompts(*values)
    return {"list": list, "tuple": tuple}[kind](values)
