"""The payload: a msgpack map of `input` and, unless it is empty, `params`. Only replicas open it."""

from __future__ import annotations

from typing import Any

from headrace.codec import MAX_DEPTH, MAX_PAYLOAD_BYTES, check_plain, pack, unpack
from headrace.errors import DecodeError, InvalidJobError
from headrace.messages.job import Job

__all__ = ["pack_payload", "unpack_payload"]


def pack_payload(job: Job) -> bytes:
    """The payload of a job.

    Raises:
        InvalidJobError: it is larger than `MAX_PAYLOAD_BYTES`, or holds text that is not Unicode.
    """
    body = {"input": job.input, "params": job.params} if job.params else {"input": job.input}
    try:
        payload = pack(body)
    except DecodeError as error:
        raise InvalidJobError(f"invalid job: input or params {error.reason}") from None
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise InvalidJobError(
            f"invalid job: input and params take {len(payload):,} bytes, the limit is {MAX_PAYLOAD_BYTES:,}; "
            "split the input, or pass a reference to it"
        )
    return payload


def unpack_payload(payload: bytes) -> tuple[Any, dict[str, Any]]:
    """Input and params of a payload.

    Raises:
        DecodeError: it is not what `pack_payload` makes, whoever made it.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise DecodeError(f"payload of {len(payload):,} bytes; the limit is {MAX_PAYLOAD_BYTES:,}")
    body = unpack(payload)
    if not isinstance(body, dict) or "input" not in body or not body.keys() <= {"input", "params"}:
        raise DecodeError("the payload must be a map of 'input' and, optionally, 'params', and nothing else")
    params = body.get("params", {})
    if not isinstance(params, dict):
        raise DecodeError("'params' must be a map")
    try:
        check_plain(body["input"])
        check_plain(params, depth=MAX_DEPTH + 1)  # each parameter may be as deep as the input
    except ValueError as error:
        raise DecodeError(f"the input {error}") from None
    return body["input"], params
