"""What every kind of replica does with the jobs of a batch: prepare them, and write how they ended."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import redis.asyncio

from headrace.codec import MAX_PAYLOAD_BYTES
from headrace.control import CANCELLED_BODY
from headrace.errors import DecodeError, FailureCode
from headrace.messages import Envelope, Fate, LaneEntry, Status, pack_answer, pack_failure, unpack_payload
from headrace.scripts import Answer, GiveBack, RetryOutcome
from headrace.serving.answers import give_back, write_answers
from headrace.serving.ending import Ending, policy_of
from headrace.telemetry.structured_logs import raised_at
from headrace_workers.engines.base import Engine, ItemError, Prepared

__all__ = ["answer_of", "expired", "failed", "failure_of", "prepare_jobs", "write_endings"]

log = logging.getLogger("headrace.replica")


def prepare_jobs(engine: Engine, entries: Sequence[LaneEntry]) -> list[Prepared | ItemError]:
    """Unpack and prepare jobs together: one that is bad costs the others nothing."""
    ready: list[Prepared | ItemError | None] = [None] * len(entries)
    requests: list[tuple[Any, dict[str, Any]]] = []
    for number, entry in enumerate(entries):
        try:
            requests.append(unpack_payload(entry.payload))
        except DecodeError as error:
            ready[number] = ItemError(FailureCode.UNDECODABLE, error.reason, hint="docs/wire.md has the format")
    prepared = iter(_prepare_together(engine, requests))
    return [next(prepared) if item is None else item for item in ready]


def _prepare_together(engine: Engine, requests: Sequence[tuple[Any, dict[str, Any]]]) -> list[Prepared | ItemError]:
    try:
        prepared = engine.prepare(requests)
        if len(prepared) != len(requests):
            raise RuntimeError(f"the engine prepared {len(prepared)} of {len(requests)} jobs")
    except Exception as error:
        if len(requests) > 1:
            log.warning("preparing %d jobs failed (%s); they are prepared one by one", len(requests), raised_at(error))
            return [item for request in requests for item in _prepare_together(engine, [request])]
        log.error("preparing a job failed: %s", raised_at(error))
        return [failed(error) for _ in requests]
    return prepared


def failed(error: Exception) -> ItemError:
    """What an engine raised, as a job's own failure."""
    return ItemError(FailureCode.ENGINE_FAILED, f"{type(error).__name__}: {error}", retryable=True)


def expired(message: str = "the deadline passed before the job ran") -> ItemError:
    """The failure of a job that is out of time."""
    return ItemError(FailureCode.EXPIRED, message, hint="submit with more time")


def answer_of(
    output: Any, *, input_tokens: int = 0, queued_ms: float = 0.0, run_ms: float = 0.0, variant: str = ""
) -> bytes | ItemError:
    """The body of an `ok` entry, or why there can be none."""
    try:
        body = pack_answer(output, input_tokens=input_tokens, queued_ms=queued_ms, run_ms=run_ms, variant=variant)
    except DecodeError as error:
        return ItemError(FailureCode.ENGINE_FAILED, f"the engine's output {error.reason}")
    if len(body) <= MAX_PAYLOAD_BYTES:
        return body
    return ItemError(FailureCode.OUTPUT_TOO_LARGE, f"{len(body):,} bytes; the limit is {MAX_PAYLOAD_BYTES:,}")


def failure_of(
    entry: LaneEntry, envelope: Envelope, failure: ItemError, *, partial: Any = None, owner: str = ""
) -> Answer | GiveBack:
    """How a job goes on that failed: back for another attempt, if its policy wants one, else it has ended.

    Args:
        entry: the job.
        envelope: of the job.
        failure: why.
        partial: what there is of an answer.
        owner: as whom a job was started that is streamed.
    """
    place = (entry.lane, entry.entry_id, entry.text)
    ending = Ending.of(envelope, failure.code)
    if ending is Ending.AGAIN:
        return GiveBack(*place, policy_of(envelope).delay_ms(envelope.attempt))
    status = _STATUS_OF.get(failure.code, ending.status)
    body = pack_failure(failure.code, failure.message, hint=failure.hint, retryable=failure.retryable, partial=partial)
    return Answer(*place, status, body, owner)


_STATUS_OF = {FailureCode.EXPIRED: Status.EXPIRED, FailureCode.CANCELLED: Status.CANCELLED}


async def write_endings(client: redis.asyncio.Redis, model: str, endings: Sequence[Answer | GiveBack]) -> list[Fate]:
    """End jobs, and hand back those that are to be tried again; the fate of each, in order."""
    fates = [Fate.LATE] * len(endings)
    ended = [(n, answer) for n, answer in enumerate(endings) if isinstance(answer, Answer)]
    for n, back in enumerate(endings):
        if isinstance(back, GiveBack):
            [said] = await give_back(client, model, [back])
            if said is RetryOutcome.AGAIN:
                fates[n] = Fate.DELAYED
            elif said is RetryOutcome.CANCELLING:
                ended.append((n, Answer(*back[:3], Status.CANCELLED, CANCELLED_BODY)))
    visible = await write_answers(client, model, [answer for _, answer in ended])
    for (n, _), seen in zip(ended, visible, strict=True):
        fates[n] = Fate.ANSWERED if seen else Fate.LATE
    return fates
