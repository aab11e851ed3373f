"""The synchronous client: the asynchronous one, on a thread of its own.

There is one implementation of the protocol. This class gives every call of `AsyncClient` a plain form, and
notices a `fork`: the child of a pre-forking server gets connections and an inbox of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from headrace import scripts
from headrace.aio import AsyncClient
from headrace.inboxes.own_inbox import closed_error
from headrace.jobs.window import Window
from headrace.messages.job import CancelOutcome, Job, Receipt
from headrace.messages.result import JobStatus, Result
from headrace.scripts import Audit
from headrace.server.connection import redacted, resolve_url
from headrace.settings import ClientSettings
from headrace.streaming.sync_stream import Stream

__all__ = ["Client"]

T = TypeVar("T")


class _Runner:
    """An event loop on a daemon thread, and the client that lives there."""

    def __init__(self, url: str, settings: ClientSettings | None) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._gate = threading.Lock()
        self._closed = False
        self.thread = threading.Thread(target=self.loop.run_forever, name="headrace-client", daemon=True)
        self.thread.start()
        try:
            self.client = self.call(self._make(url, settings))
        except BaseException:
            self._stop()
            raise
        _open.add(self)

    @staticmethod
    async def _make(url: str, settings: ClientSettings | None) -> AsyncClient:
        return AsyncClient(url, settings=settings)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the loop and wait; an interrupt of the caller cancels the work."""
        with self._gate:
            if self._closed:
                work.close()
                raise closed_error()
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except CancelledError:
            raise closed_error() from None
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Close the client, tell everybody who still waits on another thread, and end the loop."""
        with self._gate:  # what came before is known to the loop, and nothing comes after
            self._closed = True
            future = asyncio.run_coroutine_threadsafe(self._end(), self.loop)
        future.result()
        self._stop()
        _open.discard(self)

    async def _end(self) -> None:
        await self.client.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)
        await self.loop.shutdown_asyncgens()

    def _stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


_open: Final[set[_Runner]] = set()
"""Holds what is open, in a forked child too: the sockets of the parent's loop, were they collected in the child,
would be taken out of the event queue that the kernel shares between both."""


class Client:
    """A producer and consumer of jobs. One per process is enough; its methods may be called from any thread.

    Use it as a context manager, or call `close`. Arguments, errors and guarantees are `AsyncClient`'s.
    """

    def __init__(self, url: str | None = None, *, settings: ClientSettings | None = None) -> None:
        self.url = resolve_url(url)
        self._settings = settings
        self._lock = threading.Lock()
        self._runner: _Runner | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({redacted(self.url)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delete what was consumed and close the connections. Jobs go on."""
        with self._lock:
            runner, self._runner = self._runner, None
        if runner is not None and runner.pid == os.getpid():
            runner.close()

    def _here(self) -> _Runner:
        runner = self._runner
        if runner is not None and runner.pid == os.getpid():
            return runner
        with self._lock:
            if self._runner is None or self._runner.pid != os.getpid():
                self._runner = _Runner(self.url, self._settings)
            return self._runner

    @property
    def inbox(self) -> str:
        """Where the answers of this client's jobs go, unless a job names another inbox."""
        return self._here().client.inbox

    def submit(self, job: Job) -> Receipt:
        """Hand one job over; see `AsyncClient.submit`."""
        runner = self._here()
        return runner.call(runner.client.submit(job))

    def submit_many(self, jobs: Iterable[Job]) -> list[Receipt]:
        """Hand jobs over, many with each call to the server; see `AsyncClient.submit_many`."""
        runner = self._here()
        return runner.call(runner.client.submit_many(list(jobs)))

    def submit_patiently(self, jobs: Sequence[Job]) -> list[Receipt]:
        """As `submit_many`, but wait for as long as lanes are full; see `AsyncClient.submit_patiently`."""
        runner = self._here()
        return runner.call(runner.client.submit_patiently(jobs))

    def run(self, job: Job, *, timeout_s: float | None = None) -> Result:
        """Hand a job over and wait for its answer; see `AsyncClient.run`."""
        runner = self._here()
        return runner.call(runner.client.run(job, timeout_s=timeout_s))

    def result(self, job: Receipt | str, *, model: str | None = None, timeout_s: float | None = None) -> Result:
        """The terminal entry of a job; see `AsyncClient.result`."""
        runner = self._here()
        return runner.call(runner.client.result(job, model=model, timeout_s=timeout_s))

    def stream(
        self,
        job: Job | Receipt | str,
        *,
        model: str | None = None,
        after: str = "0",
        timeout_s: float | None = None,
    ) -> Stream:
        """The text of a job as it is generated; see `AsyncClient.stream`. A `Job` is handed over by this call."""
        runner = self._here()
        return Stream(runner.client.stream(job, model=model, after=after, timeout_s=timeout_s), runner.call)

    def map(self, jobs: Iterable[Job], *, in_flight: int = 1024, ordered: bool = True) -> Iterator[Result]:
        """Run jobs, at most `in_flight` at a time, and yield their results; see `AsyncClient.map`.

        `jobs` is taken from on the caller's thread.
        """
        runner, source = self._here(), iter(jobs)
        window = runner.call(_window(runner.client, in_flight, ordered))
        exhausted = False
        while True:
            if not exhausted and window.wants_more:
                chunk = list(islice(source, min(window.room, scripts.MAX_JOBS)))
                exhausted = not chunk
                runner.call(window.put(chunk))
            if exhausted or not window.wants_more:
                if not (results := runner.call(window.take())):
                    return
                yield from results

    def results(self, inbox: str, *, model: str, after: str = "0", idle_s: float | None = None) -> Iterator[Result]:
        """Consume an inbox that jobs name in their `inbox`; see `AsyncClient.results`."""
        runner = self._here()
        results = runner.client.results(inbox, model=model, after=after, idle_s=idle_s)
        try:
            while (result := runner.call(anext(results, None))) is not None:
                yield result
        finally:
            with suppress(RuntimeError):  # the client was closed first, and the generator with it
                runner.call(_finish(results))

    def trim(self, inbox: str, *, model: str, through: str) -> int:
        """Delete the entries of an inbox up to a cursor; see `AsyncClient.trim`."""
        runner = self._here()
        return runner.call(runner.client.trim(inbox, model=model, through=through))

    def status(self, job: Receipt | str, *, model: str | None = None) -> JobStatus:
        """Where a job is; see `AsyncClient.status`."""
        runner = self._here()
        return runner.call(runner.client.status(job, model=model))

    def cancel(self, job: Receipt | str, *, model: str | None = None) -> CancelOutcome:
        """Stop a job that has not ended; see `AsyncClient.cancel`."""
        runner = self._here()
        return runner.call(runner.client.cancel(job, model=model))

    def cancel_many(self, jobs: Iterable[str], *, model: str) -> list[CancelOutcome]:
        """As `cancel`, for many jobs of one model; see `AsyncClient.cancel_many`."""
        runner = self._here()
        return runner.call(runner.client.cancel_many(jobs, model=model))

    def audit(self, model: str) -> Audit:
        """How many of a model's jobs were submitted, ended and live; see `AsyncClient.audit`."""
        runner = self._here()
        return runner.call(runner.client.audit(model))

    def models(self) -> Sequence[str]:
        """The models that services have registered, each shard by its own name."""
        runner = self._here()
        return runner.call(runner.client.models())

    def shards(self, model: str) -> Sequence[str]:
        """The names under which a model's jobs lie: `m#0` and on, or its own."""
        runner = self._here()
        return runner.call(runner.client.shards(model))

    def ping(self) -> None:
        """Raise unless Redis answers."""
        runner = self._here()
        runner.call(runner.client.ping())


async def _finish(results: AsyncGenerator[Result]) -> None:
    """Close a generator, which may still be at the step that an interrupt cancelled a moment ago."""
    while True:
        try:
            return await results.aclose()
        except RuntimeError:  # it is running
            await asyncio.sleep(0.001)


async def _window(client: AsyncClient, in_flight: int, ordered: bool) -> Window:
    return Window(client, in_flight=in_flight, ordered=ordered)
