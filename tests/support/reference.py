"""Tables of configuration keys, made of the classes that check them.

    python -m support.reference        # in tests/: rewrite the tables of docs/configuration.md

A table stands between `<!-- keys of NAME -->` and `<!-- end -->`; everything else in the page is written by hand.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
import typing
from pathlib import Path
from typing import Any, Final, Literal, Union

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from headrace import ClientSettings
from headrace.models.registry import Limits
from headrace_cluster.config import models, pools, settings, variants
from headrace_workers.engines.factory import EngineConfig
from headrace_workers.telemetry.observability import LogsConfig, MetricsConfig, TracingConfig

__all__ = ["PAGE", "documented", "rewritten", "undocumented"]

PAGE: Final = Path(__file__).parents[2] / "docs" / "configuration.md"

_CLASSES: Final[dict[str, type[BaseModel]]] = {
    kind.__name__: kind
    for kind in (
        settings.ServiceConfig,
        settings.RouterConfig,
        settings.RedisConfig,
        models.ModelConfig,
        EngineConfig,
        MetricsConfig,
        TracingConfig,
        LogsConfig,
        pools.PoolConfig,
        pools.SharedPoolConfig,
        models.BatchingConfig,
        models.ScalingConfig,
        variants.AdaptiveConfig,
        variants.VariantConfig,
        Limits,
        ClientSettings,
    )
}
_TABLE: Final = re.compile(r"<!-- keys of (\w+) -->\n.*?<!-- end -->", re.S)
_UNITS: Final = (
    (r"_s$", "seconds"),
    (r"_ms$", "milliseconds"),
    (r"bytes$", "bytes"),
    (r"tokens(_per_pass)?$", "tokens"),
    (r"^cpus$", "cores"),
    (r"^gpus$", "GPUs"),
    (r"jobs$|^(lane|tenant)_capacity$", "jobs"),
    (r"^batches_", "batches"),
    (r"^dead_letter_capacity$", "dead letters"),
    (r"replicas$", "processes"),
)
_PLAIN: Final = {
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    str: "text",
    SecretStr: "text",
    Path: "path",
}


def documented(page: str) -> set[str]:
    """The classes that have a table in the page."""
    return {match[1] for match in _TABLE.finditer(page)}


def undocumented(page: str) -> set[str]:
    """The classes that have none."""
    return _CLASSES.keys() - documented(page)


def rewritten(page: str) -> str:
    """The page with its tables made anew."""
    return _TABLE.sub(lambda match: f"<!-- keys of {match[1]} -->\n{_table(_CLASSES[match[1]])}<!-- end -->", page)


def _table(schema: type[BaseModel]) -> str:
    meanings = _docstrings(schema)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in schema.model_fields.items():
        if _inherited(schema, name):
            continue
        rows.append(f"| `{name}` | {_kind(name, field)} | {_default(field)} | {meanings[name]} |")
    return "\n".join(rows) + "\n"


def _inherited(schema: type[BaseModel], name: str) -> bool:
    """Whether the key is in the table of a class that this one refines."""
    return any(
        name in base.model_fields for base in _CLASSES.values() if base is not schema and issubclass(schema, base)
    )


def _docstrings(schema: type[BaseModel]) -> dict[str, str]:
    """What stands below each field in the source."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(text.value.value).split()).replace("None: ", "unset: ")
    return found


def _kind(name: str, field: FieldInfo) -> str:
    """The type in words, with its unit and its bounds."""
    words = _words(field.annotation)
    bounds = _bounds(field.metadata) or _bounds(_inner_metadata(field.annotation))
    unit = next((unit for pattern, unit in _UNITS if re.search(pattern, name)), "")
    return " ".join(part for part in (words, f"of {unit}" if unit else "", f"({bounds})" if bounds else "") if part)


def _words(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is typing.Annotated:
        return _words(parts[0])
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return _words(next(part for part in parts if part is not type(None)))
    if origin is dict:
        return "map"
    if origin is tuple:
        return "list" if Ellipsis in parts else f"list of {len(parts)}: {_words(parts[0])}"
    return "map"


def _inner_metadata(annotation: Any) -> list[Any]:
    """Bounds that stand on an optional value, or on the elements of a list of a fixed length."""
    for part in typing.get_args(annotation):
        if typing.get_origin(part) is typing.Annotated:
            return list(part.__metadata__[0].metadata)
    return []


def _bounds(metadata: list[Any]) -> str:
    found: dict[str, Any] = {}
    for constraint in metadata:
        for name in ("ge", "gt", "le", "pattern", "max_length"):
            value = getattr(constraint, name, None)
            if value is not None:
                found[name] = value
    if "pattern" in found:
        return f"`{found['pattern']}`"
    low = f"from {_number(found['ge'])}" if "ge" in found else f"above {_number(found['gt'])}" if "gt" in found else ""
    high = f"to {_number(found['le'])}" if "le" in found else ""
    return " ".join(part for part in (low, high) if part)


def _number(value: float) -> str:
    return f"{value:,.15g}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**must be given**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None:
        return "unset"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, bool):
        return f"`{value}`".lower()
    if isinstance(value, tuple) and value:
        return "one with its defaults" if isinstance(value[0], BaseModel) else f"`[{', '.join(map(_plain, value))}]`"
    return f"`{_plain(value)}`" if value not in ("", {}, ()) else "empty"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text("utf-8")), "utf-8")
