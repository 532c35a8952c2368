"""An experiment's configuration: its frozen dataclass, filled from a YAML file and from `key=value` words.

The dataclass says what fits, a number's bounds too: a wrong key, type or number is an error in one line that names what
was expected.
"""

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from toushi.probe.base.errors import ToushiError


class Misfit(ValueError):
    """What was expected instead."""


@dataclass(frozen=True)
class Within:
    """The bounds of a number, both of them allowed: `Annotated[int, Within(1)]`."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f"of at least {self.low}" if self.high == math.inf else f"from {self.low} to {self.high}"


Count = Annotated[int, Within(1)]
Seed = Annotated[int, Within(0, 2**32 - 1)]  # scikit-learn takes no larger one
Share = Annotated[float, Within(0, 1)]


def configured(kind: type, file: Path | None = None, words: Sequence[str] = ()) -> Any:
    """The configuration `kind(…)` with the file's values, and over them those of the words `key=value`."""
    hints = get_type_hints(kind, include_extras=True)
    hints = {one.name: hints[one.name] for one in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in (_in_file(file) if file else {}).items():
        values[key] = _taken(key, value, hints, fitted, str(file))
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ToushiError(f"--set expected key=value, but {word!r} came; {_keys(hints)}")
        values[key] = _taken(key, text, hints, from_text, "--set")
    try:
        return kind(**values)
    except TypeError as error:
        raise ToushiError(f"the configuration is not whole: {error}; set it with --set key=value") from None
    except ValueError as error:  # of its own checks
        raise ToushiError(f"the configuration cannot be: {error}") from None


def plain(config: Any) -> dict[str, Any]:
    """The configuration as JSON has it."""
    return {one.name: _plain(getattr(config, one.name)) for one in fields(config)}


def as_words(config: Any) -> list[str]:
    """The words `key=value` that make this configuration out of the defaults."""
    words = []
    for one in fields(config):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        name, value = one.name, _plain(getattr(config, one.name))
        if default is MISSING or _plain(default) != value:
            if isinstance(value, list | dict | bool) or value is None:
                value = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
                value = value.removesuffix("...\n").strip()
            words.append(f"{name}={value}")
    return words


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return value


def _in_file(file: Path) -> dict:
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToushiError(f"cannot read the configuration {file}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ToushiError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if raw is not None and not (isinstance(raw, dict) and all(isinstance(key, str) for key in raw)):
        raise ToushiError(f"{file} must hold lines like `key: value`")
    return raw or {}


def _taken(key: str, value: Any, hints: dict, how, where: str) -> Any:
    if key not in hints:
        near = get_close_matches(key, hints, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ToushiError(f"{where}: there is no key {key!r}; {hint}{_keys(hints)}")
    try:
        return how(value, hints[key])
    except Misfit as misfit:
        raise ToushiError(f"{where}: {key} must be {misfit}, but {value!r} came") from None


def _keys(hints: dict) -> str:
    return f"the keys are {', '.join(hints)}"


def fitted(value: Any, hint: Any) -> Any:
    """A value of YAML as the annotation wants it. Raises Misfit."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return _bounded(value, parts, fitted)
    if origin in (Union, types.UnionType):
        return _first(value, parts, fitted)
    if hint in (None, types.NoneType):
        return _must(value is None, None, "nothing (null)")
    if origin is Literal:
        return _must(value in parts, value, _either(parts))
    if origin in (tuple, list):
        several = isinstance(value, list | tuple)
        return _sequence(_must(several, value, f"a list of {_named(parts)}"), origin, parts, fitted)
    if hint is dict or origin is dict:
        return _must(isinstance(value, dict), value, "a mapping")
    if hint is float and isinstance(value, str):  # YAML 1.1 takes 1e-3 for text
        return from_text(value, float)
    kinds = {bool: bool, int: int, float: (int, float), str: str, Path: (str, Path)}
    if hint not in kinds:
        raise TypeError(f"a configuration cannot have a field of type {hint}")
    right = isinstance(value, kinds[hint]) and (hint is bool or not isinstance(value, bool))
    found = hint(_must(right, value, NAMES[hint]))
    return _finite(found) if hint is float else found


def from_text(text: str, hint: Any) -> Any:
    """What was written after `key=` as the annotation wants it. Raises Misfit."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded(text, parts, from_text)
    if origin in (Union, types.UnionType):
        return _first(text, parts, from_text)
    if hint in (None, types.NoneType):
        return _must(text.lower() in ("null", "none"), None, "null")
    if origin is Literal:
        found = [one for one in parts if str(one) == text]
        return _must(bool(found), found[:1], _either(parts))[0]
    if origin in (tuple, list) and not text.startswith("["):
        return _sequence([one.strip() for one in text.split(",")] if text else [], origin, parts, from_text)
    if hint is str:
        return text
    if hint is Path:
        return Path(_must(bool(text), text, NAMES[Path]))
    if hint in (int, float):
        try:
            return _finite(hint(text))
        except ValueError:
            raise Misfit(NAMES[hint]) from None
    if hint is bool:
        return _must(text.lower() in ("true", "false"), text.lower() == "true", NAMES[bool])
    try:
        return fitted(yaml.safe_load(text), hint)
    except yaml.YAMLError:
        raise Misfit("as YAML writes it, [1, 2]") from None


def _finite(value: float) -> float:
    return _must(math.isfinite(value), value, NAMES[float])


NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", Path: "a path"}


def _bounded(value: Any, parts: Sequence, how) -> Any:
    """As Annotated[kind, bounds] wants it; what else is noted there is for others."""
    kind, *marks = parts
    bounds = next((mark for mark in marks if isinstance(mark, Within)), None)
    if bounds is None:
        return how(value, kind)
    expected = f"{NAMES[kind]} {bounds}"
    try:
        number = how(value, kind)
    except Misfit:
        raise Misfit(expected) from None
    return _must(bounds.low <= number <= bounds.high, number, expected)


def _first(value: Any, hints: Sequence, how) -> Any:
    """As the first of the annotations that it fits; text, which everything written fits, comes last."""
    expected = []
    for hint in sorted(hints, key=lambda hint: (hint in (str, Path), hint not in (None, types.NoneType))):
        try:
            return how(value, hint)
        except Misfit as misfit:
            expected.append(str(misfit))
    raise Misfit(" or ".join(dict.fromkeys(expected)))


def _sequence(values: Sequence, origin: type, parts: tuple, how) -> Any:
    if not parts:
        return origin(values)
    if origin is list or parts[-1] is Ellipsis:
        return origin(how(value, parts[0]) for value in values)
    _must(len(values) == len(parts), None, f"{len(parts)} values")
    return tuple(how(value, part) for value, part in zip(values, parts))


def _named(parts: tuple) -> str:
    kinds = [get_args(part)[0] if get_origin(part) is Annotated else part for part in parts if part is not Ellipsis]
    return ", ".join(NAMES.get(kind, str(kind)) for kind in kinds) or "values"


def _either(parts: tuple) -> str:
    return f"one of {', '.join(map(str, parts))}"


def _must(holds: bool, value: Any, expected: str) -> Any:
    if not holds:
        raise Misfit(expected)
    return value
