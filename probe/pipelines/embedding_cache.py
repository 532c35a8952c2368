"""What the text encoders said of a prompt, kept in a folder, so that they need not run for it again.

A file is found by the digest of everything that the answer depends on: the encoders' weights, configs and tokenizers,
the arguments of `encode_prompt` with the prompt among them, and what computes it. With the answer lie the ids that
were encoded, so that its columns keep their labels. safetensors and JSON only; no prompt becomes a file's name.
"""

import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from toushi.hooks.module_hooks import argument_hooks
from toushi.hooks.watched_modules import is_watched
from toushi.probe.base.atomic_io import write_atomic
from toushi.probe.base.errors import ToushiError
from toushi.probe.base.safe_read import read_regular_file
from toushi.probe.models.mini_unet import PromptCut
from toushi.probe.pipelines.family import EncoderInputs, Family, unwrapped
from toushi.probe.pipelines.load_options import BadOption
from toushi.probe.pipelines.lora import loras_of
from toushi.probe.pipelines.private_api import execution_device

FORMAT = "toushi-text-1"


class NotKept(UserWarning):
    """A text could not be kept, or what was kept of it could not be used; it was encoded as if there were no cache."""


class Texts:
    """`last`: what the text encoders had read when the latest answer, if it came from the folder, was made."""

    def __init__(self, model, family: Family, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadOption(f"cannot keep texts in {folder}: {error.strerror}; choose another folder") from None
        self.model, self.folder, self.read = model, folder, family.text_encoders
        self.encoders = {
            name: part
            for name in (getattr(model, "components", None) or dict(model.named_children()))
            if name.startswith("text_encoder") and isinstance(part := getattr(model, name), nn.Module)
        }
        self.identity = identity(model, self.encoders)
        self.sample = sampled(self.encoders)
        self.last: Mapping[str, list[EncoderInputs]] | None = None

    def around(self, encode_prompt: Callable) -> Callable:
        signature = inspect.signature(encode_prompt)

        @wraps(encode_prompt)
        def wrapper(*arguments, **named):
            self.last = None
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            key = self.key(bound.arguments)
            if key is None:
                return encode_prompt(*arguments, **named)
            device = bound.arguments.get("device") or execution_device(self.model)
            if (found := self.fetch(key, torch.device(device or self.model.device))) is not None:
                return found
            with self.reading() as reads, warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                result = encode_prompt(*arguments, **named)
            cuts = [str(one.message) for one in said if issubclass(one.category, PromptCut)]
            for one in said:
                warnings.warn(one.message, one.category, stacklevel=2)
            self.keep(key, result, reads, cuts)
            return result

        return wrapper

    def key(self, arguments: Mapping[str, Any]) -> str | None:
        """The digest of all that the answer depends on; None if it has to be computed anew."""
        if any(is_watched(unwrapped(encoder)) for encoder in self.encoders.values()):
            return None  # somebody reads or edits the encoder, so that it has to run
        if (sample := sampled(self.encoders)) is not None and sample != self.sample:
            warnings.warn(
                NotKept("the text encoder was changed since it was loaded: its texts are not kept"), stacklevel=3
            )
            return None
        loras = [one for one in loras_of(self.model) if set(one["parts"]) & set(self.encoders)]
        if any(one["sha256"] is None for one in loras):
            return None
        asked = {name: value for name, value in arguments.items() if name not in ("self", "device")}
        about = {
            "format": FORMAT,
            "asked": asked,
            "encoders": self.identity,
            "loras": loras,
            "settings": settings(self.model),
            "device": str(execution_device(self.model) or self.model.device),
            "threads": torch.get_num_threads(),
            "versions": [metadata.version(name) for name in ("torch", "transformers", "diffusers")],
        }
        try:
            return hashlib.sha256(json.dumps(about, sort_keys=True, default=_dtype).encode()).hexdigest()
        except TypeError:  # ready-made embeddings, pictures
            return None

    @contextmanager
    def reading(self):
        """Notes what the encoders are given."""
        runs: dict[str, list[EncoderInputs]] = {name: [] for name in self.encoders if name in self.read}

        def note(name: str, ids: Tensor | None, mask: Tensor | None) -> None:
            if ids is not None:
                runs[name].append(EncoderInputs(ids.tolist(), None if mask is None else mask.long().tolist()))

        with argument_hooks(
            {name: (unwrapped(self.encoders[name]), ["input_ids", "attention_mask"]) for name in runs}, note
        ):
            yield runs

    # --- the folder

    def keep(self, key: str, result, reads: Mapping[str, list[EncoderInputs]], cuts: list[str]) -> None:
        tensors: dict[str, Tensor] = {}
        try:
            structure = packed(result, tensors)
        except TypeError as error:
            warnings.warn(NotKept(f"this text is not kept: {error}"), stacklevel=3)
            return
        content = save(tensors)
        about = {
            "format": FORMAT,
            "result": structure,
            "read": {name: [list(one) for one in some] for name, some in reads.items()},
            "cut": cuts,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        try:
            write_atomic(self.folder / f"{key}.safetensors", content, shared=True)
            write_atomic(
                self.folder / f"{key}.json", json.dumps(about), shared=True
            )  # last: it vouches for the tensors
        except OSError as error:
            warnings.warn(NotKept(f"cannot keep this text in {self.folder}: {error.strerror}"), stacklevel=3)

    def fetch(self, key: str, device: torch.device):
        """The answer; None if there is none that is whole."""
        if not os.path.lexists(self.folder / f"{key}.json"):
            return None
        try:
            about = json.loads(read_regular_file(self.folder / f"{key}.json"))
            content = read_regular_file(self.folder / f"{key}.safetensors")
            if about["format"] != FORMAT or about["sha256"] != hashlib.sha256(content).hexdigest():
                raise ValueError("its checksum is wrong")
            result = unpacked(about["result"], load(content), device)
            reads = {name: [EncoderInputs(*one) for one in some] for name, some in about["read"].items()}
            cuts = [str(cut) for cut in about["cut"]]
        except (ToushiError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            warnings.warn(
                NotKept(f"what {self.folder} keeps of this text is damaged ({error}): it is encoded anew"), stacklevel=3
            )
            return None
        self.last = reads
        for cut in cuts:
            warnings.warn(PromptCut(cut), stacklevel=3)
        return result


def keep_texts(model, family: Family, folder: Path) -> None:
    """From now on the model keeps its texts in the folder."""
    model.kept_texts = Texts(model, family, folder)
    setattr(model, family.encode_prompt, model.kept_texts.around(getattr(model, family.encode_prompt)))


# --- what the answer depends on ---


def identity(model, encoders: Mapping[str, nn.Module]) -> dict[str, str]:
    """Digests of weights, config and tokenizer."""
    found = {}
    for name, encoder in encoders.items():
        digest = hashlib.sha256(type(unwrapped(encoder)).__qualname__.encode())
        for key, weight in sorted(encoder.state_dict().items()):
            if isinstance(weight, Tensor):
                digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
                digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        config = {key: value for key, value in encoder.config.to_dict().items() if key != "_name_or_path"}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        found[name] = digest.hexdigest()
    for name in sorted(getattr(model, "components", {"tokenizer": None})):
        tokenizer = getattr(model, name, None) if name.startswith("tokenizer") else None
        if tokenizer is not None:
            found[name] = hashlib.sha256(json.dumps(spelling(tokenizer), sort_keys=True).encode()).hexdigest()
    return found


def spelling(tokenizer) -> dict[str, Any]:
    """All that tells what ids a text becomes. How far the latest text was cut and filled is no part of it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    names = ("chat_template", "padding_side", "truncation_side", "model_max_length", "special_tokens_map")
    return {**rules, **{name: str(getattr(tokenizer, name, None)) for name in names}}


def sampled(encoders: Mapping[str, nn.Module]) -> str | None:
    """A digest of a few numbers of each weight, to notice a change; None if the weights are put off."""
    digest = hashlib.sha256()
    for encoder in encoders.values():
        for name, weight in sorted((_base(name), weight) for name, weight in encoder.named_parameters()):
            if weight.device.type == "meta":
                return None
            if ".lora_" not in name:
                flat = weight.detach().reshape(-1)
                digest.update(flat[:: max(1, flat.numel() // 8)].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _base(name: str) -> str:
    return name.replace(".base_layer", "")  # what peft calls a layer once there is a LoRA beside it


def settings(model) -> dict[str, Any]:
    """The pipeline's kind and its own plain values, such as its template, the length that it reads, or whether an
    empty prompt becomes zeros."""
    config = getattr(model, "config", None)
    own = {**(config if isinstance(config, Mapping) else {}), **vars(model)}
    return {
        "class": type(model).__qualname__,
        **{
            name: value
            for name, value in own.items()
            if isinstance(value, str | int | float | bool)
            and not name.startswith("_")
            and name not in ("name_or_path", "training")
        },
    }


def _dtype(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no plain value")


# --- what `encode_prompt` returns, as JSON and tensors ---


def packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The structure as JSON; its tensors go to `tensors`."""
    if value is None or isinstance(value, str | bool | int | float):
        return {"value": value}
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name, "cpu": value.device.type == "cpu"}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else type(value).__name__
        if kind in ("list", "tuple", "EncodedPrompts"):
            return {kind: [packed(one, tensors) for one in value]}
    raise TypeError(f"encode_prompt returned a {type(value).__name__}")


def unpacked(structure: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if "tensor" in structure:
        tensor = tensors[structure["tensor"]]
        return tensor if structure["cpu"] else tensor.to(device)
    if "value" in structure:
        return structure["value"]
    ((kind, inside),) = structure.items()
    values = [unpacked(one, tensors, device) for one in inside]
    if kind == "EncodedPrompts":
        from toushi.probe.models.z_image import EncodedPrompts

        return EncodedPrompts(*values)
    return {"list": list, "tuple": tuple}[kind](values)
