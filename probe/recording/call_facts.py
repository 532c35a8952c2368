"""What a sampling call was given, for the manifest: every argument that is not its default, and the state of generators."""

import base64
import inspect
from collections.abc import Callable

import torch

from toushi.probe.pipelines.family import Arguments
from toushi.probe.pipelines.json_values import json_value, seed_of, tensor_bytes


def describe_call(sample: Callable[..., object], arguments: Arguments) -> dict[str, object]:
    """Manifest fields: `arguments`; for a call that takes generators also `seed` and `generator_state`, as lists if it
    got several. The commands' own callbacks, which only show the progress, are left out.

    Must be called before the sampling method `sample`, for the call takes numbers from its generators. `arguments` has
    the defaults, too.
    """
    arguments = {name: None if _is_our_callback(value) else value for name, value in arguments.items()}
    given = {}
    for name, parameter in inspect.signature(sample).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= {key: json_value(value, key) for key, value in arguments.get(name, {}).items()}
        elif (value := json_value(arguments.get(name), name)) != json_value(parameter.default, name):
            given[name] = value
    generator = arguments.get("generator")
    if "generator" not in arguments:
        return {"arguments": given}
    several = isinstance(generator, list | tuple)
    pairs = [_generator_facts(each) for each in (generator if several else [generator])]
    seeds, states = ([pair[index] for pair in pairs] for index in (0, 1))
    return {
        "arguments": given,
        "seed": seeds if several else seeds[0],
        "generator_state": states if several else states[0],
    }


def _is_our_callback(value: object) -> bool:
    return inspect.isfunction(value) and value.__module__.startswith(("toushi.cli.", "toushi.probe."))


def _generator_facts(generator: torch.Generator | None) -> tuple[int | None, str | None]:
    """The seed of an unused generator, or the state of a used one in base64."""
    if generator is None or (seed := seed_of(generator)) is not None:
        return (None if generator is None else seed), None
    return None, base64.b64encode(tensor_bytes(generator.get_state())).decode()
