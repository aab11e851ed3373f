"""Words for what is wrong with a configuration: the key, what it must be, and the name that was probably meant."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Collection, Iterator
from types import NoneType
from typing import Any

from pydantic import BaseModel, ValidationError

__all__ = ["describe", "fields_at", "nearest"]

_Place = tuple[str | int, ...]


def describe(error: ValidationError, schema: type) -> Iterator[tuple[_Place, str]]:
    """Each wrong key's place, and a sentence about it that names it; never the value."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    places = [tuple(detail["loc"]) for detail in details]
    for detail, place in zip(details, places, strict=True):
        # A list whose parts are all wrong is also said to be too short.
        if not (detail["type"] == "too_short" and any(other[: len(place)] == place != other for other in places)):
            yield place, f"{'.'.join(map(str, place))}: {_fault(detail['type'], detail['msg'], place, schema)}"


def _fault(kind: str, message: str, place: _Place, schema: type) -> str:
    if kind == "extra_forbidden":
        return f"there is no such key; {nearest(str(place[-1]), fields_at(schema, place[:-1]))}"
    if kind == "missing":
        return "is missing"
    return message.removeprefix("Value error, ")


def nearest(name: str, known: Collection[str], *, prefix: str = "") -> str:
    """What was probably meant, or else everything that could have been; each with the prefix that all share."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else f"known are {', '.join(prefix + k for k in sorted(known))}"


def fields_at(schema: Any, place: _Place) -> list[str]:
    """The keys that a schema knows at a place in it."""
    for step in place:
        schema = _given(_below(schema, step))
    fields: dict[str, Any] = getattr(schema, "model_fields", {})
    return list(fields)


def _given(schema: Any) -> Any:
    """What a key that may be left out holds where it is not."""
    parts = typing.get_args(schema)
    return next(part for part in parts if part is not NoneType) if NoneType in parts else schema


def _below(schema: Any, step: str | int) -> Any:
    """The schema of a key of a model, of a value of a map, or of an element of a tuple."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_fields[str(step)].annotation
    parts = [part for part in typing.get_args(schema) if part is not Ellipsis]
    return parts[-1] if isinstance(step, str) else parts[0]
