"""Answers as JSON fields for programs, and as a few lines for people."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from enum import StrEnum
from itertools import islice
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table

from headrace.cli.output import dump
from headrace.messages.result import Failure, Result, Tensor

__all__ = ["TensorFormat", "answer_fields", "failure_fields", "render_result", "result_fields", "visible"]

_FIRST_NUMBERS: Final = 6
_LONGEST_TEXT: Final = 2000


class TensorFormat(StrEnum):
    """How a tensor is written into JSON."""

    LIST = "list"
    BASE64 = "base64"


def answer_fields(result: Result, tensors: TensorFormat = TensorFormat.LIST) -> dict[str, Any]:
    """What an `ok` result says: its output, and what is known of how it came about.

    Raises:
        ValueError: the output holds NaN or infinity, or is nested too deeply; JSON has no words for it.
    """
    return {
        "output": _plain(result.output, tensors),
        "input_tokens": result.input_tokens,
        "queued_ms": round(result.queued_ms, 3),
        "run_ms": round(result.run_ms, 3),
        "variant": result.variant,
    }


def failure_fields(failure: Failure) -> dict[str, Any]:
    """What a failure says."""
    return failure.model_dump()


def result_fields(result: Result, tensors: TensorFormat = TensorFormat.LIST) -> dict[str, Any]:
    """A whole result, of any status; an output that JSON has no words for becomes an error."""
    head = {"id": result.id, "model": result.model, "status": str(result.status), "cursor": result.cursor}
    if not result.ok:
        return head | {"error": failure_fields(failure_of(result))} | _partial(result, tensors)
    try:
        return head | answer_fields(result, tensors)
    except ValueError as error:
        return head | {"error": failure_fields(Failure(code="not_finite", message=str(error)))}


def _partial(result: Result, tensors: TensorFormat) -> dict[str, Any]:
    """What there is of the answer to a job that ended before its time."""
    try:
        return {} if result.output is None else {"partial": _plain(result.output, tensors)}
    except ValueError:  # JSON has no words for it
        return {}


def failure_of(result: Result) -> Failure:
    """The failure of a result that is not ok."""
    return result.failure or Failure(code=str(result.status), message=f"the job ended as {result.status}")


def _plain(value: Any, tensors: TensorFormat, depth: int = 64) -> Any:
    """The value in JSON's types."""
    if isinstance(value, Tensor):
        return _tensor_fields(value, tensors)
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("the output holds NaN or infinity, for which JSON has no words")
    if depth == 0:
        raise ValueError("the output is nested too deeply")
    if isinstance(value, dict):
        return {str(key): _plain(item, tensors, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, tensors, depth - 1) for item in value]
    return value


def _tensor_fields(tensor: Tensor, tensors: TensorFormat) -> dict[str, Any]:
    head = {"dtype": tensor.dtype, "shape": tensor.shape}
    if tensors is TensorFormat.BASE64:
        return head | {"base64": base64.b64encode(tensor.data).decode("ascii")}
    values = tensor.tolist()
    if not all(math.isfinite(number) for number in _numbers(values)):
        raise ValueError("the tensor holds NaN or infinity, for which JSON has no words; ask for base64")
    return head | {"values": values}


def _numbers(values: Any) -> Iterable[float]:
    if not isinstance(values, list):
        yield values
        return
    for item in values:
        yield from _numbers(item)


# -- for people ---------------------------------------------------------------------------------------------


def render_result(result: Result) -> list[RenderableType]:
    """A headline and the answer."""
    if not result.ok:
        failure = failure_of(result)
        hint = f" ({failure.hint})" if failure.hint else ""
        return [visible(f"{result.id}  {result.status}  {failure.code}: {failure.message}{hint}")]
    parts = [result.id, "ok", f"queued {result.queued_ms:.1f} ms", f"ran {result.run_ms:.1f} ms"]
    if result.input_tokens:
        parts.append(f"{result.input_tokens} tokens")
    if result.variant:
        parts.append(result.variant)
    return [visible("  ".join(parts)), _render_output(result.output)]


def _render_output(output: Any) -> RenderableType:
    if isinstance(output, Tensor):
        first = list(islice(_numbers(output.tolist()), _FIRST_NUMBERS + 1))
        numbers = " ".join(f"{number:.6g}" for number in first[:_FIRST_NUMBERS])
        return f"  {output.dtype} {output.shape}  {numbers}" + (" …" if len(first) > _FIRST_NUMBERS else "")
    if isinstance(output, str):
        return visible(_shortened(output))
    if _is_rows(output):
        return _table(output)
    try:
        return visible(_shortened(dump(_plain(output, TensorFormat.LIST))))
    except ValueError as error:
        return f"  ({error})"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}… ({len(text):,} characters)"


def _is_rows(output: Any) -> bool:
    """Whether it is a list of flat maps with the same keys, as labels are."""
    if not isinstance(output, list) or not output or not all(isinstance(row, dict) for row in output):
        return False
    same_keys = all(row.keys() == output[0].keys() for row in output)
    return same_keys and all(isinstance(cell, (str, int, float)) for row in output for cell in row.values())


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in rows[0]:
        table.add_column(visible(str(name)))
    for row in rows:
        table.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else visible(str(cell)) for cell in row.values()))
    return table


def visible(text: str) -> str:
    """The text with control characters made visible: an answer must not steer the terminal."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else character.encode("unicode_escape").decode()
        for character in text
    )
