"""JSON as a trace holds it: read without trust, written without surprises."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from toushi.probe.text.alignment import Token, Word
from toushi.probe.trace.trace_errors import BadRecord, DamagedTrace


def parse(data: bytes, where: str) -> Any:
    """JSON, strictly: UTF-8, no lone surrogates, no NaN."""

    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON")

    try:
        value = json.loads(data.decode("utf-8"), parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise DamagedTrace(f"{where} is not valid JSON ({short(str(error))}).") from None
    return value


def as_json(value: Any, what: str) -> Any:
    """The value as it will be read again: JSON types only. `what` names it in the error."""
    try:
        return json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRecord(f"{what} must be JSON: finite numbers and whole characters ({error}).") from None


def short(value: object) -> str:
    """The value for an error, at most 80 characters."""
    try:
        text = repr(value)
    except RecursionError:
        return "something deeply nested"
    return text if len(text) <= 80 else text[:77] + "…"


def _plain(value: Any) -> Any:
    """A value that JSON does not know, as JSON."""
    if isinstance(value, Token | Word):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise BadRecord(f"A manifest holds JSON values, tokens and words; {type(value).__name__} came: {value!r:.80}.")
