"""The process of one producer and consumer: a service that hands jobs over and reads the answers.

Its history is its memory. A new life reads what the last ones wrote: it hands over again, by the same ids,
whatever was not acknowledged, and reads its inbox on from the last entry that was written down.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from chaos.history import History, read_histories
from chaos.orders import Order
from chaos.workload import DEADLINE_S, FLAKY_FAILURES, Wish, job_id, pick, wish_of
from headrace import AsyncClient, Job, Result
from headrace.errors import FailureCode, RedisError, SubmitRefusedError
from headrace.inboxes.reader import entries_after
from headrace.messages import InboxEntry, unpack_chunk
from headrace.messages.job import PRIORITIES, Receipt, SubmitOutcome
from headrace.messages.retry import RetryPolicy
from headrace.settings import ClientSettings
from headrace.tasks import end_task

__all__ = ["run_producer"]

_PAUSE_S: Final = 0.05
_WRITE_EVERY_S: Final = 0.02
_TRIM_AT: Final = 2000
_IDLE_S: Final = 0.2
_CANCEL_WITHIN_S: Final = 0.03
_RETRY: Final = RetryPolicy(
    attempts=FLAKY_FAILURES + 2, backoff_s=0.1, longest_backoff_s=0.5, on=frozenset({FailureCode.ENGINE_FAILED})
)
_OPTIONS: Final[dict[Wish, dict[str, Any]]] = {Wish.DEADLINE: {"deadline_s": DEADLINE_S}, Wish.FLAKY: {"retry": _RETRY}}


def run_producer(order: Order) -> None:
    """Produce until SIGTERM or the last job, and then until every answer is in."""
    asyncio.run(_Producer(order).run())


@dataclass(slots=True)
class _Memory:
    """What a producer knows of its former lives."""

    next_number: int = 0
    unresolved: dict[str, None] = field(default_factory=dict)
    """Jobs that were handed over, and not acknowledged for all it knows."""
    unanswered: set[str] = field(default_factory=set)
    cursor: str = "0"


def _recall(order: Order) -> _Memory:
    memory = _Memory()
    answered: set[str] = set()
    for event in read_histories(order.histories, f"{order.name}.*"):
        if event.name == "result":
            answered.update(entry[0] for entry in event.facts["entries"])
            memory.cursor = max(memory.cursor, event.facts["entries"][-1][4], key=_order)
        elif event.name == "submit.invoke":
            memory.unresolved.update(dict.fromkeys(event.facts["jobs"]))
            memory.unanswered.update(event.facts["jobs"])
        elif event.name in ("submit.ok", "submit.known"):
            for job in event.facts["jobs"]:
                memory.unresolved.pop(job, None)
    if memory.unanswered:
        memory.next_number = 1 + max(int(job.rpartition("-")[2].partition(".")[0]) for job in memory.unanswered)
    memory.unanswered -= answered
    return memory


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)


class _Producer:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._traffic = order.traffic
        self._memory = _recall(order)
        self._history = History(order.histories, order.life)
        self._client = AsyncClient(order.url, settings=ClientSettings(keep_results=True, command_timeout_s=2.0))
        self._stopping = False
        self._changed = asyncio.Event()
        self._cancelling: set[asyncio.Task[None]] = set()
        self._results: list[Result] = []
        self._chunks: list[InboxEntry] = []
        self._written = 0

    async def run(self) -> None:
        """Produce, and consume."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop)
        endless = [asyncio.create_task(self._consume()), asyncio.create_task(self._write_now_and_then())]
        working = asyncio.create_task(self._produce_till_answered())
        ended, _ = await asyncio.wait({working, *endless}, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()  # what fails ends this life, and the checker sees that: who reads no more only stands still
        assert working in ended, "it stopped reading, or writing, by itself"
        for task in endless:
            await end_task(task)
        self._write_results()
        await self._client.aclose()

    async def _produce_till_answered(self) -> None:
        await self._produce()
        while self._memory.unanswered or self._cancelling:
            await self._wait_for_change()

    def _stop(self) -> None:
        self._stopping = True
        self._changed.set()

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_IDLE_S):
                await self._changed.wait()

    # -- handing over -----------------------------------------------------------------------------------

    async def _produce(self) -> None:
        await asyncio.sleep(self._traffic.delay_s)
        self._cancel_wishes(self._memory.unanswered - self._memory.unresolved.keys())
        if self._memory.unresolved:
            await self._hand_over(list(self._memory.unresolved))
        while jobs := await self._next_jobs():
            await self._hand_over(jobs)
            if self._traffic.pause_s:
                await asyncio.sleep(self._traffic.pause_s)

    async def _next_jobs(self) -> list[str]:
        """The next jobs, once there is room for them; none when it is time to end."""
        traffic = self._traffic
        left = traffic.jobs - self._memory.next_number if traffic.jobs else traffic.at_once
        at_once = min(traffic.at_once, left)
        while not self._stopping and len(self._memory.unanswered) + at_once > traffic.in_flight:
            await self._wait_for_change()
        if self._stopping or at_once <= 0:
            return []
        first = self._memory.next_number
        self._memory.next_number += at_once
        jobs = [self._id(number) for number in range(first, first + at_once)]
        self._memory.unanswered.update(jobs)
        return jobs

    def _id(self, number: int) -> str:
        """A number's wish is drawn from the seed: it is the same in each life."""
        drawn = pick(self._traffic.mix, random.Random(f"{self._order.seed}/{self._order.name}/{number}"))
        wish = self._traffic.chosen.get(number, drawn)
        return job_id(self._order.name, number, wish)

    async def _hand_over(self, jobs: Sequence[str]) -> None:
        """Submit jobs until each of them is acknowledged."""
        pending = list(jobs)
        while pending:
            self._history.note("submit.invoke", jobs=pending)
            try:
                receipts = await self._client.submit_many([self._job(job) for job in pending])
            except SubmitRefusedError as refusal:
                receipts = refusal.receipts
            except RedisError as error:
                self._history.note("submit.unknown", jobs=pending, error=repr(error)[:200])
                await asyncio.sleep(_PAUSE_S)
                continue
            pending = self._acknowledged(receipts)
            if pending:
                await asyncio.sleep(_PAUSE_S * random.uniform(0.5, 1.5))

    def _acknowledged(self, receipts: Sequence[Receipt]) -> list[str]:
        """Write down what was said; returns who has to be submitted again."""
        said: dict[SubmitOutcome, list[str]] = {}
        for receipt in receipts:
            said.setdefault(receipt.outcome, []).append(receipt.id)
        accepted, known = said.pop(SubmitOutcome.ACCEPTED, []), said.pop(SubmitOutcome.DUPLICATE, [])
        refused = [job for jobs in said.values() for job in jobs]
        for event, jobs in (("submit.ok", accepted), ("submit.known", known), ("submit.full", refused)):
            if jobs:
                self._history.note(event, jobs=jobs)
        for job in accepted + known:
            self._memory.unresolved.pop(job, None)
        self._cancel_wishes(accepted + known)
        return refused

    def _job(self, job: str) -> Job:
        number = int(job.rpartition("-")[2].partition(".")[0])
        return Job(
            model=self._order.model,
            id=job,
            input=job,
            inbox=self._order.name,
            tenant=self._traffic.tenant,
            params={"stream": True} if self._order.words else {},
            priority=PRIORITIES[(1, 1, 1, 1, 1, 1, 0, 2)[number % 8]],
            **_OPTIONS.get(wish_of(job), {}),
        )

    # -- calling off ------------------------------------------------------------------------------------

    def _cancel_wishes(self, jobs: Iterable[str]) -> None:
        """Cancel the jobs that wish it, some at once and some later."""
        if wished := [job for job in jobs if wish_of(job) is Wish.CANCEL]:
            task = asyncio.create_task(self._cancel(wished))
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)

    async def _cancel(self, jobs: list[str]) -> None:
        await asyncio.sleep(random.uniform(0.0, _CANCEL_WITHIN_S))
        self._history.note("cancel.invoke", jobs=jobs)
        while True:
            try:
                outcomes = await self._client.cancel_many(jobs, model=self._order.model)
            except RedisError:
                await asyncio.sleep(_PAUSE_S)
            else:
                self._history.note("cancel.reply", answers=dict(zip(jobs, outcomes, strict=True)))
                return

    # -- consuming --------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        order = self._order
        if not order.words:
            async for result in self._client.results(order.name, model=order.model, after=self._memory.cursor):
                self._results.append(result)
        async for entries in entries_after(order.url, order.model, order.name, self._memory.cursor):
            for entry_id, fields in entries:
                entry = InboxEntry.parse(order.name, entry_id, fields)
                if entry.status == "chunk":
                    self._chunks.append(entry)
                else:
                    self._results.append(entry.to_result(order.model))

    async def _write_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_WRITE_EVERY_S)
            self._write_results()
            if self._traffic.trims and self._written >= _TRIM_AT:
                self._written = 0
                with suppress(RedisError):
                    await self._client.trim(self._order.name, model=self._order.model, through=self._memory.cursor)

    def _write_results(self) -> None:
        """Write down what was read: only then it counts as seen."""
        chunks, self._chunks = self._chunks, []
        if chunks:  # before the answers, whose cursor is where the next life goes on: it may read these again
            self._history.note("chunk", chunks=[_told_of(entry) for entry in chunks])
        results, self._results = self._results, []
        if not results:
            return
        self._history.note("result", inbox=self._order.name, entries=[_told(result) for result in results])
        self._memory.cursor = results[-1].cursor
        self._memory.unanswered.difference_update(result.id for result in results)
        self._written += len(results)
        self._changed.set()


def _told(result: Result) -> list[Any]:
    code = result.failure.code if result.failure else ""
    said = result.output if result.text is None else result.text
    return [result.id, str(result.status), result.attempt, said, result.cursor, code]


def _told_of(entry: InboxEntry) -> list[Any]:
    chunk = unpack_chunk(entry.body)
    return [entry.entry_id, entry.job_id, chunk.before, len(chunk.tokens), chunk.text]
