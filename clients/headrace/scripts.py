"""The Lua scripts, each behind one typed function.

A function's signature is the script's contract; the text is in `lua/`, for clients in other languages to
use as it stands. Every script is replay-safe, so these calls may be retried without asking what the first
try did. A call carries at most `MAX_JOBS` jobs: the server runs nothing else while a script runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import IntEnum
from importlib import resources
from typing import Any, Final, NamedTuple

import redis.asyncio
from redis.exceptions import NoScriptError

from headrace.ids import new_token
from headrace.keys import keys_of
from headrace.messages.audit import Audit
from headrace.messages.envelope import WIRE_VERSION, Envelope
from headrace.messages.job import CancelOutcome, SubmitOutcome
from headrace.server.connection import execute, translated

__all__ = [
    "LONE_FAILURE",
    "MAX_JOBS",
    "Answer",
    "Audit",
    "Begun",
    "ChunkOutcome",
    "Delivery",
    "ForgetOutcome",
    "GiveBack",
    "Leader",
    "Reaped",
    "ReplayOutcome",
    "RetryOutcome",
    "Script",
    "StartOutcome",
    "Started",
    "audit",
    "blame",
    "cancel",
    "chunk",
    "complete",
    "forget",
    "lead",
    "load",
    "new_owner",
    "reap",
    "release",
    "replay",
    "retry",
    "start",
    "submit",
    "sweep",
]

MAX_JOBS: Final = 128

LONE_FAILURE: Final = 100
"""What a failure alone counts for among the deliveries of a pending job."""

_LOADS: Final = 4
"""How often a script is loaded for one call: a server may be restarted, or flushed, right after it."""


class Script:
    """One script: its text, its hash, and the call that loads it where it is missing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = resources.files("headrace").joinpath("lua", f"{name}.lua").read_text("utf-8")
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, client: redis.asyncio.Redis, key: str, args: Sequence[bytes | str | int]) -> Any:
        """Run it on the server.

        Raises:
            RedisError: of the kind that fits.
        """
        async with translated(f"script {self.name}"):
            for _ in range(_LOADS):
                try:
                    return await execute(client, "EVALSHA", self.sha, 1, key, *args)
                except NoScriptError:
                    await client.script_load(self.text)
            return await execute(client, "EVALSHA", self.sha, 1, key, *args)


SUBMIT: Final = Script("submit")
START: Final = Script("start")
CHUNK: Final = Script("chunk")
COMPLETE: Final = Script("complete")
RETRY: Final = Script("retry")
SWEEP: Final = Script("sweep")
REAP: Final = Script("reap")
RELEASE: Final = Script("release")
CANCEL: Final = Script("cancel")
REPLAY: Final = Script("replay")
AUDIT: Final = Script("audit")
BLAME: Final = Script("blame")
LEAD: Final = Script("lead")
FORGET: Final = Script("forget")
BACKLOG: Final = Script("backlog")
DUE: Final = Script("due")

ALL: Final = (
    SUBMIT,
    START,
    CHUNK,
    COMPLETE,
    RETRY,
    SWEEP,
    REAP,
    RELEASE,
    BLAME,
    LEAD,
    CANCEL,
    REPLAY,
    FORGET,
    AUDIT,
    BACKLOG,
    DUE,
)


async def load(client: redis.asyncio.Redis) -> None:
    """Load all scripts, so that no call has to pay for it."""
    async with translated("loading scripts"):
        for script in ALL:
            await client.script_load(script.text)


_OUTCOMES: Final = (
    SubmitOutcome.ACCEPTED,
    SubmitOutcome.DUPLICATE,
    SubmitOutcome.QUEUE_FULL,
    SubmitOutcome.TENANT_FULL,
    SubmitOutcome.UNKNOWN_MODEL,
)


async def submit(
    client: redis.asyncio.Redis,
    model: str,
    jobs: Sequence[tuple[str, int, str, bytes]],
    *,
    priority: int,
    token: str,
    inbox: str,
    tenant: str,
    retry: str = "-",
) -> list[SubmitOutcome]:
    """Hand over jobs, each an (id, deadline in ms from now or 0, traceparent, payload), at most `MAX_JOBS`."""
    args: list[bytes | str | int] = [WIRE_VERSION, priority, token, inbox, tenant, retry]
    for job in jobs:
        args.extend(job)
    codes = await SUBMIT(client, keys_of(model).prefix, args)
    return [_OUTCOMES[code] for code in codes]


def new_owner(dispatched_ms: int) -> str:
    """The name of one attempt to run jobs, whose streams nobody takes who was sent them earlier.

    Args:
        dispatched_ms: when a router sent them, in Unix milliseconds of the server's clock: `Batch.now_ms`.
    """
    return f"{dispatched_ms}-{new_token()}"


class Begun(NamedTuple):
    """A job that a replica begins to run."""

    lane: int
    entry_id: str
    job_id: str
    streams: bool


class StartOutcome(IntEnum):
    """What the START script said of one job."""

    NOT_YOURS = 0
    """It has ended, was handed back, or was dispatched again later: whoever got it then has it."""
    YOURS = 1
    CANCELLING = 2
    """It is yours, to end as cancelled."""


class Started(NamedTuple):
    """What became of one job, and the bodies of its chunks so far, in order."""

    outcome: StartOutcome
    chunks: Sequence[bytes]


async def start(client: redis.asyncio.Redis, model: str, owner: str, jobs: Sequence[Begun]) -> list[Started]:
    """Begin to run jobs, at most `MAX_JOBS`, and own their streams as `new_owner`."""
    args: list[bytes | str | int] = [owner]
    for job in jobs:
        args += (job.lane, job.entry_id, job.job_id, int(job.streams))
    return [Started(StartOutcome(code), chunks) for code, *chunks in await START(client, keys_of(model).prefix, args)]


class Delivery(NamedTuple):
    """A chunk to write."""

    owner: str
    envelope: Envelope
    before: int
    """How many chunks the job has before this one, those of earlier owners included."""
    body: bytes


class ChunkOutcome(IntEnum):
    """What the CHUNK script said of one chunk."""

    FENCED = 0
    """Somebody else owns the stream, or the job has ended: drop it."""
    WRITTEN = 1
    CANCELLING = 2
    """It was written, and the job is to be cancelled."""
    LOST = 3
    """The server lost writes, and nothing was written: START the job again, and go on behind what it says."""


async def chunk(client: redis.asyncio.Redis, model: str, chunks: Sequence[Delivery]) -> list[ChunkOutcome]:
    """Deliver chunks, at most `MAX_JOBS`; several of one job in their order."""
    args: list[bytes | str | int] = []
    for owner, envelope, before, body in chunks:
        head = f"{envelope.version} {envelope.job_id} chunk {envelope.attempt}"
        args += (owner, envelope.inbox, head, before, body)
    return [ChunkOutcome(code) for code in await CHUNK(client, keys_of(model).prefix, args)]


class Answer(NamedTuple):
    """A terminal entry to write: where the job lay, its envelope, how it ended, and what to say."""

    lane: int
    entry_id: str
    envelope: bytes
    status: str
    body: bytes
    owner: str = ""
    """Of a job that is streamed: as whom it was started. The answer is refused if its stream is another's now."""


async def complete(client: redis.asyncio.Redis, model: str, answers: Sequence[Answer]) -> list[bool]:
    """End jobs, at most `MAX_JOBS` of them. False where somebody had ended the job before, or has its stream now."""
    args: list[bytes | str | int] = []
    for lane, entry_id, envelope, status, body, owner in answers:
        args += (lane, entry_id, envelope, f"{status}@{owner}" if owner else status, body)
    codes = await COMPLETE(client, keys_of(model).prefix, args)
    return [code == 1 for code in codes]


class GiveBack(NamedTuple):
    """A job that is handed back for another attempt, `delay_ms` from now."""

    lane: int
    entry_id: str
    envelope: bytes
    delay_ms: int


class RetryOutcome(IntEnum):
    """What the RETRY script said of one job."""

    ENDED = 0
    """Somebody ended or moved it before."""
    AGAIN = 1
    """It will run again."""
    CANCELLING = 2
    """It is to be cancelled; nothing was changed."""


async def retry(client: redis.asyncio.Redis, model: str, jobs: Sequence[GiveBack]) -> list[RetryOutcome]:
    """Hand jobs back, at most `MAX_JOBS`, each for an attempt more."""
    args: list[bytes | str | int] = []
    for job in jobs:
        args.extend(job)
    return [RetryOutcome(code) for code in await RETRY(client, keys_of(model).prefix, args)]


async def sweep(client: redis.asyncio.Redis, model: str, limit: int = MAX_JOBS) -> int:
    """Put delayed jobs that are due back into their lanes; returns how many."""
    return int(await SWEEP(client, keys_of(model).prefix, [limit]))


class Reaped(NamedTuple):
    """A job that was taken over from a dead consumer."""

    lane: int
    entry_id: bytes
    deliveries: int
    """How often a router had it, this time included."""
    lone_failures: int
    """How often it failed while it ran alone on its replica."""
    cancelling: bool
    """Whether somebody has asked for it to be cancelled."""
    fields: Sequence[bytes]


async def reap(client: redis.asyncio.Redis, model: str, consumer: str, limit: int = MAX_JOBS) -> list[Reaped]:
    """Take over at most `limit` jobs of consumers without a heartbeat."""
    rows = await REAP(client, keys_of(model).prefix, [consumer, limit])
    return [
        Reaped(lane, entry, count % LONE_FAILURE, count // LONE_FAILURE, state == b"cancelling", fields)
        for lane, entry, count, state, fields in rows
    ]


async def blame(
    client: redis.asyncio.Redis, model: str, consumer: str, *, lane: int, entry_id: str, lone_failures: int
) -> bool:
    """Note how often a job failed alone, for the next router. False if this consumer has it no more."""
    return int(await BLAME(client, keys_of(model).prefix, [consumer, lane, entry_id, lone_failures])) == 1


class Leader(NamedTuple):
    """Which generation of the application reads a model's lanes."""

    generation: int
    lives: bool
    """Whether a router of it that can run jobs gives a sign of life."""


async def lead(
    client: redis.asyncio.Redis, model: str, generation: int, consumer: str, *, able: bool, may_succeed: bool
) -> Leader:
    """Ask which generation of the application reads the lanes, and have it be one's own where it may.

    Args:
        client: of the server.
        model: whose lanes.
        generation: the router's.
        consumer: the router's.
        able: whether the router can run jobs of the model.
        may_succeed: whether it may take over from a newer generation that gives no sign of life.
    """
    args: list[bytes | str | int] = [generation, consumer, int(able), int(may_succeed)]
    number, lives = await LEAD(client, keys_of(model).prefix, args)
    return Leader(int(number), lives == 1)


async def release(client: redis.asyncio.Redis, model: str, consumer: str, *, stays: bool = False) -> None:
    """Give back everything that a consumer holds, uncounted, and forget the consumer unless it stays."""
    while await RELEASE(client, keys_of(model).prefix, [consumer, MAX_JOBS, int(stays)]):
        pass


_CANCELLED: Final = (
    CancelOutcome.UNKNOWN,
    CancelOutcome.CANCELLED,
    CancelOutcome.REQUESTED,
    CancelOutcome.ENDED,
)


async def cancel(client: redis.asyncio.Redis, model: str, job_ids: Sequence[str], body: bytes) -> list[CancelOutcome]:
    """Cancel jobs, at most `MAX_JOBS`; `body` is that of the terminal entry."""
    return [_CANCELLED[code] for code in await CANCEL(client, keys_of(model).prefix, [body, *job_ids])]


class ForgetOutcome(IntEnum):
    """What the FORGET script said of a model."""

    FORGOTTEN = 0
    LETTERS_KEPT = 1
    """Its dead letters and its counts stay; it takes no jobs."""
    LIVE = 2
    """Jobs of it are live; nothing was changed."""
    READ = 3
    """A router still reads it; nothing was changed."""


async def forget(client: redis.asyncio.Redis, model: str) -> ForgetOutcome:
    """Delete what is kept of a model that nobody serves any more."""
    return ForgetOutcome(await FORGET(client, keys_of(model).prefix, []))


class ReplayOutcome(IntEnum):
    """What the REPLAY script said of one dead letter."""

    GONE = 0
    REPLAYED = 1
    LIVE = 2
    """A job of its id is live; the letter stays."""


async def replay(client: redis.asyncio.Redis, model: str, letters: Sequence[str]) -> list[ReplayOutcome]:
    """Submit dead letters again, by their entry ids, at most `MAX_JOBS`."""
    return [ReplayOutcome(code) for code in await REPLAY(client, keys_of(model).prefix, letters)]


async def audit(client: redis.asyncio.Redis, model: str) -> Audit:
    """Count a model's jobs, in one atomic step."""
    return Audit.from_reply(await AUDIT(client, keys_of(model).prefix, []))
