"""docs/wire.md tells the truth: its examples are what the code writes, its tables what the code knows."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from headrace import AsyncClient, Job, SubmitOutcome, Tensor, scripts
from headrace.codec import MAX_DEPTH, MAX_PAYLOAD_BYTES, unpack
from headrace.errors import FailureCode
from headrace.ids import MODEL_PATTERN, NAME_PATTERN
from headrace.keys import MODELS, keys_of
from headrace.messages import pack_answer, pack_chunk, pack_failure, pack_payload
from headrace.messages.inbox import InboxEntry
from headrace.server.connection import execute
from support.by_hand import HandService
from support.by_hand_streams import HandStream

DOCUMENT = (Path(__file__).parents[2] / "docs" / "wire.md").read_text("utf-8")
BLOCKS: dict[str, str] = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", DOCUMENT, re.M | re.S))
SHA = scripts.SUBMIT.sha.encode()


def octets(name: str) -> bytes:
    """A block of hexadecimal digits."""
    return bytes.fromhex(BLOCKS[name])


def resp(name: str, **placeholders: bytes) -> bytes:
    """A block of RESP: each of its lines ends in CR LF, and words in angle brackets stand for bytes."""
    command = BLOCKS[name].encode().replace(b"\n", b"\r\n").replace(b"<sha1 of submit.lua>", SHA)
    for word, data in placeholders.items():
        command = command.replace(f"<{word}>".encode(), data)
    return command


def table(heading: str, *, nth: int = 0) -> dict[str, list[str]]:
    """A table of a section, by its first column, without the quotes around code."""
    section = DOCUMENT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"(?:^\|.*\n)+", section, re.M)[nth].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return {first.strip("| `"): rest for first, *rest in cells}


# -- bytes --------------------------------------------------------------------------------------------------


def test_every_block_of_bytes_is_looked_at_here() -> None:
    assert set(BLOCKS) == {
        *("payload", "submit", "submit-reply", "envelope", "record", "answer"),
        *("body-ok", "body-tensor", "body-error", "read", "client", "chunk", "chunk-entry"),
    }


def test_payload() -> None:
    job = Job(model="echo", input="water flows downhill", params={"normalize": True})
    assert octets("payload") == pack_payload(job)
    assert f"`{{{chr(34)}input{chr(34)}: " in DOCUMENT
    assert f", {len(octets('payload'))} bytes:" in DOCUMENT


def test_bodies() -> None:
    ok = pack_answer("water flows downhill", input_tokens=4, queued_ms=1.5, run_ms=0.25, variant="echo")
    assert octets("body-ok") == ok
    tensor = Tensor(dtype="float32", shape=[2], data=b"\x00\x00\x80\x3f\x00\x00\x00\xbf")
    assert tensor.tolist() == [1.0, -0.5]
    assert octets("body-tensor") == pack_answer(tensor)
    assert octets("body-error") == pack_failure(FailureCode.INPUT_TOO_LONG, "513 tokens", hint="truncate")
    for name in ("body-ok", "body-tensor", "body-error"):
        assert f"{len(octets(name))} bytes" in DOCUMENT


async def test_a_chunk_to_the_byte(redis_url: str) -> None:
    """In the inbox and in the list; CHUNK's codes are those of the table."""
    body, codes = octets("chunk"), {int(code): row[0] for code, row in table("For services: streams", nth=2).items()}
    assert body == pack_chunk(0, before=1, tokens=[4567, 8225], text=" flows down")
    assert f"{len(body)} bytes:" in DOCUMENT
    assert list(codes) == [outcome.value for outcome in scripts.ChunkOutcome]
    async with HandService(redis_url, "echo") as service, AsyncClient(redis_url) as client:
        await client.submit(Job(model="echo", input="x", id="job-1", inbox="orders-7f3a"))
        [decoder] = await HandStream.take(service)
        assert await decoder.write(body) is scripts.ChunkOutcome.WRITTEN
        [(_, fields)] = await execute(service.redis, "XRANGE", keys_of("echo").inbox("orders-7f3a"), "-", "+")
        assert BLOCKS["chunk-entry"] == f"e = {fields[1].decode()}\nr = <body>\n"
        assert fields == [b"e", b"1 job-1 chunk 1", b"r", body]
        assert await execute(service.redis, "LRANGE", keys_of("echo").chunks("job-1"), 1, -1) == [body]
        assert await execute(service.redis, "HGET", keys_of("echo").meta, "streams") == b"1"


def test_generated_text() -> None:
    assert set(table("Generated text", nth=1)) == set(unpack(octets("chunk"))) | {"logprobs"}


def plain(url: str) -> Any:
    """A client of redis-py, whose types say that everything may be everything."""
    return redis.Redis.from_url(url)


class Wire:
    """Raw bytes to and from a server."""

    def __init__(self, url: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(url.removeprefix("unix://"))
        self._socket.settimeout(5)

    def exchange(self, request: bytes) -> bytes:
        self._socket.sendall(request)
        return self._socket.recv(65_536)

    def close(self) -> None:
        self._socket.close()


async def test_submit_and_read_to_the_byte(redis_url: str) -> None:
    """The very bytes of the document, sent to a server: the reply, the lane, the record and the answer follow."""
    wire, client = Wire(redis_url), plain(redis_url)
    keys = keys_of("echo")
    client.script_flush()
    async with HandService(redis_url, "echo") as service:
        assert wire.exchange(resp("submit", payload=octets("payload"))).startswith(b"-NOSCRIPT")
        client.script_load(scripts.SUBMIT.text)
        assert wire.exchange(resp("submit", payload=octets("payload"))) == resp("submit-reply")
        assert wire.exchange(resp("submit", payload=octets("payload"))) == resp("submit-reply"), "a replay"

        [(entry_id, fields)] = client.xrange(keys.lanes[1])
        submitted_ms = fields[b"e"].split(b" ")[6]
        assert fields == {b"e": text("envelope", submitted_ms), b"p": octets("payload")}
        assert client.get(keys.record("job-1")) == text("record", submitted_ms, entry_id)

        assert await service.answer(*await service.take(), output="water flows downhill") == [True]
        reply = wire.exchange(resp("read"))
        [(answer_id, fields)] = client.xrange(keys.inbox("orders-7f3a"))
        assert answer_id in reply
        assert fields == {b"e": b"1 job-1 ok 1", b"r": pack_answer("water flows downhill")}
        assert BLOCKS["answer"] == "e = 1 job-1 ok 1\nr = <body>\n"
        assert client.get(keys.record("job-1")).split(b" ")[:3] == [b"ok", b"1", answer_id]
    wire.close()
    client.close()


def text(name: str, submitted_ms: bytes, entry_id: bytes = b"") -> bytes:
    """A line of text with its placeholders filled in."""
    line = BLOCKS[name].strip().encode()
    return line.replace(b"<submitted ms>", submitted_ms).replace(b"<entry id>", entry_id)


def test_the_read_command_is_well_formed() -> None:
    words = BLOCKS["read"].splitlines()
    assert words[0] == f"*{len(words) // 2}"
    assert [int(word[1:]) for word in words[1::2]] == [len(word) for word in words[2::2]]


# -- tables -------------------------------------------------------------------------------------------------


def test_keys() -> None:
    keys = keys_of("m")
    expected = {MODELS, *keys.permanent, keys.cancels, keys.record("<id>"), keys.inbox("<inbox>")} - set(keys.lanes)
    expected |= {keys.prefix + "d:<id>", keys.chunks("<id>"), keys.heartbeat("<consumer>")}
    assert set(table("Keys")) == {*expected, f"{keys.lanes[0]}` … `{keys.lanes[23]}"}


def test_all_keys_of_a_model_share_a_slot() -> None:
    keys = keys_of("echo#3")
    slots = {key_slot(key.encode()) for key in (keys.prefix, *keys.permanent, keys.record("a"), keys.inbox("b"))}
    assert len(slots) == 1


def test_names_and_limits() -> None:
    limits = table("Names and limits")
    assert limits["model"] == [f"`{MODEL_PATTERN}`"]
    assert limits["job id, inbox, tenant"] == [f"`{NAME_PATTERN}`"]
    assert limits["payload of a job, body of an answer or a chunk"] == [f"{MAX_PAYLOAD_BYTES:,} bytes"]
    assert limits["nesting of lists and maps in an input or a parameter"] == [f"{MAX_DEPTH} levels"]
    assert limits["jobs, or chunks, in one call of a script"] == [str(scripts.MAX_JOBS)]
    for script in (scripts.SUBMIT, scripts.CHUNK):
        assert str(MAX_PAYLOAD_BYTES) in script.text


async def test_registration(redis_url: str) -> None:
    async with HandService(redis_url, "echo") as service:
        meta: dict[bytes, bytes] = await execute(service.redis, "HGETALL", keys_of("echo").meta)
    assert set(table("Registration")) == {name.decode() for name in meta}


def test_codes_of_submit() -> None:
    codes = {int(code): row[0] for code, row in table("Submitting", nth=1).items()}
    assert list(codes) == list(range(len(SubmitOutcome)))
    firsts = [words.split(":")[0] for words in codes.values()]
    assert firsts == [
        *("accepted", "duplicate", "the lane is full", "the tenant has its cap of live jobs"),
        "no service has registered the model",
    ]
    assert tuple(SubmitOutcome) == scripts._OUTCOMES


def test_failure_codes() -> None:
    assert list(table("Failures")) == [str(code) for code in FailureCode]


# -- what SUBMIT refuses ------------------------------------------------------------------------------------

GOOD = [b"1", b"1", b"c0ffee01", b"inbox", b"default", b"-", b"job-1", b"0", b"-", b"\x81\xa5input\x01"]
MISTAKES: list[tuple[int, bytes]] = [
    (0, b"one"), (0, b""), (1, b"3"), (1, b"-1"), (1, b"normal"), (2, b"a b"), (2, b""),
    (3, b""), (3, b"a b"), (3, b"a\nb"), (3, b"x" * 65), (3, b"a{b}"), (4, b"a b"), (4, "ü".encode()),
    (5, b""), (5, b"3 1"), (5, b"x" * 257), (6, b""), (6, b"a b"), (6, b"x" * 65), (6, b"a\x00b"), (7, b""), (7, b"-5"),
    (7, b"1.5"), (7, b"soon"), (7, b"1e9"), (7, b"9" * 13), (8, b""), (8, b"a b"), (8, b"0" * 65),
    (9, b"x" * (MAX_PAYLOAD_BYTES + 1)),
]  # fmt: skip


@pytest.fixture
async def registered(redis_url: str) -> Any:
    """A client of a server where `echo` is registered."""
    async with HandService(redis_url, "echo"):
        pass
    return plain(redis_url)


async def submit(client: Any, arguments: list[bytes]) -> Any:
    return client.eval(scripts.SUBMIT.text, 1, keys_of("echo").prefix, *arguments)


@pytest.mark.parametrize(("place", "wrong"), MISTAKES, ids=lambda value: repr(value)[:12])
async def test_a_mistake_is_refused_before_anything_is_touched(registered: Any, place: int, wrong: bytes) -> None:
    """What would lie in a lane for ever, because nobody could read its envelope, never gets there."""
    arguments = [*GOOD, b"job-2", *GOOD[7:]]
    arguments[place + (4 if place > 5 else 0)] = wrong  # in the second job, behind a good one
    with registered as client:
        with pytest.raises(redis.ResponseError, match=r"^SUBMIT "):
            await submit(client, arguments)
        keys = keys_of("echo")
        assert client.xlen(keys.lanes[1]) == 0
        assert not client.exists(keys.counters, keys.tenants, keys.record("job-1"))


@pytest.mark.parametrize("arguments", [[], GOOD[:6], GOOD[:-1], [*GOOD, b"job-2"]], ids=len)
async def test_the_number_of_arguments(registered: Any, arguments: list[bytes]) -> None:
    with registered as client, pytest.raises(redis.ResponseError, match="takes 6 arguments, then 4 for each job"):
        await submit(client, arguments)


names = st.from_regex(NAME_PATTERN, fullmatch=True)


@given(names, names, names)
def test_whatever_a_name_is_an_envelope_stays_readable(job_id: str, inbox: str, tenant: str) -> None:
    head = f"1 {job_id} ok 1".encode()
    assert InboxEntry.parse(inbox, b"1-0", [b"e", head, b"r", b""]).job_id == job_id
    assert len(f"1 {job_id} {inbox} {tenant}".split(" ")) == 4
