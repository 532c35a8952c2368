"""A study's configuration: its frozen dataclass, filled from a YAML file and from words `key=value`.

pydantic decides what fits an annotation. A mistake is an error of one line that says what was expected and what came.
"""

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import yaml
from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from toushi.probe.base.errors import ToushiError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # scikit-learn takes no larger one
Share = Annotated[float, Field(ge=0, le=1)]
NoiseTime = Annotated[float, Field(gt=0, le=1)]  # 1 is noise; at 0 there is none

Settings = TypeVar("Settings", bound="DataclassInstance")
_Schema = dict[str, Any]  # JSON schema of one field, as pydantic writes it
STRICT = ConfigDict(strict=True, allow_inf_nan=False)
NAMES = {
    "null": "null",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a finite number",
    "string": "text",
    "path": "a path",
}


def load_config(settings: type[Settings], file: Path | None = None, words: Sequence[str] = ()) -> Settings:
    """The configuration `settings(…)` with the file's values, and over them those of the words `key=value`."""
    hints = get_type_hints(settings, include_extras=True)
    types = {field.name: TypeAdapter(hints[field.name], config=STRICT) for field in fields(settings)}
    values = {
        key: _check_value(types, key, value, str(file)) for key, value in (_read_yaml(file) if file else {}).items()
    }
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ToushiError(f"--set expected key=value, but {word!r} came; the keys are {', '.join(types)}")
        values[key] = _check_value(types, key, text, "--set")
    try:
        return settings(**values)
    except TypeError as error:
        raise ToushiError(f"the configuration is incomplete: {error}; add values with --set key=value") from None
    except ValueError as error:  # of its own checks
        raise ToushiError(f"the configuration is wrong: {error}") from None


def config_values(config: "DataclassInstance") -> dict[str, JsonValue]:
    """The configuration as JSON holds it."""
    return json.loads(json.dumps(asdict(config), default=Path.as_posix))


def config_words(config: "DataclassInstance") -> list[str]:
    """The words `key=value` that make this configuration out of the defaults."""
    values, words = config_values(config), []
    for field in fields(config):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if getattr(config, field.name) != default:
            value = values[field.name]
            words.append(f"{field.name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    return words


def _read_yaml(file: Path) -> dict[str, object]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToushiError(f"cannot read the configuration {file}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ToushiError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if values is not None and not (isinstance(values, dict) and all(isinstance(key, str) for key in values)):
        raise ToushiError(f"{file} must hold lines like `key: value`")
    return values or {}


def _check_value(types: dict[str, TypeAdapter[Any]], key: str, value: object, source: str) -> object:
    """The value as the field of this name has it. Raises ToushiError for a wrong key, type or number."""
    if key not in types:
        near = get_close_matches(key, types, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ToushiError(f"{source}: there is no key {key!r}; {hint}the keys are {', '.join(types)}")
    schema = types[key].json_schema()
    plain = _parse_text(value, schema) if isinstance(value, str) else value
    try:
        return types[key].validate_json(json.dumps(plain, default=str))
    except ValidationError:
        raise ToushiError(f"{source}: {key} must be {_describe(schema)}, but {value!r} came") from None


def _parse_text(text: str, schema: _Schema) -> object:
    """The JSON value that the text stands for: 3, true, null, [1, 2]; or the text itself, where none fits."""
    options = {option.get("type"): option for option in schema.get("anyOf", [schema])}
    if "null" in options and text.lower() in ("null", "none"):
        return None
    if "array" in options and text.startswith("["):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text
    if "array" in options:
        items = options["array"].get("items", {})
        return [_parse_text(item.strip(), items) for item in text.split(",")] if text else []
    if "string" in options:
        return text
    for number in (int, float):  # YAML 1.1 takes 1e-3 for text
        try:
            return number(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _describe(schema: _Schema) -> str:
    """What a value must be: "null or a whole number of at least 1"."""
    if "anyOf" in schema:
        return " or ".join(sorted(map(_describe, schema["anyOf"]), key=lambda name: name != "null"))
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if "prefixItems" in schema:
        return f"{len(schema['prefixItems'])} values, {', '.join(map(_describe, schema['prefixItems']))}"
    if schema.get("type") == "array":
        return f"a list, each {_describe(schema.get('items', {}))}"
    name, low, high = schema.get("format", schema.get("type", "")), schema.get("minimum"), schema.get("maximum")
    if low is not None:
        return f"{NAMES[name]} {f'of at least {low}' if high is None else f'from {low} to {high}'}"
    return NAMES.get(name, "what the study's Config says") + ("" if high is None else f" of at most {high}")
