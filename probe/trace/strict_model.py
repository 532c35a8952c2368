"""Typed JSON of a trace: strict types, unknown fields kept, and an error of one line that names the field."""

import math
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from toushi.probe.trace.trace_errors import DamagedTrace
from toushi.probe.trace.trace_json import Json, short

# Name of an error of pydantic -> what was expected.
EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "missing": "there",
    "model_type": "an object",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_type": "text",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
    "tuple_type": "a list",
}


class StrictModel(BaseModel):
    """A JSON object: declared fields have exactly their types, other fields are kept (`model_extra`, or as attributes)."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    def as_dict(self) -> dict[str, Json]:
        """The JSON object that it was made from, without the fields that it did not have."""
        return self.model_dump(mode="json", exclude_unset=True)


Model = TypeVar("Model", bound=StrictModel)


def validate(model: type[Model], raw: Json, where: str) -> Model:
    """The JSON value as the model. Raises DamagedTrace, in one line, for the first field that does not fit."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        context = problem.get("ctx", {})
        field = ".".join(filter(None, [field_name(problem["loc"]), context.get("field")]))
        expected = context.get("wanted") or EXPECTED.get(problem["type"], problem["msg"]).format(**context)
        came = "nothing" if problem["type"] == "missing" else context.get("came") or short(problem["input"])
        raise DamagedTrace(f"{where}: {field or 'it'} must be {expected}; {came} is there.") from None


def mismatch(field: str, wanted: str, came: object) -> PydanticCustomError:
    """The error that a validator raises: a field inside of what it checks, what it must be, and what is there."""
    return PydanticCustomError("mismatch", "mismatch", {"field": field, "wanted": wanted, "came": short(came)})


def field_name(location: tuple[int | str, ...]) -> str:
    """branches.cond.tokens[3].span of the path into the JSON value."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part == "[key]":
            continue
        else:
            plain = len(part) < 60 and part.replace("_", "").isalnum()
            name += ("." if name else "") + part if plain else f"[{part!r:.60}]"
    return name


# --- types ----------------------------------------------------------------------------------------------


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise mismatch("", "a number", value)
    if not (abs(value) < 2**63 and math.isfinite(value)):
        raise mismatch("", "a finite number", value)
    return value


def limit(most: int) -> BeforeValidator:
    """An object of at most so many entries. They are counted first, or a hostile file would make an error of each."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            raise mismatch("", f"an object of at most {most} entries", value)
        return value

    return BeforeValidator(check)


Number = Annotated[float, PlainValidator(_number), WithJsonSchema({"type": "number"})]  # an int stays one
Count = Annotated[int, Field(ge=0)]
Length = Annotated[int, Field(ge=1, le=65_536)]
Pair = Annotated[tuple[Length, Length], Strict(False)]  # [rows, columns] or [height, width], a list in JSON
Offset = Annotated[int, Field(ge=0, le=2**26)]
SpanPair = Annotated[tuple[Offset, Offset], Strict(False)]  # [start, end] in characters
# The first entry that does not fit ends the check of a list.
Numbers = Annotated[list[Number], Field(fail_fast=True)]
Counts = Annotated[list[Count], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
NamedTexts = Annotated[dict[str, str], limit(10_000)]
