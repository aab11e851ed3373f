"""Feeds every decoder of the wire with damaged and made-up bytes: `make fuzz`, or `--inputs` for as many as you like.

A decoder may give a value or one of the two named errors, soon, and without keeping memory. Inputs are made from
valid ones by mutation; one that is answered in a new way (another error, another shape of value) becomes a
parent of further ones. The seed is printed and repeats the run.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from headrace.errors import DecodeError, ResultGoneError, UnsupportedVersionError
from headrace.jobs.refusal import drain_rate
from headrace.messages import Batch, BatchOutcome, Envelope, InboxEntry, LaneEntry, unpack_chunk, unpack_payload
from headrace.messages.record import Record
from headrace.messages.retry import RetryPolicy
from headrace.models.dead_letters import DeadLetter
from headrace.scripts import Audit
from headrace.streaming.progress import StreamProgress

__all__ = ["TARGETS", "FuzzError", "Report", "fuzz"]

SLOW_S: Final = 1.0
LARGEST_BYTES: Final = 1 << 16
PARENTS: Final = 400
_BETWEEN: Final = b"\x00|\x00"
"""Stands between the fields of an entry, so that an input is one piece of bytes."""
_VARYING: Final = re.compile(r"b?['\"].*|[^a-z ]+")
"""What of an error's words depends on the input."""
_NAMED: Final = (DecodeError, UnsupportedVersionError)

ENVELOPE = b"1 job-1 orders-7f3a default 1 0 1764000000000 c0ffee01 -"
OLD_ENVELOPE = ENVELOPE + b" 3,1000,60000,engine_failed+pool_failed"
RECORD = b"waiting 1 1764000000000-0 0 " + ENVELOPE
PAYLOAD = msgpack.packb({"input": ["water flows", 1.5, {"deep": [None, True]}], "params": {"normalize": True}})
OK_BODY = msgpack.packb({"output": {"label": "x", "score": 0.5}, "input_tokens": 4, "queued_ms": 1.5, "variant": "v"})
TENSOR_BODY = msgpack.packb({"tensor": {"dtype": "float32", "shape": [2, 1], "data": b"\0\0\x80?\0\0\0\xbf"}})
ERROR_BODY = msgpack.packb({"code": "engine_failed", "message": "m", "hint": "h", "retryable": True})
PARTIAL_BODY = msgpack.packb(
    {"code": "cancelled", "message": "m", "partial": {"choices": [{"index": 0, "text": "wa", "logprobs": None}]}}
)
CHUNK = msgpack.packb({"i": 1, "n": 3, "tokens": [7, 49151], "text": "flows", "logprobs": [{"token": "f"}, {}]})
BATCH = Batch(
    "echo", 1, [LaneEntry(1, "1-0", ENVELOPE, PAYLOAD), LaneEntry(7, "2-0", OLD_ENVELOPE, b"\x80")]
).to_bytes()
OUTCOME = BatchOutcome(fates=[0, 1, 2], tokens=[4, 0, 1], run_s=0.5).to_bytes()


class FuzzError(AssertionError):
    """An input that was not answered as it must be; the message has all that is needed to repeat it."""


@dataclass(frozen=True)
class Target:
    """One decoder."""

    name: str
    decode: Callable[[bytes], Any]
    examples: tuple[bytes, ...]


def fields(*parts: bytes) -> bytes:
    return _BETWEEN.join(parts)


def _lane_entry(data: bytes) -> Any:
    entry_id, *flat = data.split(_BETWEEN)
    entry = LaneEntry.read(1, entry_id, flat)
    envelope = entry.envelope
    return entry, envelope.supported, RetryPolicy.from_word(envelope.retry)


def _inbox_entry(data: bytes) -> Any:
    entry_id, *flat = data.split(_BETWEEN)
    return InboxEntry.parse("box", entry_id, flat).to_result("echo")


def _chunk(data: bytes) -> Any:
    chunk, progress = unpack_chunk(data), StreamProgress("1-0/3.5/3.5")
    with suppress(ResultGoneError):  # what it follows was never there
        return chunk, progress.take("2-0", chunk)


def _dead_letter(data: bytes) -> Any:
    letter_id, *flat = data.split(_BETWEEN)
    letter = DeadLetter.read(letter_id, flat)
    return letter, letter.died_ms, letter.priority


TARGETS: Final = (
    Target("envelope", Envelope.parse, (ENVELOPE, OLD_ENVELOPE, b"9 a b c 1 0 1 x - and more")),
    Target("payload", unpack_payload, (PAYLOAD, b"\x81\xa5input\xa5water")),
    Target("lane entry", _lane_entry, (fields(b"1-0", b"e", OLD_ENVELOPE, b"p", PAYLOAD),)),
    Target("record", lambda data: Record.parse(data).to_status("echo", 0), (RECORD, RECORD.replace(b"waiting", b"ok"))),
    Target(
        "inbox entry",
        _inbox_entry,
        tuple(
            fields(b"1764000000000-0", b"e", b"1 job-1 " + status + b" 1", b"r", body)
            for status, body in (
                (b"ok", OK_BODY),
                (b"ok", TENSOR_BODY),
                (b"error", ERROR_BODY),
                (b"dead", ERROR_BODY),
                (b"cancelled", PARTIAL_BODY),
            )
        ),
    ),
    Target("chunk", _chunk, (CHUNK, msgpack.packb({"i": 0, "n": 0, "tokens": [], "text": ""}))),
    Target("batch", Batch.from_bytes, (BATCH,)),
    Target("outcome", BatchOutcome.from_bytes, (OUTCOME,)),
    Target("dead letter", _dead_letter, (fields(b"1-0", b"e", ENVELOPE, b"l", b"4", b"p", PAYLOAD, b"r", ERROR_BODY),)),
    Target("retry", lambda data: RetryPolicy.from_word(data.decode("utf-8", "replace")), (b"3,1000,60000,x+y", b"-")),
    Target("audit", lambda data: Audit.from_reply(data.split(_BETWEEN)), (fields(b"submitted", b"3", b"live", b"1"),)),
    Target("drain rate", drain_rate, (b"12.5", b"0", b"")),
)


# -- making inputs --------------------------------------------------------------------------------------------------

_WORDS: Final = (
    b"", b" ", b"0", b"-1", b"1", b"9" * 25, b"9" * 5000, b"1e999", b"nan", b"-inf", b"0x1", b"1_0", b"\xff\xfe",
    b"\x00", b"\xc1", b"\xc4\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xdb\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff",
    b"\x91" * 600,
    b"\x81\xa1a" * 400, b"\xcb\x7f\xf8\0\0\0\0\0\0", b"\xd6\xff\0\0\0\0", "ä🦆".encode(), b"ok", b"chunk", b"delayed",
    b"input", b"params", b"tensor", b"float32", _BETWEEN,
)  # fmt: skip
"""What is put into inputs: edges of numbers and texts, msgpack's kinds and its bombs, and words of the formats."""


def mutated(parent: bytes, other: bytes, chance: random.Random) -> bytes:
    """The parent with some things done to it."""
    data = bytearray(parent)
    for _ in range(1 + int(chance.expovariate(0.7))):
        place, length = chance.randrange(len(data) + 1), chance.randrange(1, 9)
        match chance.randrange(8):
            case 0 if data:
                data[place % len(data)] ^= 1 << chance.randrange(8)
            case 1 if data:
                data[place % len(data)] = chance.randrange(256)
            case 2:
                data[place : place + length] = b""
            case 3:
                data[place:place] = chance.randbytes(length)
            case 4:
                data[place : place + length] = chance.choice(_WORDS)
            case 5:
                data[place:place] = data[place : place + length] * chance.randrange(1, 5)
            case 6:
                data = data[:place] + other[chance.randrange(len(other) + 1) :]
            case _:
                del data[place:]
    return bytes(data[:LARGEST_BYTES])


def random_packed(chance: random.Random, depth: int = 3) -> bytes:
    """Valid msgpack of no particular meaning."""
    return bytes(msgpack.packb(_anything(chance, depth)))


def _anything(chance: random.Random, depth: int) -> Any:
    names = ("input", "params", "output", "tensor", "code", "message", "dtype", "shape", "data", "x")
    match chance.randrange(9 if depth else 7):
        case 0:
            return None
        case 1:
            return chance.random() < 0.5
        case 2:
            return chance.randrange(-(1 << 63), 1 << 64)
        case 3:
            return chance.choice([0.5, float("nan"), float("inf"), -0.0])
        case 4:
            return chance.randbytes(chance.randrange(9))
        case 5 | 6:
            return chance.choice([*names, "float32", "ü" * chance.randrange(4)])
        case 7:
            return [_anything(chance, depth - 1) for _ in range(chance.randrange(4))]
        case _:
            return {chance.choice(names): _anything(chance, depth - 1) for _ in range(chance.randrange(4))}


# -- judging ----------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What came of it."""

    seed: int
    inputs: int = 0
    values: int = 0
    named_errors: int = 0
    ways: int = 0
    """In how many different ways the decoders answered."""
    slowest_ms: float = 0.0
    memory_grown_mib: float = 0.0
    seconds: float = 0.0
    by_target: dict[str, int] = field(default_factory=dict)


def way_of(target: Target, data: bytes, report: Report) -> str:
    """How an input is answered, in a few words.

    Raises:
        FuzzError: neither with a value nor with a named error, or too late.
    """
    started_s = time.thread_time()
    try:
        value = target.decode(data)
    except _NAMED as error:
        report.named_errors += 1
        way = f"{type(error).__name__} {_VARYING.sub('', str(error))[:80]}"
    except BaseException as error:
        raise FuzzError(f"{target.name}, seed {report.seed}: {error!r} for {data.hex()}") from error
    else:
        report.values += 1
        way = f"value {shape_of(value)}"
    took_s = time.thread_time() - started_s  # of this thread: the machine may be busy
    report.slowest_ms = max(report.slowest_ms, took_s * 1000)
    if took_s > SLOW_S:
        raise FuzzError(f"{target.name}, seed {report.seed}: {took_s:.1f} s for {data.hex()}")
    return way


def shape_of(value: Any) -> str:
    """Types, two levels deep."""
    parts = value if isinstance(value, tuple) else (value,)
    return ",".join(f"{type(part).__name__}" for part in parts[:12])


def fuzz(inputs: int, seed: int) -> Report:
    """Feed the decoders in turn with as many inputs in all.

    Raises:
        FuzzError: one of them was not answered as it must be.
    """
    chance, report, started_s = random.Random(seed), Report(seed), time.perf_counter()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    streams = [_inputs_of(target, chance, report) for target in TARGETS]
    while report.inputs < inputs:
        for stream in streams:
            next(stream)
            report.inputs += 1
    report.memory_grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    report.seconds = time.perf_counter() - started_s
    return report


def _inputs_of(target: Target, chance: random.Random, report: Report) -> Iterator[None]:
    """Feed one decoder, an input with each step."""
    parents, seen = list(target.examples), set[str]()
    for example in target.examples:
        seen.add(way_of(target, example, report))
    while True:
        kind = chance.random()
        if kind < 0.92:
            data = mutated(chance.choice(parents), chance.choice(parents), chance)
        else:
            data = random_packed(chance) if kind < 0.97 else chance.randbytes(chance.randrange(64))
        if (way := way_of(target, data, report)) not in seen:
            seen.add(way)
            report.ways += 1
            if len(parents) < PARENTS:
                parents.append(data)
        report.by_target[target.name] = report.by_target.get(target.name, 0) + 1
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    given = parser.parse_args()
    print(f"{given.inputs:,} inputs from seed {given.seed}", file=sys.stderr)
    print(json.dumps(vars(fuzz(given.inputs, given.seed))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
