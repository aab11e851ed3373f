"""The inbox of one client: its answers, read by one task for each model, given to whoever waits, deleted when consumed.

Nothing is polled here, except a record: that of a job whose answer goes to another inbox, or was asked for before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Final

import redis.asyncio

from headrace.control import job_status
from headrace.errors import ResultGoneError
from headrace.ids import new_inbox
from headrace.inboxes.demultiplexer import Deliver, Demultiplexer
from headrace.inboxes.lookup import delete_entries
from headrace.inboxes.reader import InboxReader
from headrace.keys import keys_of
from headrace.messages.inbox import InboxEntry
from headrace.messages.job import Receipt
from headrace.server.connection import execute, translated
from headrace.tasks import settle

__all__ = ["OwnInbox", "closed_error"]

_FIRST_POLL_S: Final = 0.02
_LONGEST_POLL_S: Final = 0.5
_FORGET_AT: Final = 256
_FORGET_AFTER_S: Final = 0.25


class OwnInbox:
    """The answers of one client's jobs, of all models.

    Args:
        client: for commands.
        url: the server's, for the connections that read.
        keep_results: whether what was consumed stays until its retention is over.
    """

    def __init__(self, client: redis.asyncio.Redis, url: str, *, keep_results: bool) -> None:
        self.name = new_inbox()
        self._redis = client
        self._url = url
        self._keep_results = keep_results
        self._readers: dict[str, InboxReader] = {}
        self._answers: dict[str, Demultiplexer] = {}
        self._consumed: dict[str, list[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._forgetter: asyncio.TimerHandle | None = None
        self._closed = False

    async def close(self) -> None:
        """Stop reading, delete what was consumed, and tell whoever still waits by a `RuntimeError`."""
        self._closed = True
        for reader in self._readers.values():
            await reader.close()
        self._readers.clear()
        for demultiplexer in self._answers.values():
            demultiplexer.fail(closed_error())
        self._forget()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def require_open(self) -> None:
        """Raise a `RuntimeError` once it is closed."""
        if self._closed:
            raise closed_error()

    def demultiplexer(self, model: str) -> Demultiplexer:
        """The model's demultiplexer, with a live reader to feed it."""
        self.require_open()
        demultiplexer = self._answers.setdefault(model, Demultiplexer())
        reader = self._readers.get(model)
        if reader is None or reader.failed:
            self._readers[model] = InboxReader(self._url, model, self.name, demultiplexer)
        return demultiplexer

    # -- what is expected -----------------------------------------------------------------------------------

    def expect(self, model: str, job_ids: Iterable[str]) -> set[str]:
        """Expect answers, before the jobs can be answered; returns those that were not expected before."""
        demultiplexer = self.demultiplexer(model)
        return {job_id for job_id in job_ids if demultiplexer.open(job_id)}

    def withdraw(self, model: str, job_ids: Iterable[str]) -> None:
        """Expect these answers no more; who began to wait for one meanwhile is served from the job's record."""
        for job_id in job_ids:
            for deliver in self._answers[model].withdraw(job_id):
                self._spawn(self._fetch_for(model, job_id, deliver))

    def deliver_to(self, receipt: Receipt, deliver: Deliver) -> None:
        """Have `deliver` called with the terminal entry of a job.

        A job that was answered meanwhile, or that is a duplicate, is fetched from where its answer lies.
        """
        demultiplexer = self.demultiplexer(receipt.model)
        if not demultiplexer.wait(receipt.id, deliver):
            self._spawn(self._fetch_for(receipt.model, receipt.id, deliver))

    async def _fetch_for(self, model: str, job_id: str, deliver: Deliver) -> None:
        try:
            deliver(await self.entry(model, job_id))
        except Exception as error:
            deliver(error)

    # -- what came ------------------------------------------------------------------------------------------

    async def entry(self, model: str, job_id: str) -> InboxEntry:
        """The terminal entry of a job, as soon as there is one; whichever inbox it is in.

        Raises:
            ResultGoneError: the answer was consumed or its retention is over, or there is no such job.
        """
        return await self._own_entry(model, job_id) or await self._recorded_entry(model, job_id)

    async def _own_entry(self, model: str, job_id: str) -> InboxEntry | None:
        """The terminal entry from here, or None if none is pending here."""
        demultiplexer = self.demultiplexer(model)
        if (entry_id := demultiplexer.take_arrived(job_id)) is not None:
            return await self._fetch(model, job_id, self.name, entry_id)
        future: asyncio.Future[InboxEntry] = asyncio.get_running_loop().create_future()
        deliver = partial(settle, future)
        if not demultiplexer.wait(job_id, deliver):
            return None
        try:
            return await future
        except asyncio.CancelledError:
            demultiplexer.stop_waiting(job_id, deliver)
            if future.done() and not future.cancelled() and future.exception() is None:
                demultiplexer.remember(job_id, future.result().entry_id)  # it came as we were leaving
            raise

    async def _recorded_entry(self, model: str, job_id: str) -> InboxEntry:
        """The terminal entry of a job that went to another inbox, or that was asked for before."""
        pause_s = _FIRST_POLL_S
        while not (status := await job_status(self._redis, model, job_id)).state.ended:
            await asyncio.sleep(pause_s)
            self.require_open()
            pause_s = min(_LONGEST_POLL_S, 1.5 * pause_s)
        return await self._fetch(model, job_id, status.inbox, status.entry_id)

    async def _fetch(self, model: str, job_id: str, inbox: str, entry_id: str) -> InboxEntry:
        async with translated(f"reading the answer of job {job_id}"):
            entries = await execute(self._redis, "XRANGE", keys_of(model).inbox(inbox), entry_id, entry_id)
        if not entries:
            raise ResultGoneError(
                f"job {job_id} of {model} has ended, but its answer was consumed or its retention is over; "
                "submit with an inbox= of your own, or keep_results, to read an answer more than once"
            )
        return InboxEntry.parse(inbox, *entries[0])

    # -- what was consumed ----------------------------------------------------------------------------------

    def consumed(self, model: str, entry: InboxEntry, chunk_ids: Sequence[str] = ()) -> None:
        """An answer reached the caller: delete it and its chunks soon, with others, if they are ours to delete."""
        if self._keep_results or entry.inbox != self.name:
            return
        entries = self._consumed.setdefault(model, [])
        entries += (*chunk_ids, entry.entry_id)
        if len(entries) >= _FORGET_AT:
            self._forget()
        elif self._forgetter is None:
            self._forgetter = asyncio.get_running_loop().call_later(_FORGET_AFTER_S, self._forget)

    def _forget(self) -> None:
        if self._forgetter is not None:
            self._forgetter.cancel()
            self._forgetter = None
        consumed, self._consumed = self._consumed, {}
        for model, entry_ids in consumed.items():
            self._spawn(delete_entries(self._redis, keys_of(model).inbox(self.name), entry_ids))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def closed_error() -> RuntimeError:
    """What is raised at whoever uses a client that was closed, or waits through one."""
    return RuntimeError("the client is closed; the job goes on, and another client can ask for its answer by its id")
