"""`headrace dlq`: look at dead letters, submit them again, or drop them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import redis.asyncio
import typer
from rich.table import Table

from headrace.aio import AsyncClient
from headrace.cli.options import AsJson, Model, RedisUrl, finite
from headrace.cli.output import CommandError, Exit, Output
from headrace.cli.preflight import require_model
from headrace.cli.running import run_to_end
from headrace.errors import DecodeError
from headrace.messages.payload import unpack_payload
from headrace.models.dead_letters import DeadLetter, LetterFilter, drop_letters, read_letters, replay_letters
from headrace.scripts import ReplayOutcome
from headrace.server.connection import commands

__all__ = ["dlq"]

dlq = typer.Typer(no_args_is_help=True, help="Look at dead letters, submit them again, or drop them.")

_Ids = Annotated[list[str] | None, typer.Argument(metavar="[LETTER_ID]...", help="Only these letters.")]
_Job = Annotated[list[str] | None, typer.Option("--job", metavar="JOB_ID", help="Only this job's; repeatable.")]
_Code = Annotated[str | None, typer.Option("--code", help="Only of this failure, such as `poison`.")]
_Tenant = Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="Only of this tenant.")]
_Older = Annotated[
    float | None, typer.Option("--older-than-s", min=0.0, callback=finite, help="Only what died so long ago.")
]
_Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many, the oldest first.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say which letters are meant.")]
_All = Annotated[bool, typer.Option("--all", help="Every letter; needed where nothing else is asked for.")]

_EVERYTHING = 1_000_000


def _wanted(
    ids: list[str] | None, job: list[str] | None, code: str | None, tenant: str | None, older_than_s: float | None
) -> LetterFilter:
    return LetterFilter(frozenset(ids or ()), frozenset(job or ()), code, tenant, older_than_s)


@dlq.command(name="list")
def list_letters(
    model: Model,
    *,
    job: _Job = None,
    code: _Code = None,
    tenant: _Tenant = None,
    older_than_s: _Older = None,
    limit: _Limit = 100,
    redis_url: RedisUrl = None,
    as_json: AsJson = False,
) -> int:
    """List dead letters: which job, whose, how it failed and after how many attempts.

    With --json, one object for each letter.
    """
    wanted, output = _wanted(None, job, code, tenant, older_than_s), Output(as_json=as_json)

    async def work(client: redis.asyncio.Redis) -> Exit:
        letters = await _some(client, model, wanted, limit)
        for letter in letters:
            output.emit(_fields(letter))
        output.show(_table(letters) if letters else f"no dead letters of {model}")
        return Exit.DONE

    return run_to_end(_with_model(redis_url, model, work))


@dlq.command()
def show(model: Model, letter_id: str, *, redis_url: RedisUrl = None, as_json: AsJson = False) -> int:
    """Show one dead letter with its input and parameters."""
    output = Output(as_json=as_json)

    async def work(client: redis.asyncio.Redis) -> Exit:
        letters = await _some(client, model, LetterFilter(frozenset({letter_id})), 1)
        if not letters:
            raise CommandError(
                f"{model} has no dead letter {letter_id}",
                code="no_letter",
                hint=f"headrace dlq list {model}",
                status=Exit.FAILED,
            )
        fields = {**_fields(letters[0]), **_contents(letters[0])}
        output.emit(fields)
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, value in fields.items():
            table.add_row(name, str(value))
        output.show(table)
        return Exit.DONE

    return run_to_end(_with_model(redis_url, model, work))


@dlq.command()
def replay(
    model: Model,
    letter_ids: _Ids = None,
    *,
    job: _Job = None,
    code: _Code = None,
    tenant: _Tenant = None,
    older_than_s: _Older = None,
    every: _All = False,
    dry_run: _DryRun = False,
    redis_url: RedisUrl = None,
    as_json: AsJson = False,
) -> int:
    """Submit dead letters again, as they were, for a first attempt without a deadline.

    The answer goes to the inbox that the job named, behind the entry that called it dead. Exit status 1 if a
    letter was gone, or a job of its id is live.
    """

    async def act(client: redis.asyncio.Redis, ids: Sequence[str]) -> dict[str, int]:
        outcomes = await replay_letters(client, model, ids)
        return {
            "replayed": outcomes.count(ReplayOutcome.REPLAYED),
            "gone": outcomes.count(ReplayOutcome.GONE),
            "live": outcomes.count(ReplayOutcome.LIVE),
        }

    wanted = _wanted(letter_ids, job, code, tenant, older_than_s)
    return _apply(redis_url, model, wanted, act, every=every, dry_run=dry_run, output=Output(as_json=as_json))


@dlq.command()
def drop(
    model: Model,
    letter_ids: _Ids = None,
    *,
    job: _Job = None,
    code: _Code = None,
    tenant: _Tenant = None,
    older_than_s: _Older = None,
    every: _All = False,
    dry_run: _DryRun = False,
    redis_url: RedisUrl = None,
    as_json: AsJson = False,
) -> int:
    """Delete dead letters for good."""

    async def act(client: redis.asyncio.Redis, ids: Sequence[str]) -> dict[str, int]:
        dropped = await drop_letters(client, model, ids)
        return {"dropped": dropped, "gone": len(ids) - dropped}

    wanted = _wanted(letter_ids, job, code, tenant, older_than_s)
    return _apply(redis_url, model, wanted, act, every=every, dry_run=dry_run, output=Output(as_json=as_json))


def _apply(
    redis_url: str | None,
    model: str,
    wanted: LetterFilter,
    act: Callable[[redis.asyncio.Redis, Sequence[str]], Coroutine[Any, Any, dict[str, int]]],
    *,
    every: bool,
    dry_run: bool,
    output: Output,
) -> int:
    """Do something with all letters that are meant, or only say which they are."""
    if wanted == LetterFilter() and not every:
        raise typer.BadParameter("say which letters: their ids, a filter, or --all", param_hint="LETTER_ID")

    async def work(client: redis.asyncio.Redis) -> Exit:
        letters = await _some(client, model, wanted, _EVERYTHING)
        if dry_run:
            output.emit({"dry_run": True, "letters": [letter.letter_id for letter in letters]})
            output.show(_table(letters), f"{len(letters):,} letters; nothing was changed")
            return Exit.DONE
        counts = await act(client, [letter.letter_id for letter in letters])
        output.emit(counts)
        output.show(", ".join(f"{count:,} {name}" for name, count in counts.items()))
        return Exit.FAILED if counts["gone"] or counts.get("live") else Exit.DONE

    return run_to_end(_with_model(redis_url, model, work))


async def _some(client: redis.asyncio.Redis, model: str, wanted: LetterFilter, limit: int) -> list[DeadLetter]:
    letters: list[DeadLetter] = []
    async for letter in read_letters(client, model, wanted):
        letters.append(letter)
        if len(letters) == limit:
            break
    return letters


async def _with_model(
    redis_url: str | None, model: str, work: Callable[[redis.asyncio.Redis], Coroutine[Any, Any, Exit]]
) -> Exit:
    async with AsyncClient(redis_url) as client, _commands(client.url) as redis:
        await require_model(client, model, one_shard=True)
        return await work(redis)


@asynccontextmanager
async def _commands(url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = commands(url)
    try:
        yield client
    finally:
        await client.aclose()


def _fields(letter: DeadLetter) -> dict[str, Any]:
    envelope = letter.envelope
    return {
        "letter_id": letter.letter_id,
        "job_id": envelope.job_id,
        "code": letter.code,
        "message": letter.message,
        "attempts": envelope.attempt,
        "tenant": envelope.tenant,
        "priority": letter.priority,
        "inbox": envelope.inbox,
        "traceparent": "" if envelope.traceparent == "-" else envelope.traceparent,
        "submitted_ms": envelope.submitted_ms,
        "died_ms": letter.died_ms,
        "payload_bytes": len(letter.payload),
    }


def _contents(letter: DeadLetter) -> dict[str, Any]:
    """Input and parameters; as hexadecimal digits what is not for JSON, or cannot be unpacked."""
    try:
        value, params = unpack_payload(letter.payload)
    except DecodeError as error:
        return {"payload_hex": letter.payload.hex(), "undecodable": error.reason}
    return {"input": value.hex() if isinstance(value, bytes) else value, "params": params}


def _table(letters: Sequence[DeadLetter]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for name in ("letter", "job", "tenant", "attempts", "died", "failure"):
        table.add_column(name, no_wrap=name == "letter")
    for letter in letters:
        envelope = letter.envelope
        died = datetime.fromtimestamp(letter.died_ms / 1000, UTC).isoformat(sep=" ", timespec="seconds")
        failure = f"{letter.code}: {letter.message}"
        table.add_row(letter.letter_id, envelope.job_id, envelope.tenant, str(envelope.attempt), died, failure)
    return table
