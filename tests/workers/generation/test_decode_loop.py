"""Between two steps: jobs join, are called off, run out of time, or are somebody else's by now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from headrace.errors import FailureCode
from headrace.messages import LaneEntry
from headrace.messages.chunk import Chunk
from headrace_workers.engines.base import Prepared
from headrace_workers.generation.batch_call import BatchCall
from headrace_workers.generation.decode_loop import DecodeLoop, Happening
from headrace_workers.generation.served_job import ServedJob
from support.decoders import FakeDecoder, words_of
from support.waiting import eventually_sync

NOW_S = 1000.0


class Loop:
    """A loop, and all that it says."""

    def __init__(self) -> None:
        self.engine = FakeDecoder(pause_at=3)
        self.news: list[Happening] = []
        self.fresh: list[ServedJob] = []
        self.broken: list[Exception] = []
        self.now_s = NOW_S
        self.decoding = DecodeLoop(
            self.engine, now_s=lambda: self.now_s, happened=self._happened, broke=self.broken.append
        )

    def _happened(self, news: list[Happening], fresh: list[ServedJob]) -> None:
        self.news += news
        self.fresh += fresh

    def job(
        self, prompt: str = "mill", *, words: int = 8, stream: bool = True, deadline_s: float = 0.0, said: int = 0
    ) -> ServedJob:
        """A job that is ready to start, of which others have delivered so many words."""
        [item] = self.engine.prepare([(prompt, {"max_tokens": words, "stream": stream})])
        assert isinstance(item, Prepared)
        entry = LaneEntry(1, "1-0", f"1 {prompt} box t 1 {int(deadline_s * 1000)} 0 token - -".encode(), b"")
        call = BatchCall(1, alive=lambda: True, over=lambda: None)
        job = ServedJob(call, 0, "m", entry, entry.envelope, "1-owner", self.decoding, "fake", item)
        if said:
            job.delivered, job.written = [Chunk(0, words_of(prompt, said), list(range(said)))], 1
        return job

    def positions(self) -> list[int]:
        return [generation.positions[0] for generation in self.engine.running]

    def ended(self, job: ServedJob) -> bool:
        return any(happening.job is job and happening.ended for happening in self.news)


@pytest.fixture
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.engine.go_on()
    running.decoding.close()


def text_of(job: ServedJob) -> str:
    assert job.output is not None
    return str(job.output["choices"][0]["text"])


def chunks_of(news: Sequence[Happening]) -> list[Any]:
    return [happening.chunk for happening in news if happening.chunk is not None]


def test_a_job_runs_to_its_end(loop: Loop) -> None:
    job = loop.job(words=3)
    loop.decoding.start(job)
    eventually_sync(lambda: loop.ended(job))

    assert text_of(job) == words_of("mill", 3)
    assert [chunk["n"] for chunk in chunks_of(loop.news)] == [0, 1, 2]
    assert (job.tokens, job.error, loop.fresh) == (4, None, [job])


def test_a_job_that_is_not_streamed_says_nothing_before_its_end(loop: Loop) -> None:
    job = loop.job(words=3, stream=False)
    loop.decoding.start(job)
    eventually_sync(lambda: loop.ended(job))

    assert chunks_of(loop.news) == []
    assert job.first_token_s == NOW_S


def test_a_job_goes_on_behind_what_was_delivered(loop: Loop) -> None:
    job = loop.job(words=3, said=2)
    loop.decoding.start(job)
    eventually_sync(lambda: loop.ended(job))

    assert [chunk["n"] for chunk in chunks_of(loop.news)] == [2]
    assert text_of(job) == words_of("mill", 3)


def test_a_job_of_which_all_was_delivered_ends_without_a_step(loop: Loop) -> None:
    job = loop.job(words=3, said=3)
    loop.decoding.start(job)
    eventually_sync(lambda: loop.ended(job))

    assert chunks_of(loop.news) == []
    assert text_of(job) == words_of("mill", 3)


def test_who_is_cancelled_leaves_the_engine_at_once(loop: Loop) -> None:
    job, other = loop.job(), loop.job("other")
    for one in (job, other):
        loop.decoding.start(one)
    eventually_sync(lambda: loop.positions() == [3, 3])
    loop.decoding.cancel(job)
    eventually_sync(lambda: loop.ended(job))

    assert job.error is not None
    assert job.error.code == FailureCode.CANCELLED
    assert text_of(job) == words_of("mill", 3)
    assert loop.positions() == [3]


def test_a_deadline_that_passes_in_the_middle(loop: Loop) -> None:
    late, unhurried = loop.job("late", deadline_s=NOW_S + 5), loop.job("unhurried", deadline_s=NOW_S + 50)
    for one in (unhurried, late):
        loop.decoding.start(one)
    eventually_sync(lambda: loop.positions() == [3, 3])
    loop.now_s = NOW_S + 6
    eventually_sync(lambda: loop.ended(late))

    assert late.error is not None
    assert late.error.code == FailureCode.EXPIRED
    assert text_of(late) == words_of("late", 3)
    assert not loop.ended(unhurried)


@pytest.mark.parametrize("said", [0, 2])
@pytest.mark.parametrize("cancelled", [True, False])
def test_who_is_called_off_or_late_already_is_not_begun(loop: Loop, cancelled: bool, said: int) -> None:
    """What others had delivered of it is kept."""
    job = loop.job(deadline_s=NOW_S - 1, said=said)
    job.cancelled = cancelled
    loop.decoding.start(job)
    eventually_sync(lambda: loop.ended(job))

    assert job.error is not None
    assert job.error.code == (FailureCode.CANCELLED if cancelled else FailureCode.EXPIRED)
    assert (text_of(job) if said else job.output) == (words_of("mill", said) if said else None)
    assert loop.engine.started == []


def test_who_is_dropped_is_heard_of_no_more(loop: Loop) -> None:
    job, waiting = loop.job(), loop.job("waiting")
    loop.decoding.start(job)
    eventually_sync(lambda: loop.positions() == [3])
    loop.decoding.drop(job)
    loop.decoding.drop(waiting)
    loop.decoding.start(waiting)
    eventually_sync(lambda: loop.decoding.idle and not loop.engine.running)

    assert not any(happening.ended for happening in loop.news)


def test_what_ended_is_not_cancelled_any_more(loop: Loop) -> None:
    job = loop.job(words=2)
    loop.decoding.start(job)
    eventually_sync(lambda: loop.ended(job))
    loop.decoding.cancel(job)
    loop.decoding.drop(job)
    other = loop.job("other", words=2)
    loop.decoding.start(other)
    eventually_sync(lambda: loop.ended(other))

    assert job.error is None
    assert sum(happening.ended for happening in loop.news) == 2


def test_an_engine_that_raises_gives_up_its_jobs_and_goes_on_with_others(loop: Loop) -> None:
    loop.decoding.start(loop.job("raise@2"))
    eventually_sync(lambda: loop.broken)
    assert loop.engine.running == []
    job = loop.job(words=2)
    loop.decoding.start(job)
    eventually_sync(lambda: loop.ended(job))


def test_deadlines_of_jobs_that_ended_do_not_pile_up(loop: Loop) -> None:
    for n in range(400):
        loop.decoding.start(loop.job(f"w{n}", words=1, deadline_s=NOW_S + 1000))
    eventually_sync(lambda: sum(happening.ended for happening in loop.news) == 400)
    last = loop.job("last", deadline_s=NOW_S + 1000)
    loop.decoding.start(last)
    eventually_sync(lambda: loop.positions() == [3])

    assert len(loop.decoding._deadlines) < 100
