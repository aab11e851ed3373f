"""`headrace results`: read an inbox, from a cursor on."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Final

import typer

from headrace.aio import AsyncClient
from headrace.cli.options import AsJson, Model, RedisUrl, finite
from headrace.cli.output import Exit, Output, describe, report
from headrace.cli.preflight import require_model
from headrace.cli.rendering import render_result, result_fields
from headrace.cli.running import run_to_end
from headrace.errors import WireError
from headrace.ids import is_name
from headrace.inboxes.lookup import read_stored
from headrace.inboxes.reader import StreamEntry, entries_after
from headrace.messages.inbox import InboxEntry
from headrace.server.connection import BLOCK_MS, commands

__all__ = ["results"]

_CURSOR: Final = re.compile(r"\d{1,19}(-\d{1,19})?|\$")

_Inbox = Annotated[str, typer.Argument(metavar="INBOX", help="The inbox that jobs name with --inbox.")]
_After = Annotated[str, typer.Option("--after", metavar="CURSOR", help="Go on behind this cursor; `$` is the end.")]
_Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on waiting for answers.")]
_Idle = Annotated[
    float | None, typer.Option("--idle-s", min=0.0, callback=finite, help="Stop after so long without news; follows.")
]


def results(
    model: Model,
    inbox: _Inbox,
    *,
    after: _After = "0",
    follow: _Follow = False,
    idle_s: _Idle = None,
    redis_url: RedisUrl = None,
    as_json: AsJson = False,
) -> int:
    """Print the answers in INBOX, each with its cursor, and leave them there.

    With --json, one object for each answer.
    """
    follow = follow or idle_s is not None
    if not is_name(inbox):
        raise typer.BadParameter(f"{inbox!r} cannot be the name of an inbox", param_hint="INBOX")
    if not _CURSOR.fullmatch(after) or (after == "$" and not follow):
        raise typer.BadParameter(
            f"{after!r} is no cursor: one is printed with each answer; `$` goes with --follow", param_hint="--after"
        )
    return run_to_end(_results(redis_url, model, inbox, after, follow, idle_s, Output(as_json=as_json)))


async def _results(
    redis_url: str | None, model: str, inbox: str, after: str, follow: bool, idle_s: float | None, output: Output
) -> Exit:
    async with AsyncClient(redis_url) as client:
        await require_model(client, model, one_shard=True)
        reads = (
            _followed(client.url, model, inbox, after, idle_s) if follow else _stored(client.url, model, inbox, after)
        )
        ending, count = Exit.DONE, 0
        async with aclosing(reads):  # type: ignore[type-var]
            async for entries in reads:
                for entry in entries:
                    ending = max(ending, _say(entry, model, inbox, output))
                    count += 1
    output.note(f"{count:,} entries in inbox {inbox} of {model}")
    return ending


async def _stored(url: str, model: str, inbox: str, after: str) -> AsyncIterator[Sequence[StreamEntry]]:
    """What lies in the inbox now."""
    redis = commands(url)
    try:
        while entries := await read_stored(redis, model, inbox, after):
            yield entries
            after = entries[-1][0].decode("ascii")
    finally:
        await redis.aclose()


async def _followed(
    url: str, model: str, inbox: str, after: str, idle_s: float | None
) -> AsyncIterator[Sequence[StreamEntry]]:
    """What lies there and what comes, until there is no news for `idle_s`."""
    last_news = time.monotonic()
    block_ms = BLOCK_MS if idle_s is None else max(1, min(BLOCK_MS, int(idle_s * 1000)))
    async with aclosing(entries_after(url, model, inbox, after, block_ms=block_ms)) as reads:
        async for entries in reads:
            if entries:
                yield entries
                last_news = time.monotonic()
            elif idle_s is not None and time.monotonic() - last_news >= idle_s:
                return


def _say(raw: StreamEntry, model: str, inbox: str, output: Output) -> Exit:
    """Print one entry; one that cannot be read is said to be so, and the next is read all the same."""
    try:
        entry = InboxEntry.parse(inbox, *raw)
        if entry.status == "chunk":
            return Exit.DONE
        result = entry.to_result(model)
    except WireError as error:
        problem = describe(error)
        fields = {"code": problem.code, "message": problem.message, "hint": problem.hint}
        output.emit({"cursor": raw[0].decode("ascii"), "error": fields})
        report(error, as_json=False)
        return Exit.FAILED
    output.emit(result_fields(result))
    headline, *rest = render_result(result)
    output.show(f"{result.cursor}  {headline}", *rest)
    return Exit.DONE if result.ok else Exit.FAILED
