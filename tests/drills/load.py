"""Jobs that keep coming while something is done to the service, and when each of them was answered, by whom."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from headrace import AsyncClient, Job

__all__ = ["Answer", "Load", "figures"]

_ANSWERED_S: Final = 240.0


class Answer(NamedTuple):
    """What came back for one job."""

    at_s: float
    """By the monotonic clock."""
    took_s: float
    output: Any
    attempt: int


class Load:
    """A producer on a thread of its own, with so many jobs out at any time; the next one goes when one is answered.

    Args:
        url: of the server.
        model: who is asked.
        wish: what for, again and again.
        out: how many are out.

    Leaving raises whatever a job ended with that is no answer.
    """

    def __init__(self, url: str, model: str, wish: str, *, out: int = 24) -> None:
        self._url, self._model, self._wish, self._out = url, model, wish, out
        self._stop = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="load")
        self.answers: list[Answer] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._fault is not None and error is None:
            raise self._fault

    def _work(self) -> None:
        try:
            asyncio.run(self._produce())
        except BaseException as error:
            self._fault = error

    async def _produce(self) -> None:
        async with AsyncClient(self._url) as client, asyncio.TaskGroup() as tasks:
            for _ in range(self._out):
                tasks.create_task(self._ask(client))

    async def _ask(self, client: AsyncClient) -> None:
        while not self._stop.is_set():
            asked_s = time.monotonic()
            result = await client.run(Job(model=self._model, input=self._wish), timeout_s=_ANSWERED_S)
            now_s = time.monotonic()
            self.answers.append(Answer(now_s, now_s - asked_s, result.unwrap(), result.attempt))

    # -- what has become of it --------------------------------------------------------------------------

    @property
    def goes_on(self) -> bool:
        """Whether nothing has gone wrong; raises what has."""
        if self._fault is not None:
            raise self._fault
        return True

    def since(self, start_s: float) -> list[Answer]:
        """What was answered after that time."""
        return [answer for answer in self.answers if answer.at_s >= start_s]

    def more_than(self, count: int, start_s: float) -> bool:
        """Whether more than so many jobs were answered after that time."""
        return self.goes_on and len(self.since(start_s)) > count


def figures(answers: Sequence[Answer]) -> dict[str, float]:
    """How many there are, the longest time without one, and the longest that a job took; in seconds."""
    times = sorted(answer.at_s for answer in answers)
    return {
        "answers": len(answers),
        "longest_gap_s": round(max((later - before for before, later in pairwise(times)), default=0.0), 2),
        "longest_job_s": round(max((answer.took_s for answer in answers), default=0.0), 2),
    }
