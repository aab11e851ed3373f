"""Whatever bytes come, a decoder gives a value or one of the two named errors: nothing else, and never for long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.codec import MAX_DEPTH, MAX_PAYLOAD_BYTES, unpack
from headrace.errors import DecodeError, UnsupportedVersionError
from headrace.messages import Batch, BatchOutcome, Envelope, InboxEntry, LaneEntry, Result, unpack_payload
from headrace.messages.record import Record
from wire.fuzz import TARGETS, FuzzError, Target, fuzz

ENVELOPE = b"1 job-1 orders-7f3a default 1 0 1764000000000 c0ffee01 -"
RECORD = b"waiting 1 1764000000000-0 0 " + ENVELOPE
HEAD = b"1 job-1 ok 1"
NAMED_ERRORS = (DecodeError, UnsupportedVersionError)


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """A valid message with a few bytes replaced, inserted or cut out."""
    cut = st.tuples(st.integers(0, len(whole)), st.integers(0, 4), st.binary(max_size=6))
    return st.lists(cut, min_size=1, max_size=4).map(lambda cuts: _cut(whole, cuts))


def _cut(whole: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    for place, length, instead in cuts:
        whole = whole[:place] + instead + whole[place + length :]
    return whole


def words_like(text: bytes) -> st.SearchStrategy[bytes]:
    """The same number of words, each its own or something else."""
    other = st.sampled_from([b"", b"-1", b"0", b"9" * 30, b"9" * 5000, b"1.5", b"nan", b"\xff", b"a{b}", b"x" * 65])
    words = [st.one_of(st.just(word), other) for word in text.split(b" ")]
    return st.tuples(*words).map(b" ".join)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.binary(max_size=8), inner),
    max_leaves=12,
)
packed = plain.map(lambda value: msgpack.packb(value))
names = st.sampled_from(
    ["input", "params", "output", "tensor", "input_tokens", "queued_ms", "run_ms", "variant", "code", "message",
     "hint", "retryable", b"output", "other"]
)  # fmt: skip
bodies = st.dictionaries(names, plain, max_size=6).map(lambda value: msgpack.packb(value))
tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["float32", "uint8", "object", 7]),
        "shape": st.lists(st.integers(-1, 1 << 62) | st.floats(), max_size=10) | plain,
        "data": st.binary(max_size=16) | st.text(max_size=4),
    }
).map(lambda value: msgpack.packb({"tensor": value}))
anything = st.binary(max_size=200) | packed | bodies | tensors

EXAMPLE_BATCH = Batch("echo", 1, [LaneEntry(1, "1-0", ENVELOPE, b"\x81\xa5input\x01")]).to_bytes()
EXAMPLE_OUTCOME = BatchOutcome(fates=[0, 1, 2], tokens=[4, 0, 1], run_s=0.5).to_bytes()


@given(anything | damaged(b"\x81\xa5input\xa5water"))
def test_payloads(data: bytes) -> None:
    with suppress(*NAMED_ERRORS):
        _, params = unpack_payload(data)
        assert isinstance(params, dict)


@given(words_like(ENVELOPE) | damaged(ENVELOPE) | st.binary(max_size=100))
@example(ENVELOPE + b" and more words")
def test_envelopes(text: bytes) -> None:
    with suppress(*NAMED_ERRORS):
        envelope = Envelope.parse(text)
        assert envelope.deadline_ms >= 0
        assert isinstance(envelope.supported, bool)


@given(words_like(RECORD) | damaged(RECORD) | st.binary(max_size=100))
@example(RECORD.replace(b"waiting 1", b"waiting 7"))
@example(RECORD.replace(b"waiting 1", b"waiting -1"))
def test_records(text: bytes) -> None:
    with suppress(*NAMED_ERRORS):
        Record.parse(text).to_status("echo", 0)


fields = st.lists(st.sampled_from([b"e", b"r", b"p", HEAD, ENVELOPE, b"\x80"]) | st.binary(max_size=20), max_size=6)


@given(st.binary(max_size=20), fields)
@example(b"\xff", [b"e", ENVELOPE, b"p", b""])
@example(b"1-0", [b"e"])
def test_lane_entries(entry_id: bytes, flat: list[bytes]) -> None:
    with suppress(*NAMED_ERRORS):
        assert LaneEntry.read(1, entry_id, flat).envelope.job_id


@given(st.binary(max_size=20), fields)
@example(b"1-0", [b"e"])
@example(b"1-0", [b"e", b"\xff 1 ok 1", b"r", b"\x80"])
def test_inbox_entries(entry_id: bytes, flat: list[bytes]) -> None:
    with suppress(*NAMED_ERRORS):
        InboxEntry.parse("box", entry_id, flat)


@given(words_like(HEAD) | damaged(HEAD) | st.sampled_from([b"1 j error 1", b"1 j dead 2", b"1 j chunk 1"]), anything)
@example(HEAD, msgpack.packb({"other": 1, b"other": 2, "output": 3}))
def test_results(head: bytes, body: bytes) -> None:
    with suppress(*NAMED_ERRORS):
        result = InboxEntry.parse("box", b"1-0", [b"e", head, b"r", body]).to_result("echo")
        assert isinstance(result, Result)
        assert result.ok or result.failure is not None


@given(anything | damaged(EXAMPLE_BATCH))
@example(msgpack.packb(["m", 1, 5]))
@example(msgpack.packb(["m", 1, [5]]))
@example(msgpack.packb(["m", 1, [[1, 2]]]))
@example(msgpack.packb([1, "m", []]))
def test_batches(data: bytes) -> None:
    with suppress(*NAMED_ERRORS):
        batch = Batch.from_bytes(data)
        assert isinstance(batch.model, str)
        assert isinstance(batch.now_ms, int)
        for entry in batch.entries:
            assert [type(value) for value in entry] == [int, str, bytes, bytes]


@given(anything | damaged(EXAMPLE_OUTCOME))
@example(msgpack.packb([1, 2, 3]))
@example(msgpack.packb([[0], ["x"], 0.5]))
@example(msgpack.packb([[0], [1, 2], 0.5]))
def test_outcomes(data: bytes) -> None:
    with suppress(*NAMED_ERRORS):
        outcome = BatchOutcome.from_bytes(data)
        assert len(outcome.fates) == len(outcome.tokens)
        assert all(type(number) is int for number in [*outcome.fates, *outcome.tokens])
        assert isinstance(outcome.run_s, float)


# -- what an attacker would send ----------------------------------------------------------------------------

MANY = (1 << 32) - 1
BOMBS = {
    "an array of 4 billion": b"\xdd" + MANY.to_bytes(4, "big"),
    "a map of 4 billion": b"\xdf" + MANY.to_bytes(4, "big"),
    "a string of 4 GB": b"\xdb" + MANY.to_bytes(4, "big") + b"x",
    "bytes of 4 GB": b"\xc6" + MANY.to_bytes(4, "big") + b"x",
    "an extension of 4 GB": b"\xc9" + MANY.to_bytes(4, "big") + b"\x01x",
    "arrays in arrays": b"\x91" * MAX_PAYLOAD_BYTES,
    "maps in maps": b"\x81\xa1a" * 300_000,
    "big arrays in big arrays": b"\xdc\xff\xff" * 300_000,
    "an extension": msgpack.packb(msgpack.ExtType(42, b"payload")),
    "an extension within": msgpack.packb({"input": [msgpack.ExtType(1, b"")]}),
    "a number as key": msgpack.packb({1: 2}, strict_types=False),
    "a list as key": b"\x81\x90\x01",
    "an unhashable within": b"\x81\xa5input\x81\x91\x01\x02",
    "not UTF-8": b"\x81\xa5input\xa2\xff\xfe",
    "half a message": b"\x82\xa5input\x01",
    "two messages": msgpack.packb({"input": 1}) + b"\xc0",
    "nothing": b"",
    "a byte that msgpack never uses": b"\xc1",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("decode", [unpack_payload, unpack, Batch.from_bytes, BatchOutcome.from_bytes])
def test_bombs_are_refused_at_once(bomb: bytes, decode: Callable[[bytes], Any]) -> None:
    started_s = time.perf_counter()
    with pytest.raises(DecodeError):
        decode(bomb)
    assert time.perf_counter() - started_s < 1.0


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "NaN"),
        ([1.0, {"deep": float("-inf")}], "NaN or infinity"),
        ({1: "x"}, "not msgpack"),
        ({b"x": 1}, "map key that is not text"),
    ],
)
def test_payloads_that_no_model_takes(value: Any, says: str) -> None:
    with pytest.raises(DecodeError, match=says):
        unpack_payload(msgpack.packb({"input": value}))


def test_the_deepest_input_and_one_level_more() -> None:
    value: Any = "bottom"
    for _ in range(MAX_DEPTH):
        value = [value]
    assert unpack_payload(msgpack.packb({"input": value}))[0] == value
    with pytest.raises(DecodeError, match="nested deeper"):
        unpack_payload(msgpack.packb({"input": [value]}))


@pytest.mark.parametrize(
    "extra", [{"imput": 1}, {"input": 1, "model": "x"}, {"params": {}}, {"input": 1, "params": [1]}]
)
def test_unknown_and_missing_fields(extra: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        unpack_payload(msgpack.packb(extra))


def test_of_two_equal_keys_the_last_counts() -> None:
    assert unpack_payload(b"\x82\xa5input\x01\xa5input\x02") == (2, {})


def test_a_payload_that_is_too_large_is_not_even_unpacked() -> None:
    with pytest.raises(DecodeError, match="the limit is 1,048,576"):
        unpack_payload(msgpack.packb({"input": "x" * MAX_PAYLOAD_BYTES}))


# -- many inputs ------------------------------------------------------------------------------------------------------


def test_a_few_thousand_inputs() -> None:
    """What `make fuzz` does with a million, from another seed each time; a failure tells it."""
    report = fuzz(8_000, seed=random.SystemRandom().randrange(1 << 32))
    assert report.values > 500
    assert report.named_errors > 2_000
    assert report.ways > 40
    assert report.memory_grown_mib < 64
    assert set(report.by_target) == {target.name for target in TARGETS}


def test_the_same_seed_gives_the_same_inputs() -> None:
    """Else a failure could not be repeated."""
    first, again = fuzz(1_000, seed=7), fuzz(1_000, seed=7)
    assert (first.values, first.named_errors, first.ways) == (again.values, again.named_errors, again.ways)


@pytest.mark.parametrize(
    ("decode", "says"),
    [
        (lambda data: data.decode("utf-8"), "UnicodeDecodeError"),
        (lambda data: [0] * (1 << 40), "MemoryError"),
        (lambda data: sum(range(30_000_000)), "s for 616263"),
    ],
)
def test_a_decoder_that_fails_is_caught(monkeypatch: pytest.MonkeyPatch, decode: Any, says: str) -> None:
    """With another error, or too late; the seed and the input are told."""
    monkeypatch.setattr("wire.fuzz.SLOW_S", 0.05)
    monkeypatch.setattr("wire.fuzz.TARGETS", (Target("bad", decode, (b"abc",)),))
    with pytest.raises(FuzzError, match=f"bad, seed 3: .*({says}).*"):
        fuzz(2_000, seed=3)
