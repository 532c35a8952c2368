"""What the embeddings of a prompt depend on besides the prompt: weights, configs, tokenizers and settings."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toushi.probe.pipelines.family import Model, unwrap

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def encoder_digests(model: Model, encoders: "Mapping[str, PreTrainedModel]") -> dict[str, str]:
    """SHA-256 of each text encoder (class, weights, config) and of each tokenizer, by component."""
    digests = {}
    for name, encoder in encoders.items():
        digest = hashlib.sha256(type(unwrap(encoder)).__qualname__.encode())
        for key, weight in sorted(encoder.state_dict().items()):
            if isinstance(weight, Tensor):
                digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
                digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        config = {key: value for key, value in encoder.config.to_dict().items() if key != "_name_or_path"}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        digests[name] = digest.hexdigest()
    for name in sorted(getattr(model, "components", {"tokenizer": None})):
        tokenizer = getattr(model, name, None) if name.startswith("tokenizer") else None
        if tokenizer is not None:
            rules = json.dumps(tokenizer_rules(tokenizer), sort_keys=True)
            digests[name] = hashlib.sha256(rules.encode()).hexdigest()
    return digests


def tokenizer_rules(tokenizer: "PreTrainedTokenizerBase") -> dict[str, object]:
    """Everything that decides the ids of a text. Truncation and padding of the latest call are no part of it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    names = ("chat_template", "padding_side", "truncation_side", "model_max_length", "special_tokens_map")
    return {**rules, **{name: str(getattr(tokenizer, name, None)) for name in names}}


def weight_sample_digest(encoders: Mapping[str, nn.Module]) -> str | None:
    """SHA-256 of a few numbers of each weight, to notice a change. None if weights are offloaded."""
    digest = hashlib.sha256()
    for encoder in encoders.values():
        # peft renames a layer that gets a LoRA.
        weights = {name.replace(".base_layer", ""): weight for name, weight in encoder.named_parameters()}
        for name, weight in sorted(weights.items()):
            if weight.device.type == "meta":
                return None
            if ".lora_" not in name:
                flat = weight.detach().reshape(-1)
                digest.update(flat[:: max(1, flat.numel() // 8)].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def plain_settings(model: Model) -> dict[str, str | int | float | bool]:
    """The model's class and its plain values, such as its template, the length that it reads, or whether an empty prompt
    becomes zeros."""
    config = getattr(model, "config", None)
    values = {**(config if isinstance(config, Mapping) else {}), **vars(model)}
    return {
        "class": type(model).__qualname__,
        **{
            name: value
            for name, value in values.items()
            if isinstance(value, str | int | float | bool)
            and not name.startswith("_")
            and name not in ("name_or_path", "training")
        },
    }
