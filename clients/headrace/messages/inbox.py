"""The entry of an inbox: an answer on its way to whoever waits. Two fields, wire version 1:

=====  ========================================================================================
``e``  ``<version> <id> <status> <attempt>``, words separated by single spaces. The version is the
       one the job was submitted in; the status is ``ok``, ``error``, ``expired``, ``cancelled`` or
       ``dead``, of which a job gets exactly one, or ``chunk``. A terminal entry of a job that has
       a trace context has it as a fifth word
``r``  body, a msgpack map: for ``ok`` ``output`` or ``tensor`` and optionally ``input_tokens``,
       ``queued_ms``, ``run_ms``, ``variant``; for the other terminal entries ``code``, ``message``,
       ``hint``, ``retryable`` and optionally ``partial``, an output as far as it got; for a chunk
       see `headrace.messages.chunk`
=====  ========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from headrace.codec import pack, unpack
from headrace.errors import DecodeError, FailureCode, UnsupportedVersionError
from headrace.messages.envelope import WIRE_VERSION
from headrace.messages.job import explain
from headrace.messages.result import Failure, Result, Status, Tensor

__all__ = ["InboxEntry", "pack_answer", "pack_failure"]


def pack_answer(
    output: Any,
    *,
    input_tokens: int = 0,
    queued_ms: float = 0.0,
    run_ms: float = 0.0,
    variant: str = "",
) -> bytes:
    """The body of an `ok` entry. A map of `dtype`, `shape` and `data` is a tensor's to say: pass `Tensor`."""
    body: dict[str, Any] = (
        {"tensor": {"dtype": output.dtype, "shape": output.shape, "data": output.data}}
        if isinstance(output, Tensor)
        else {"output": output}
    )
    if input_tokens:
        body["input_tokens"] = input_tokens
    if queued_ms or run_ms:
        body["queued_ms"], body["run_ms"] = queued_ms, run_ms
    if variant:
        body["variant"] = variant
    return pack(body)


def pack_failure(
    code: FailureCode, message: str, *, hint: str = "", retryable: bool = False, partial: Any = None
) -> bytes:
    """The body of a terminal entry that is not `ok`. `message` is cut to 2,000 characters.

    Args:
        partial: the output as far as it got, if there is something of it.
    """
    message, hint = (text[:2000].encode("utf-8", "replace").decode() for text in (message, hint))
    body = {"code": str(code), "message": message, "hint": hint, "retryable": retryable}
    return pack(body if partial is None else body | {"partial": partial})


class InboxEntry(NamedTuple):
    """One entry as it lies in the stream; `to_result` opens the body of a terminal one."""

    inbox: str
    entry_id: str
    job_id: str
    status: str
    attempt: int
    body: bytes
    traceparent: str = ""

    @classmethod
    def parse(cls, inbox: str, entry_id: bytes, fields: Sequence[bytes]) -> InboxEntry:
        """Read the flat field list of an entry of the stream behind `inbox`.

        Raises:
            DecodeError: it is no inbox entry.
            UnsupportedVersionError: a newer schema wrote it.
        """
        try:
            if len(fields) == 4 and fields[0] == b"e" and fields[2] == b"r":  # as the scripts write it
                head, body = fields[1], fields[3]
            else:
                known = dict(zip(fields[::2], fields[1::2], strict=True))
                head, body = known[b"e"], known[b"r"]
            version, job_id, status, attempt, *more = head.decode("ascii").split(" ")
            if int(version) > WIRE_VERSION:
                raise UnsupportedVersionError(
                    f"an answer of wire version {version}; this client reads up to {WIRE_VERSION}"
                )
            trace = more[0] if more and len(more[0]) <= _LONGEST_TRACE else ""
            return cls(inbox, entry_id.decode("ascii"), job_id, status, int(attempt), body, trace)
        except (KeyError, ValueError) as error:
            raise DecodeError(f"inbox entry {entry_id!r} is malformed: {error!r}") from None

    def to_result(self, model: str) -> Result:
        """The result that this terminal entry carries.

        Raises:
            DecodeError: its body is not one.
        """
        body = unpack(self.body)
        if not isinstance(body, dict):
            raise DecodeError(f"the body of inbox entry {self.entry_id} is not a map")
        try:
            status = _STATUSES.get(self.status) or Status(self.status)
            parts = _parts_of_answer(body) if status is Status.OK else _parts_of_failure(body)
            parts |= {
                "model": model,
                "id": self.job_id,
                "status": status,
                "attempt": self.attempt,
                "cursor": self.entry_id,
                "traceparent": self.traceparent,
            }
            return Result.model_validate(parts)
        except ValidationError as error:
            raise DecodeError(f"inbox entry {self.entry_id}: {explain(error, 'answer')}") from None
        except ValueError as error:
            raise DecodeError(f"inbox entry {self.entry_id}: {error}") from None


_LONGEST_TRACE: Final = 64
_STATUSES: Final = {str(status): status for status in Status}
_ANSWER: Final = frozenset({"output", "tensor", "input_tokens", "queued_ms", "run_ms", "variant"})


def _parts_of_answer(body: dict[str, Any]) -> dict[str, Any]:
    if not body.keys() <= _ANSWER or ("output" in body) == ("tensor" in body):
        raise ValueError(f"an answer has 'output' or 'tensor' and no {sorted(map(str, body.keys() - _ANSWER))}")
    if "tensor" in body:
        body["output"] = Tensor.model_validate(body.pop("tensor"))
    return body


def _parts_of_failure(body: dict[str, Any]) -> dict[str, Any]:
    return {"output": body.pop("partial", None), "failure": Failure.model_validate(body)}
