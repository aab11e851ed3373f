"""The input of `headrace batch`: a file of JSON lines, read as often as need be and never held whole.

One line is one job: `{"custom_id": "...", "input": ..., "params": {...}}`, params being optional. What is
wrong with a line is a `LineError` with a code, and costs that line alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from headrace.cli.output import CommandError
from headrace.codec import MAX_PAYLOAD_BYTES, pack
from headrace.errors import DecodeError, InvalidJobError
from headrace.messages.job import Job
from headrace.messages.payload import pack_payload
from headrace.messages.retry import RetryPolicy

__all__ = ["BatchInput", "JobOptions", "LineCode", "LineError", "RawLine", "parse_id", "parse_job"]

MAX_LINE_BYTES: Final = 8 * MAX_PAYLOAD_BYTES
"""No payload that the wire takes needs a longer line, however its text is escaped."""

_MAX_ID: Final = 512
_CHUNK_BYTES: Final = 1 << 20
_KEYS: Final = frozenset({"custom_id", "input", "params"})


class LineCode(StrEnum):
    """What can be wrong with a line, before a service ever sees it."""

    LINE_TOO_LONG = "line_too_long"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_CUSTOM_ID = "missing_custom_id"
    INVALID_CUSTOM_ID = "invalid_custom_id"
    DUPLICATE_CUSTOM_ID = "duplicate_custom_id"
    UNKNOWN_KEY = "unknown_key"
    MISSING_INPUT = "missing_input"
    INVALID_PARAMS = "invalid_params"
    INVALID_JOB = "invalid_job"
    """The input or a parameter holds what the wire format has no place for: NaN, half a character, …"""
    TOO_LARGE = "too_large"


class LineError(Exception):
    """This line is no job."""

    def __init__(self, code: LineCode, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class RawLine(NamedTuple):
    """A line as it lies in the file; `data` is None where it is too long to be read."""

    number: int
    offset: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What all jobs of a batch share."""

    model: str
    params: dict[str, object]
    priority: str
    tenant: str
    inbox: str
    retry: RetryPolicy | None = None


class BatchInput:
    """A file that is known by its content: `examine` it once, then read its lines.

    Raises:
        CommandError: it cannot be read, or is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            what = "does not exist" if not path.exists() else "is no regular file, and a batch reads its input twice"
            raise CommandError(f"{path} {what}", code="no_input", hint="name a file of JSON lines")
        self.sha256 = ""
        self.size_bytes = 0
        self.lines_at_most = 0
        self._looked: tuple[int, int] = (0, 0)

    def examine(self) -> None:
        """Learn its identity and how many lines it has."""
        digest, size, lines, end = hashlib.sha256(), 0, 0, b"\n"
        with self.path.open("rb") as file:
            self._looked = _stamp(file)
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                lines += chunk.count(b"\n")
                end = chunk[-1:]
        self.sha256, self.size_bytes, self.lines_at_most = digest.hexdigest(), size, lines + (end != b"\n")

    def lines(self) -> Iterator[RawLine]:
        """Every line that is not blank, in order.

        Raises:
            CommandError: the file is not any more what was examined.
        """
        number = offset = 0
        with self.path.open("rb") as file:
            while head := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                whole = head.endswith(b"\n") or len(head) <= MAX_LINE_BYTES
                length = len(head) if whole else len(head) + _skip_rest(file)
                if not whole:
                    yield RawLine(number, offset, None)
                elif head.strip():
                    yield RawLine(number, offset, head)
                offset += length
            if _stamp(file) != self._looked or offset != self.size_bytes:
                raise CommandError(
                    f"{self.path} was changed while the batch ran",
                    code="input_changed",
                    hint="put the file back and repeat the command, or begin anew with --restart",
                )

    def line_at(self, number: int, offset: int) -> RawLine:
        """The line that begins at a place which an earlier reading found."""
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.readline(MAX_LINE_BYTES + 1)
        return RawLine(number, offset, data if len(data) <= MAX_LINE_BYTES else None)


def _stamp(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _skip_rest(file: BinaryIO) -> int:
    """Read to the end of the line; returns how many bytes that were."""
    skipped = 0
    while part := file.readline(_CHUNK_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def parse_id(line: RawLine) -> tuple[str, dict[str, object]]:
    """The line's custom_id, and the whole of its object.

    Raises:
        LineError: there is none to be found.
    """
    fields = _parse_object(line)
    if "custom_id" not in fields:
        raise LineError(LineCode.MISSING_CUSTOM_ID, "the line has no 'custom_id'", "give each line one of its own")
    custom_id = fields["custom_id"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_ID or not _is_unicode(custom_id):
        raise LineError(LineCode.INVALID_CUSTOM_ID, f"'custom_id' must be a text of 1 to {_MAX_ID} characters")
    return custom_id, fields


def _parse_object(line: RawLine) -> dict[str, object]:
    if line.data is None:
        raise LineError(LineCode.LINE_TOO_LONG, f"the line is longer than {MAX_LINE_BYTES:,} bytes", "split the input")
    try:
        fields = json.loads(line.data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise LineError(LineCode.NOT_UTF8, f"the line is not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        raise LineError(LineCode.NOT_JSON, f"the line is not JSON: {error}") from None
    except RecursionError:
        raise LineError(LineCode.NOT_JSON, "the line is nested too deeply") from None
    if not isinstance(fields, dict):
        raise LineError(LineCode.NOT_AN_OBJECT, "the line is JSON, but not an object")
    return fields


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def parse_job(fields: dict[str, object], job_id: str, options: JobOptions) -> Job:
    """The job that a line's object asks for.

    Raises:
        LineError: it asks for none that could be submitted.
    """
    if unknown := sorted(fields.keys() - _KEYS):
        raise LineError(
            LineCode.UNKNOWN_KEY, f"the line has unknown keys: {', '.join(unknown)[:200]}", f"known: {sorted(_KEYS)}"
        )
    if "input" not in fields:
        raise LineError(LineCode.MISSING_INPUT, "the line has no 'input'")
    params = fields.get("params", {})
    if not isinstance(params, dict):
        raise LineError(LineCode.INVALID_PARAMS, "'params' must be an object")
    try:
        job = Job(
            model=options.model,
            input=fields["input"],
            params=options.params | params,
            id=job_id,
            priority=options.priority,
            tenant=options.tenant,
            inbox=options.inbox,
            retry=options.retry,
        )
    except InvalidJobError as error:
        raise LineError(LineCode.INVALID_JOB, str(error)) from None
    try:
        pack_payload(job)
    except InvalidJobError as error:
        raise LineError(_why_not_packed(job), str(error)) from None
    return job


def _why_not_packed(job: Job) -> LineCode:
    try:
        pack([job.input, job.params])
    except DecodeError:
        return LineCode.INVALID_JOB
    return LineCode.TOO_LARGE
