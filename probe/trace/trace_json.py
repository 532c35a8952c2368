"""JSON of a trace: read strictly, and written as it will be read again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from toushi.probe.text.alignment import Token, Word
from toushi.probe.trace.trace_errors import BadRecord, DamagedTrace

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


def parse(data: bytes, where: str) -> Json:
    """The JSON value, read strictly: UTF-8, no lone surrogates, no NaN. Raises DamagedTrace, which names `where`."""

    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON")

    try:
        value = json.loads(data.decode("utf-8"), parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise DamagedTrace(f"{where} is not valid JSON: {error!s:.100}.") from None
    return value


def as_json(value: Mapping[str, object], what: str) -> dict[str, Json]:
    """The object as it will be read again: JSON types only. Raises BadRecord, which names it as `what`."""
    try:
        return json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRecord(f"{what} must be JSON: finite numbers and whole characters ({error}).") from None


def short(value: object) -> str:
    """The value as text for an error, at most 80 characters."""
    try:
        text = repr(value)
    except RecursionError:
        return "something deeply nested"
    return text if len(text) <= 80 else text[:77] + "…"


def _plain(value: object) -> object:
    """A value that JSON does not know, as JSON."""
    if isinstance(value, Token | Word):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise BadRecord(f"A manifest holds JSON values, tokens and words; {type(value).__name__} came: {value!r:.80}.")
