"""`headrace submit --stream`: jobs are handed over, followed to their ends, and called off by an interrupt."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

from headrace.aio import AsyncClient
from headrace.cli.output import Exit, Output, describe
from headrace.cli.stream_shows import Show, shown
from headrace.errors import JobFailedError, ResultGoneError, ResultTimeoutError, WireError
from headrace.messages.job import CancelOutcome, Job
from headrace.streaming.stream import AsyncStream

__all__ = ["stream_jobs"]

_CANCEL_WITHIN_S: Final = 5.0


async def stream_jobs(client: AsyncClient, jobs: Sequence[Job], *, timeout_s: float, output: Output) -> Exit:
    """Hand jobs over and show their answers as they come; jobs that are interrupted are cancelled."""
    streams = [client.stream(job) for job in jobs]
    try:
        for stream in streams:
            await stream.start()
        with shown(len(jobs), output) as show:
            follows = (_follow(number, stream, show, timeout_s) for number, stream in enumerate(streams))
            return max(await asyncio.gather(*follows))
    except asyncio.CancelledError:
        await _call_off(client, [stream for stream in streams if stream.id and stream.result is None])
        raise


async def _follow(number: int, stream: AsyncStream, show: Show, timeout_s: float) -> Exit:
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in stream.chunks():
                show.chunk(number, stream, chunk)
        show.end(number, stream, None)
        return Exit.DONE
    except JobFailedError as error:
        show.end(number, stream, error)
        return Exit.FAILED
    except (ResultGoneError, WireError) as error:
        show.end(number, stream, error)
        return describe(error).status
    except TimeoutError:
        late = ResultTimeoutError(f"job {stream.id} of {stream.model} has no answer yet")
        show.end(number, stream, late)
        return describe(late).status


async def _call_off(client: AsyncClient, streams: Sequence[AsyncStream]) -> None:
    """Cancel what runs, even while the interrupted command is asked again and again to end."""
    ids: dict[str, list[str]] = {}
    for stream in streams:
        ids.setdefault(stream.model, []).append(stream.id)
    calls = [asyncio.create_task(client.cancel_many(some, model=model)) for model, some in ids.items()]
    until_s = asyncio.get_running_loop().time() + _CANCEL_WITHIN_S
    while (left := [call for call in calls if not call.done()]) and asyncio.get_running_loop().time() < until_s:
        try:
            await asyncio.wait(left, timeout=0.1)
        except asyncio.CancelledError:
            continue
    outcomes = [outcome for call in calls if call.done() and not call.exception() for outcome in call.result()]
    called_off = [outcome for outcome in outcomes if outcome in (CancelOutcome.CANCELLED, CancelOutcome.REQUESTED)]
    print(f"called off {len(called_off)} job(s)", file=sys.stderr)
