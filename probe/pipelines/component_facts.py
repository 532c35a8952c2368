"""The parts of a model as they are in memory: class, config, settings of their modules, and weights."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import TypedDict

import torch
from torch import nn

from toushi.hooks.torch_private import is_compiled
from toushi.probe.pipelines.encoder_identity import plain_settings, update_with_weights, weight_sample_digest
from toushi.probe.pipelines.family import Family, Model, unwrap
from toushi.probe.pipelines.json_values import json_value

PLAIN = (bool, int, float, str, torch.dtype)


class ComponentFacts(TypedDict, total=False):
    """Of a component in the manifest. What is not known of it is left out."""

    type: str
    config: object
    dtype: str | None
    compiled: bool
    settings: dict[str, object]
    weights_sample_sha256: str | None
    weights_sha256: str | None


def describe_components(model: Model, family: Family, hash_weights: bool = False) -> dict[str, ComponentFacts]:
    """The model itself, as `pipeline`, and its components: modules, scheduler, image processors. Tokenizers are known by
    the tokens of the trace.

    hash_weights  whether every weight is read for a SHA-256, not only a sample
    """
    parts = {**modules_of(model), family.scheduler: getattr(model, family.scheduler)}
    parts |= {name: part for name, part in vars(model).items() if isinstance(getattr(part, "config", None), Mapping)}
    settings = {name: value for name, value in plain_settings(model).items() if name != "class"}
    pipeline = ComponentFacts(type=type(model).__name__, config=json_value(_config(model) | settings))
    return {"pipeline": pipeline} | {
        name: _describe_module(part, hash_weights) if isinstance(part, nn.Module) else _describe(part)
        for name, part in parts.items()
        if not name.startswith("_")
    }


def modules_of(model: Model) -> dict[str, nn.Module]:
    """The modules that a model consists of, by name."""
    parts = dict(model.named_children()) if isinstance(model, nn.Module) else model.components
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def _describe(part: object) -> ComponentFacts:
    return ComponentFacts(type=type(part).__name__, config=json_value(_config(part)))


def _config(part: object) -> dict[str, object]:
    """The entries of the config. An attribute of the same name counts, for methods such as `set_shift` change it alone.

    What has no config, such as a scheduler of our own, has its plain attributes.
    """
    config = getattr(part, "config", None)
    if to_dict := getattr(config, "to_dict", None):  # of transformers
        config = to_dict()
    elif is_dataclass(config) and not isinstance(config, type):
        config = asdict(config)
    elif not isinstance(config, Mapping):
        config = {name: value for name, value in vars(part).items() if _is_plain(value)}
    entries = {name: value for name, value in config.items() if not name.startswith("_")}
    for name in entries:
        if name in vars(part) or isinstance(getattr(type(part), name, None), property):
            entries[name] = value if _is_plain(value := getattr(part, name)) else entries[name]
    return entries


def _describe_module(part: nn.Module, hash_weights: bool) -> ComponentFacts:
    module, whole = unwrap(part), None
    if hash_weights:
        digest = hashlib.sha256()
        update_with_weights(digest, module)
        whole = digest.hexdigest()
    weight = next(module.parameters(), None)
    return _describe(module) | ComponentFacts(
        dtype=None if weight is None else str(weight.dtype).removeprefix("torch."),
        compiled=is_compiled(part),
        settings=_settings(module),
        weights_sample_sha256=weight_sample_digest({"": module}),
        weights_sha256=whole,
    )


def _settings(module: nn.Module) -> dict[str, object]:
    """Plain attributes of all modules inside: the value, or a list of the different values. Those that are off (None,
    False) are left out.

    FreeU, tiling of the VAE, the scale of an IP-Adapter or a changed padding of convolutions show here.
    """
    values: dict[str, dict[str, object]] = {}
    for part in module.modules():
        is_layer = type(part).__module__.startswith("torch.nn.")  # its numbers are the shapes of its weights
        for name, value in vars(part).items():
            if name[0] == "_" or name == "name_or_path" or not (_is_plain(value) or name == "processor"):
                continue
            key = repr(value) if _is_plain(value) else type(value).__name__
            if not (is_layer and _is_integers(value)) and key not in values.setdefault(name, {}):
                values[name][key] = json_value(value)
    settings = {name: [entries[key] for key in sorted(entries)] for name, entries in sorted(values.items()) if entries}
    return {
        name: entries[0] if len(entries) == 1 else entries
        for name, entries in settings.items()
        if entries not in ([None], [False])
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, PLAIN)


def _is_integers(value: object) -> bool:
    numbers = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
