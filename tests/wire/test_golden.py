"""The bytes of every message, written down: what other versions and other languages rely on does not move."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from headrace import Job, JobState, Result, Status, Tensor
from headrace.errors import DecodeError, FailureCode, UnsupportedVersionError
from headrace.messages import (
    WIRE_VERSION,
    Batch,
    BatchOutcome,
    Chunk,
    Envelope,
    Failure,
    Fate,
    InboxEntry,
    LaneEntry,
    pack_answer,
    pack_chunk,
    pack_failure,
    pack_payload,
    unpack_chunk,
    unpack_payload,
)
from headrace.messages.record import Record

ENVELOPE = b"1 job-1 orders-7f3a default 1 1764000060000 1764000000000 c0ffee01 - 3,1000,60000,engine_failed"
RETRY = "3,1000,60000,engine_failed"
PARSED = Envelope(1, "job-1", "orders-7f3a", "default", 1, 1764000060000, 1764000000000, "c0ffee01", "-", RETRY)


def test_the_version() -> None:
    """Whoever raises it writes the new bytes below, and keeps the old ones."""
    assert WIRE_VERSION == 1


@pytest.mark.parametrize(
    ("value", "params", "golden"),
    [
        ("water", {}, "81a5696e707574a57761746572"),
        ("water", {"k": 3}, "82a5696e707574a57761746572a6706172616d7381a16b03"),
        (b"\x00\xff", {}, "81a5696e707574c40200ff"),
        ([1, -1, 2.5, True, None], {}, "81a5696e7075749501ffcb4004000000000000c3c0"),
        ({"a": {"b": []}}, {}, "81a5696e70757481a16181a16290"),
        ("ü", {}, "81a5696e707574a2c3bc"),
    ],
)
def test_payload(value: Any, params: dict[str, Any], golden: str) -> None:
    payload = pack_payload(Job(model="echo", input=value, params=params))
    assert payload.hex() == golden
    assert unpack_payload(bytes.fromhex(golden)) == (value, params)


def test_envelope() -> None:
    assert Envelope.parse(ENVELOPE) == PARSED
    assert " ".join(map(str, PARSED)).encode() == ENVELOPE


def test_a_newer_envelope_is_read_as_far_as_it_is_known() -> None:
    newer = Envelope.parse(b"2" + ENVELOPE[1:] + b" more words")
    assert newer == PARSED._replace(version=2)
    assert PARSED.supported
    assert not newer.supported


@pytest.mark.parametrize(
    ("golden", "state", "finished_ms"),
    [
        (b"waiting 1 1764000000000-0 0 " + ENVELOPE, JobState.WAITING, 0),
        (b"ok 1 1764000000000-0 1764000001000 " + ENVELOPE, JobState.OK, 1764000001000),
        (b"dead 1 1764000000000-0 1764000001000 " + ENVELOPE, JobState.DEAD, 1764000001000),
    ],
)
def test_record(golden: bytes, state: JobState, finished_ms: int) -> None:
    record = Record.parse(golden)
    assert record == Record(state, 1, "1764000000000-0", finished_ms, PARSED)
    status = record.to_status("echo", 0)
    assert (status.state, status.finished_ms, status.priority) == (state, finished_ms or None, "normal")


def test_lane_entry() -> None:
    entry = LaneEntry.read(1, b"1764000000000-0", [b"e", ENVELOPE, b"p", b"\x80"])
    assert entry == LaneEntry(1, "1764000000000-0", ENVELOPE, b"\x80")
    assert entry.envelope == PARSED
    assert LaneEntry.read(1, b"1-0", [b"new", b"x", b"p", b"\x80", b"e", ENVELOPE]).text == ENVELOPE


ANSWERS = [
    (pack_answer("x"), "81a66f7574707574a178", {"output": "x"}),
    (pack_answer(None), "81a66f7574707574c0", {"output": None}),
    (
        pack_answer([{"label": "POSITIVE", "score": 0.5}], input_tokens=4, queued_ms=1.5, run_ms=0.25, variant="int8"),
        "85a66f75747075749182a56c6162656ca8504f534954495645a573636f7265cb3fe0000000000000ac696e7075745f746f6b656e73"
        "04a97175657565645f6d73cb3ff8000000000000a672756e5f6d73cb3fd0000000000000a776617269616e74a4696e7438",
        {
            "output": [{"label": "POSITIVE", "score": 0.5}],
            "input_tokens": 4,
            "queued_ms": 1.5,
            "run_ms": 0.25,
            "variant": "int8",
        },
    ),
    (
        pack_answer(Tensor(dtype="float32", shape=[2], data=struct.pack("<2f", 1.0, -0.5))),
        "81a674656e736f7283a56474797065a7666c6f61743332a573686170659102a464617461c4080000803f000000bf",
        {"output": Tensor(dtype="float32", shape=[2], data=b"\x00\x00\x80\x3f\x00\x00\x00\xbf")},
    ),
]


@pytest.mark.parametrize(("body", "golden", "parts"), ANSWERS, ids=range(len(ANSWERS)))
def test_answer(body: bytes, golden: str, parts: dict[str, Any]) -> None:
    assert body.hex() == golden
    fields = [b"e", b"1 job-1 ok 2", b"r", bytes.fromhex(golden)]
    result = InboxEntry.parse("orders-7f3a", b"1764000000000-0", fields).to_result("echo")
    expected: dict[str, Any] = {
        "model": "echo",
        "id": "job-1",
        "status": Status.OK,
        "attempt": 2,
        "cursor": "1764000000000-0",
    }
    assert result == Result(**expected, **parts)


@pytest.mark.parametrize("status", ["error", "expired", "cancelled", "dead"])
def test_failure(status: str) -> None:
    golden = "84a4636f6465ad696e76616c69645f696e707574a76d657373616765a5656d707479a468696e74a0a9726574727961626c65c2"
    assert pack_failure(FailureCode.INVALID_INPUT, "empty").hex() == golden
    fields = [b"e", f"1 job-1 {status} 1".encode(), b"r", bytes.fromhex(golden)]
    result = InboxEntry.parse("orders-7f3a", b"1-0", fields).to_result("echo")
    assert (result.status, result.failure) == (Status(status), Failure(code="invalid_input", message="empty"))


def test_chunk() -> None:
    golden = "84a16901a16e03a6746f6b656e739207cdbfffa474657874a3c3bc21"
    assert pack_chunk(1, before=3, tokens=[7, 49151], text="ü!").hex() == golden
    assert unpack_chunk(bytes.fromhex(golden)) == Chunk(1, "ü!", [7, 49151], None, 3)
    one = {"token": "ü", "logprob": -0.5, "bytes": [195, 188], "top_logprobs": []}
    chunk = Chunk(0, "", [7], [one], 0)
    assert unpack_chunk(pack_chunk(0, before=0, tokens=[7], text="", logprobs=[one])) == chunk
    assert unpack_chunk(b"\x85\xa3new\x01" + pack_chunk(0, before=0, tokens=[7], text="")[1:]) == Chunk(0, "", [7])


def test_a_failure_with_what_there_was() -> None:
    partial = {"choices": [{"index": 0, "text": "wa", "finish_reason": "cancelled"}]}
    body = pack_failure(FailureCode.CANCELLED, "x", partial=partial)
    result = InboxEntry.parse("box", b"1-0", [b"e", b"1 job-1 cancelled 1", b"r", body]).to_result("echo")
    assert (result.output, result.text, result.failure) == (partial, "wa", Failure(code="cancelled", message="x"))


def test_a_newer_answer_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedVersionError, match="wire version 2"):
        InboxEntry.parse("orders-7f3a", b"1-0", [b"e", b"2 job-1 ok 1", b"r", b"\x80"])


def test_fields_and_words_that_came_later_are_passed_over() -> None:
    fields = [b"new", b"?", b"e", b"1 job-1 ok 1 more words", b"r", b"\x81\xa6output\x01"]
    assert InboxEntry.parse("orders-7f3a", b"1-0", fields).to_result("echo").output == 1


def test_a_chunk_is_no_result() -> None:
    entry = InboxEntry.parse("orders-7f3a", b"1-0", [b"e", b"1 job-1 chunk 1", b"r", b"\x80"])
    assert entry.status == "chunk"
    with pytest.raises(DecodeError, match="chunk"):
        entry.to_result("echo")


def test_batch() -> None:
    batch = Batch("echo", 1764000000000, [LaneEntry(1, "1-0", ENVELOPE, b"\x80"), LaneEntry(0, "2-0", b"e", b"")])
    golden = (
        "94a46563686fcf0000019ab697e8009294" + "01a3312d30" + f"c4{len(ENVELOPE):02x}" + ENVELOPE.hex() + "c40180"
        "9400a3322d30c40165c400" + "c2"
    )
    assert batch.to_bytes().hex() == golden
    assert Batch.from_bytes(bytes.fromhex(golden)) == batch


def test_outcome() -> None:
    outcome = BatchOutcome(fates=[Fate.ANSWERED, Fate.LATE, Fate.RETURNED], tokens=[4, 300, 0], run_s=0.5)
    golden = "93930001029304cd012c00cb3fe0000000000000"
    assert outcome.to_bytes().hex() == golden
    assert BatchOutcome.from_bytes(bytes.fromhex(golden)) == outcome
