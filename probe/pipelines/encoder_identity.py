"""What the output of a model depends on besides its input: weights, configs, tokenizers and settings."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toushi.probe.pipelines.family import Model, unwrap
from toushi.probe.pipelines.json_values import tensor_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLES = 64  # numbers of each weight, at least, that a sample has


def encoder_digests(model: Model, encoders: "Mapping[str, PreTrainedModel]") -> dict[str, str]:
    """SHA-256 of each text encoder (class, weights, config) and of each tokenizer, by component."""
    digests = {}
    for name, encoder in encoders.items():
        digest = hashlib.sha256(type(unwrap(encoder)).__qualname__.encode())
        update_with_weights(digest, encoder)
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


def update_with_weights(digest: "hashlib._Hash", module: nn.Module) -> None:
    """Adds every weight and buffer of the module to the digest."""
    for key, weight in sorted(module.state_dict().items()):
        if isinstance(weight, Tensor):
            digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(tensor_bytes(weight))


def weight_sample_digest(modules: Mapping[str, nn.Module]) -> str | None:
    """SHA-256 of some numbers of each weight, to notice a change. None if weights are offloaded.

    Weights of LoRAs do not count, unless they are fused into the others.
    """
    # peft renames a layer that gets a LoRA.
    return sample_digest(
        (name.replace(".base_layer", ""), weight)
        for module in modules.values()
        for name, weight in unwrap(module).named_parameters()
        if ".lora_" not in name
    )


def sample_digest(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """SHA-256 of names, shapes and some numbers of these weights. None if one of them is not in memory."""
    names, samples = [], {}
    for name, weight in sorted(weights, key=lambda entry: entry[0]):
        if weight.device.type == "meta":
            return None
        names.append((f"{name} {tuple(weight.shape)}", weight.device))
        flat = weight.detach().reshape(-1)
        samples.setdefault(weight.device, []).append(flat[:: max(1, flat.numel() // SAMPLES)].float())
    # Copied together, because each copy from a GPU waits for it.
    numbers = {device: torch.cat(of).cpu().split([len(sample) for sample in of]) for device, of in samples.items()}
    in_order = {device: iter(of) for device, of in numbers.items()}
    digest = hashlib.sha256(" ".join(name for name, _ in names).encode())
    if names:
        digest.update(tensor_bytes(torch.cat([next(in_order[device]) for _, device in names])))
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
