"""Who waits for which answer: the pure half of the client's reader.

`Demultiplexer` is told of every job that was handed over, is fed the inbox's entries in order, and gives each
terminal one to whoever waits for it, each chunk to whoever watches. It knows neither Redis nor asyncio. An answer
that nobody waits for yet is remembered by its entry id alone: a producer that submits and never asks costs bytes
here, not payloads. A chunk that nobody watches for is forgotten at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from headrace.messages.inbox import InboxEntry

__all__ = ["Deliver", "Demultiplexer", "Watch"]

Deliver = Callable[[InboxEntry | BaseException], None]
"""Takes a job's terminal entry, or the error because of which none can come."""

Watch = Callable[[InboxEntry], None]
"""Takes each chunk of a job as it comes."""

_REMEMBERED: Final = 100_000


class Demultiplexer:
    """The answers of one inbox, by job id."""

    def __init__(self, *, remembered: int = _REMEMBERED) -> None:
        self._pending: dict[str, list[Deliver]] = {}
        self._arrived: OrderedDict[str, str] = OrderedDict()
        self._watched: dict[str, list[Watch]] = {}
        self._remembered = remembered

    def open(self, job_id: str) -> bool:
        """The job is being handed over: its answer will come here. False if it is pending already."""
        if job_id in self._pending:
            return False
        self._pending[job_id] = []
        return True

    def withdraw(self, job_id: str) -> list[Deliver]:
        """The job was refused, or is known from elsewhere: look there. Returns who waits already."""
        return self._pending.pop(job_id, [])

    def wait(self, job_id: str, deliver: Deliver) -> bool:
        """Have `deliver` called once with the answer. False if none is pending here."""
        waiters = self._pending.get(job_id)
        if waiters is None:
            return False
        waiters.append(deliver)
        return True

    def stop_waiting(self, job_id: str, deliver: Deliver) -> None:
        """Take a `wait` back; the answer will be remembered for the next who asks."""
        if deliver in (waiters := self._pending.get(job_id, [])):
            waiters.remove(deliver)

    def take_arrived(self, job_id: str) -> str | None:
        """The entry id of an answer that came before anybody asked; whoever takes it must fetch it."""
        return self._arrived.pop(job_id, None)

    def remember(self, job_id: str, entry_id: str) -> None:
        """Keep an answer's place for whoever asks later; the oldest place goes when there are too many."""
        self._arrived[job_id] = entry_id
        if len(self._arrived) > self._remembered:
            self._arrived.popitem(last=False)

    def watch(self, job_id: str, watch: Watch) -> None:
        """Have `watch` called with every chunk of a job from now on."""
        self._watched.setdefault(job_id, []).append(watch)

    def unwatch(self, job_id: str, watch: Watch) -> bool:
        """Take a `watch` back. Whether others still watch the job."""
        watches = self._watched.get(job_id, [])
        if watch in watches:
            watches.remove(watch)
        if not watches:
            self._watched.pop(job_id, None)
        return bool(watches)

    def feed_chunk(self, entry: InboxEntry) -> None:
        """The inbox's next chunk."""
        for watch in self._watched.get(entry.job_id, ()):
            watch(entry)

    def feed(self, entry: InboxEntry) -> None:
        """The inbox's next terminal entry."""
        waiters = self._pending.pop(entry.job_id, None)
        if not waiters:
            self.remember(entry.job_id, entry.entry_id)
            return
        for deliver in waiters:
            deliver(entry)

    def fail(self, error: BaseException) -> None:
        """No entry will be fed any more: tell everybody who waits."""
        pending, self._pending = self._pending, {}
        for waiters in pending.values():
            for deliver in waiters:
                deliver(error)

    @property
    def pending(self) -> int:
        """How many jobs have no answer yet."""
        return len(self._pending)
