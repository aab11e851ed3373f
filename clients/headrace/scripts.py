"""The Lua scripts, each behind one typed function.

A function's signature is the script's contract; the text is in `lua/`, for clients in other languages to
use as it stands. Every script is replay-safe, so these calls may be retried without asking what the first
try did. A call carries at most `MAX_JOBS` jobs: the server runs nothing else while a script runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, NamedTuple, Self

import redis.asyncio
from redis.exceptions import NoScriptError

from headrace.connection import execute, translated
from headrace.keys import keys_of
from headrace.messages.envelope import WIRE_VERSION
from headrace.messages.job import SubmitOutcome

__all__ = ["MAX_JOBS", "Answer", "Audit", "Script", "audit", "complete", "load", "submit"]

MAX_JOBS: Final = 128


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
            try:
                return await execute(client, "EVALSHA", self.sha, 1, key, *args)
            except NoScriptError:
                await client.script_load(self.text)
                return await execute(client, "EVALSHA", self.sha, 1, key, *args)


SUBMIT: Final = Script("submit")
COMPLETE: Final = Script("complete")
AUDIT: Final = Script("audit")


async def load(client: redis.asyncio.Redis) -> None:
    """Load all scripts, so that no call has to pay for it."""
    async with translated("loading scripts"):
        for script in (SUBMIT, COMPLETE, AUDIT):
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
) -> list[SubmitOutcome]:
    """Hand over jobs, each an (id, deadline in ms from now or 0, traceparent, payload), at most `MAX_JOBS`."""
    args: list[bytes | str | int] = [WIRE_VERSION, priority, token, inbox, tenant]
    for job in jobs:
        args.extend(job)
    codes = await SUBMIT(client, keys_of(model).prefix, args)
    return [_OUTCOMES[code] for code in codes]


class Answer(NamedTuple):
    """A terminal entry to write: where the job lay, its envelope, how it ended, and what to say."""

    priority: int
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

    @classmethod
    def from_reply(cls, flat: Sequence[bytes]) -> Self:
        """Read what the AUDIT script returns."""
        return cls(**{name.decode(): int(number) for name, number in zip(flat[::2], flat[1::2], strict=True)})

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
