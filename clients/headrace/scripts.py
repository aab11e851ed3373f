"""The Lua scripts, each behind one typed function.

A function's signature is the script's contract; the text is in `lua/`, for clients in other languages to
use as it stands. Every script is replay-safe, so these calls may be retried without asking what the first
try did. A call carries at most `MAX_JOBS` jobs: the server runs nothing else while a script runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from importlib import resources
from typing import Any, Final, NamedTuple, Self

import redis.asyncio
from redis.exceptions import NoScriptError

from headrace.connection import execute, translated
from headrace.errors import DecodeError
from headrace.keys import keys_of
from headrace.messages.envelope import WIRE_VERSION
from headrace.messages.job import CancelOutcome, SubmitOutcome

__all__ = [
    "LONE_FAILURE",
    "MAX_JOBS",
    "Answer",
    "Audit",
    "GiveBack",
    "Reaped",
    "ReplayOutcome",
    "RetryOutcome",
    "Script",
    "audit",
    "blame",
    "cancel",
    "complete",
    "load",
    "reap",
    "release",
    "replay",
    "retry",
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
COMPLETE: Final = Script("complete")
RETRY: Final = Script("retry")
SWEEP: Final = Script("sweep")
REAP: Final = Script("reap")
RELEASE: Final = Script("release")
CANCEL: Final = Script("cancel")
REPLAY: Final = Script("replay")
AUDIT: Final = Script("audit")
BLAME: Final = Script("blame")

ALL: Final = (SUBMIT, COMPLETE, RETRY, SWEEP, REAP, RELEASE, BLAME, CANCEL, REPLAY, AUDIT)


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


class Answer(NamedTuple):
    """A terminal entry to write: where the job lay, its envelope, how it ended, and what to say."""

    lane: int
    entry_id: str
    envelope: bytes
    status: str
    body: bytes


async def complete(client: redis.asyncio.Redis, model: str, answers: Sequence[Answer]) -> list[bool]:
    """End jobs, at most `MAX_JOBS` of them. False where somebody had ended the job before."""
    args: list[bytes | str | int] = []
    for answer in answers:
        args.extend(answer)
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


async def release(client: redis.asyncio.Redis, model: str, consumer: str) -> None:
    """Give back everything that a consumer holds, uncounted, and forget the consumer."""
    while await RELEASE(client, keys_of(model).prefix, [consumer, MAX_JOBS]):
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


class ReplayOutcome(IntEnum):
    """What the REPLAY script said of one dead letter."""

    GONE = 0
    REPLAYED = 1
    LIVE = 2
    """A job of its id is live; the letter stays."""


async def replay(client: redis.asyncio.Redis, model: str, letters: Sequence[str]) -> list[ReplayOutcome]:
    """Submit dead letters again, by their entry ids, at most `MAX_JOBS`."""
    return [ReplayOutcome(code) for code in await REPLAY(client, keys_of(model).prefix, letters)]


@dataclass(frozen=True, slots=True)
class Audit:
    """The conservation of one model's jobs at one moment."""

    submitted: int = 0
    ok: int = 0
    error: int = 0
    expired: int = 0
    cancelled: int = 0
    dead: int = 0
    live: int = 0
    delayed: int = 0
    """Live jobs that wait for their next attempt."""
    dead_letters: int = 0
    """Dead jobs that can still be replayed."""

    @classmethod
    def from_reply(cls, flat: Sequence[bytes]) -> Self:
        """Read what the AUDIT script returns. Counters of a newer service's are left out.

        Raises:
            DecodeError: it is no list of names and numbers.
        """
        try:
            pairs = {name.decode(): int(number) for name, number in zip(flat[::2], flat[1::2], strict=True)}
        except ValueError as error:
            raise DecodeError(f"not an audit: {error}") from None
        return cls(**{name: pairs[name] for name in cls.__slots__ if name in pairs})

    def __add__(self, other: Audit) -> Audit:
        """Of two shards together."""
        return Audit(**{name: getattr(self, name) + getattr(other, name) for name in self.__slots__})

    @property
    def finished(self) -> int:
        """Jobs that have their terminal entry."""
        return self.ok + self.error + self.expired + self.cancelled + self.dead

    @property
    def lost(self) -> int:
        """Jobs that were accepted and are neither ended nor live. Anything but 0 is a fault."""
        return max(0, self.submitted - self.finished - self.live)

    @property
    def doubled(self) -> int:
        """Terminal entries beyond one for each job. Anything but 0 is a fault."""
        return max(0, self.finished + self.live - self.submitted)


async def audit(client: redis.asyncio.Redis, model: str) -> Audit:
    """Count a model's jobs, in one atomic step."""
    return Audit.from_reply(await AUDIT(client, keys_of(model).prefix, []))
