"""Asking for one answer: before it comes, after, twice, from elsewhere, and when there is none."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from headrace import (
    AsyncClient,
    ClientSettings,
    FailureCode,
    Job,
    JobCancelledError,
    JobDeadError,
    JobExpiredError,
    ResultGoneError,
    ResultTimeoutError,
    Status,
)
from headrace.inboxes.demultiplexer import Demultiplexer
from headrace.keys import keys_of
from headrace.messages import InboxEntry
from support.by_hand import HandService
from support.waiting import eventually

MODEL = "by-hand"
pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


def job(value: object = "x", **fields: object) -> Job:
    return Job(model=MODEL, input=value, **fields)


# -- one waiter, two waiters ------------------------------------------------------------------------------------


async def test_whoever_waits_is_woken_by_the_answer(client: AsyncClient, service: HandService) -> None:
    """The answer is pushed: nobody polls for it."""
    receipt = await client.submit(job())
    waiter = asyncio.create_task(client.result(receipt, timeout_s=5))
    await asyncio.sleep(0)
    commands_before = (await service.redis.info("commandstats")).get("cmdstat_get", {"calls": 0})["calls"]
    await service.answer(*await service.take(), output="done")

    assert (await waiter).unwrap() == "done"
    assert (await service.redis.info("commandstats")).get("cmdstat_get", {"calls": 0})["calls"] == commands_before


async def test_an_answer_that_came_before_anybody_asked(client: AsyncClient, service: HandService) -> None:
    """Asking late is asking all the same."""
    receipt = await client.submit(job())
    await service.answer(*await service.take(), output="early")
    await eventually(lambda: client.own_inbox.demultiplexer(MODEL).pending == 0)

    assert (await client.result(receipt, timeout_s=5)).unwrap() == "early"


async def test_two_waiters_get_the_same_answer(client: AsyncClient, service: HandService) -> None:
    """Both are woken by the one entry."""
    receipt = await client.submit(job())
    waiters = [asyncio.create_task(client.result(receipt, timeout_s=5)) for _ in range(2)]
    await asyncio.sleep(0)
    await service.answer(*await service.take(), output=[1, 2])

    first, second = [await waiter for waiter in waiters]
    assert first == second
    assert first.unwrap() == [1, 2]


async def test_two_who_ask_at_once_after_the_answer_came(client: AsyncClient, service: HandService) -> None:
    """The second is served from the record, before the entry is deleted."""
    receipt = await client.submit(job())
    await service.answer(*await service.take(), output="late")
    await eventually(lambda: client.own_inbox.demultiplexer(MODEL).pending == 0)

    results = await asyncio.gather(*(client.result(receipt, timeout_s=5) for _ in range(2)))

    assert [result.unwrap() for result in results] == ["late", "late"]


async def test_answers_are_told_apart_whatever_their_order(client: AsyncClient, service: HandService) -> None:
    """One reader serves all waiters, each with its own answer."""
    receipts = await client.submit_many([job(n) for n in range(40)])
    waiters = [asyncio.create_task(client.result(receipt, timeout_s=5)) for receipt in receipts]
    for entry in reversed(await service.take()):
        await service.answer(entry, output=entry.envelope.job_id)

    assert [(await waiter).unwrap() for waiter in waiters] == [receipt.id for receipt in receipts]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (Status.EXPIRED, FailureCode.EXPIRED, JobExpiredError),
        (Status.CANCELLED, FailureCode.POOL_FAILED, JobCancelledError),
        (Status.DEAD, FailureCode.POOL_FAILED, JobDeadError),
    ],
)
async def test_every_terminal_entry_is_an_answer(
    client: AsyncClient, service: HandService, status: Status, code: FailureCode, kind: type[Exception]
) -> None:
    """A job that did not succeed has a result too; `unwrap` raises what it stands for."""
    receipt = await client.submit(job())
    await service.fail(*await service.take(), status=status, code=code)

    result = await client.result(receipt, timeout_s=5)

    assert not result.ok
    assert result.status is status
    with pytest.raises(kind):
        result.unwrap()


# -- time-outs and cancellation -----------------------------------------------------------------------------------


async def test_a_timeout_leaves_the_job_alone_and_one_may_ask_again(client: AsyncClient, service: HandService) -> None:
    """Time-outs are the waiter's, not the job's."""
    receipt = await client.submit(job())
    with pytest.raises(ResultTimeoutError, match=f"job {receipt.id} of by-hand has no answer after 0.01 s"):
        await client.result(receipt, timeout_s=0.01)

    await service.answer(*await service.take(), output="patience")

    assert (await client.result(receipt, timeout_s=5)).unwrap() == "patience"


async def test_an_answer_that_comes_between_two_attempts_is_kept(client: AsyncClient, service: HandService) -> None:
    """After a time-out the answer is remembered by its place, for whoever asks next."""
    receipt = await client.submit(job())
    with pytest.raises(ResultTimeoutError):
        await client.result(receipt, timeout_s=0.01)
    await service.answer(*await service.take(), output="kept")
    await eventually(lambda: client.own_inbox.demultiplexer(MODEL).pending == 0)

    assert (await client.result(receipt, timeout_s=5)).unwrap() == "kept"


async def test_a_waiter_cancelled_exactly_when_the_answer_arrives_loses_nothing(
    client: AsyncClient, service: HandService
) -> None:
    """The answer is handed over and the waiter is cancelled in the same turn of the loop: the answer is kept."""
    receipt = await client.submit(job())
    waiter = asyncio.create_task(client.result(receipt))
    await asyncio.sleep(0)
    demultiplexer = client.own_inbox.demultiplexer(MODEL)
    [entry] = await service.take()
    feed = demultiplexer.feed

    def feed_and_cancel(arrived: InboxEntry) -> None:
        feed(arrived)
        waiter.cancel()

    demultiplexer.feed = feed_and_cancel  # type: ignore[method-assign,assignment]
    await service.answer(entry, output="not lost")
    with pytest.raises(asyncio.CancelledError):
        await waiter

    assert (await client.result(receipt, timeout_s=5)).unwrap() == "not lost"


async def test_one_of_two_waiters_leaves(client: AsyncClient, service: HandService) -> None:
    """The other one is not disturbed."""
    receipt = await client.submit(job())
    leaves, stays = (asyncio.create_task(client.result(receipt, timeout_s=5)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.wait({leaves})
    await service.answer(*await service.take(), output="for one")

    assert (await stays).unwrap() == "for one"


async def test_run_hands_over_and_waits(client: AsyncClient, service: HandService) -> None:
    """`run` is `submit` and `result`, with one time-out for the waiting."""
    service.keep_answering(lambda value: value * 2)

    assert (await client.run(job(21), timeout_s=5)).unwrap() == 42


async def test_run_times_out(client: AsyncClient) -> None:
    """Nobody answers; the error is a `TimeoutError` too."""
    with pytest.raises(TimeoutError):
        await client.run(job(), timeout_s=0.01)


# -- consumed, kept, gone -------------------------------------------------------------------------------------------


async def test_what_was_consumed_is_deleted(client: AsyncClient, service: HandService) -> None:
    """The client deletes from its own inbox what its caller has got."""
    receipts = await client.submit_many([job(n) for n in range(3)])
    await service.answer(*await service.take())
    assert len(await service.inbox_entries(client.inbox)) == 3

    for receipt in receipts[:2]:
        await client.result(receipt, timeout_s=5)

    await eventually(lambda: one_left(service, client.inbox))


async def one_left(service: HandService, inbox: str) -> bool:
    return len(await service.inbox_entries(inbox)) == 1


async def test_what_was_consumed_is_deleted_at_the_latest_when_the_client_closes(
    service: HandService, redis_url: str
) -> None:
    """Closing does not wait for the deletion's timer."""
    async with AsyncClient(redis_url) as client:
        receipt = await client.submit(job())
        await service.answer(*await service.take())
        await client.result(receipt, timeout_s=5)

    assert await service.inbox_entries(client.inbox) == []


async def test_a_consumed_answer_is_gone(client: AsyncClient, service: HandService) -> None:
    """Once deleted it cannot be had again, and the error says how to have it otherwise."""
    receipt = await client.submit(job())
    await service.answer(*await service.take())
    await client.result(receipt, timeout_s=5)
    await eventually(lambda: nothing_left(service, client.inbox))

    with pytest.raises(ResultGoneError, match="keep_results"):
        await client.result(receipt, timeout_s=5)


async def nothing_left(service: HandService, inbox: str) -> bool:
    return not await service.inbox_entries(inbox)


async def test_kept_results_can_be_read_again(service: HandService, redis_url: str) -> None:
    """`keep_results` leaves answers until the service's retention is over."""
    async with AsyncClient(redis_url, settings=ClientSettings(keep_results=True)) as client:
        receipt = await client.submit(job())
        await service.answer(*await service.take(), output="kept")

        for _ in range(3):
            assert (await client.result(receipt, timeout_s=5)).unwrap() == "kept"
    assert len(await service.inbox_entries(client.inbox)) == 1


async def test_no_such_job(client: AsyncClient) -> None:
    """An id that nobody submitted has no result to wait for."""
    with pytest.raises(ResultGoneError, match="never submitted"):
        await client.result("unheard-of", model=MODEL, timeout_s=5)


async def test_an_id_needs_its_model(client: AsyncClient) -> None:
    """A receipt knows its model; an id alone does not."""
    with pytest.raises(TypeError, match="model="):
        await client.result("some-id")
    with pytest.raises(TypeError, match="model="):
        await client.status("some-id")


# -- other inboxes and other processes --------------------------------------------------------------------------------


async def test_the_answer_of_a_foreign_inbox_can_be_read_and_is_left_there(
    client: AsyncClient, service: HandService
) -> None:
    """What goes to an inbox of another name is that consumer's to delete."""
    receipt = await client.submit(job(inbox="audit-log"))
    waiter = asyncio.create_task(client.result(receipt, timeout_s=5))
    await service.answer(*await service.take(), output="copied")

    assert (await waiter).unwrap() == "copied"
    await client.aclose()
    assert len(await service.inbox_entries("audit-log")) == 1


async def test_another_client_reads_by_id(client: AsyncClient, service: HandService, redis_url: str) -> None:
    """The record says in which inbox the answer lies."""
    await client.submit(job(id="known"))
    await service.answer(*await service.take(), output="for all")

    async with AsyncClient(redis_url) as other:
        assert (await other.result("known", model=MODEL, timeout_s=5)).unwrap() == "for all"


async def test_another_process_reads_by_id(client: AsyncClient, service: HandService, redis_url: str) -> None:
    """A producer that exits leaves an id behind; that is enough for the next process."""
    await client.submit(job(id="orphan"))
    program = (
        "import json, sys; from headrace import Client\n"
        "with Client(sys.argv[1]) as client:\n"
        "    print(json.dumps(client.result('orphan', model='by-hand', timeout_s=10).unwrap()))"
    )
    reading = await asyncio.create_subprocess_exec(sys.executable, "-c", program, redis_url, stdout=subprocess.PIPE)
    await service.answer(*await service.take(), output={"text": "übrig"})
    output, _ = await reading.communicate()

    assert json.loads(output) == {"text": "übrig"}


async def test_a_waiter_of_another_client_is_served_within_its_polling_interval(
    client: AsyncClient, service: HandService, redis_url: str
) -> None:
    """For jobs of others the record is asked, ever less often, but at least twice a second."""
    receipt = await client.submit(job())
    async with AsyncClient(redis_url) as other:
        waiter = asyncio.create_task(other.result(receipt, timeout_s=5))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiter), 0.1)
        await service.answer(*await service.take(), output="polled")

        assert (await waiter).unwrap() == "polled"


# -- bounds -------------------------------------------------------------------------------------------------------


def entry(job_id: str) -> InboxEntry:
    return InboxEntry("box", f"{job_id}-0", job_id, "ok", 1, b"")


def test_the_places_of_answers_nobody_asks_for_are_bounded() -> None:
    """A producer that only submits holds the places of the last answers, and none of their payloads."""
    demultiplexer = Demultiplexer(remembered=3)
    for n in range(10):
        demultiplexer.open(str(n))
        demultiplexer.feed(entry(str(n)))

    assert [demultiplexer.take_arrived(str(n)) for n in range(10)] == [None] * 7 + ["7-0", "8-0", "9-0"]
    assert demultiplexer.pending == 0


async def test_an_answer_whose_place_was_forgotten_is_found_by_its_record(
    client: AsyncClient, service: HandService
) -> None:
    """Forgetting costs a look at the record, not the answer."""
    client.own_inbox._answers[MODEL] = Demultiplexer(remembered=1)
    receipts = await client.submit_many([job(n) for n in range(3)])
    await service.answer(*await service.take(), output="found")
    await eventually(lambda: client.own_inbox.demultiplexer(MODEL).pending == 0)

    results = [await client.result(receipt, timeout_s=5) for receipt in receipts]

    assert [result.unwrap() for result in results] == ["found"] * 3


# -- what others write into the inbox -----------------------------------------------------------------------------


@pytest.mark.leaves_jobs
async def test_garbage_in_the_inbox_is_skipped_and_logged(
    client: AsyncClient, service: HandService, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever writes nonsense into an inbox does not keep its owner from its answers."""
    receipt = await client.submit(job())
    key = keys_of(MODEL).inbox(client.inbox)
    for fields in ({"x": "y"}, {"e": "1 two", "r": ""}, {"e": b"\xff\xfe", "r": ""}, {"e": "9 a ok 1", "r": ""}):
        await service.redis.xadd(key, fields)  # type: ignore[arg-type]
    await service.answer(*await service.take(), output="through")

    assert (await client.result(receipt, timeout_s=5)).unwrap() == "through"
    assert sum("skipped an inbox entry" in record.message for record in caplog.records) == 4


async def test_chunks_are_no_answers(client: AsyncClient, service: HandService) -> None:
    """Until streaming is asked for, a client passes over the chunks of a job and waits for its end."""
    receipt = await client.submit(job())
    waiter = asyncio.create_task(client.result(receipt, timeout_s=5))
    await service.redis.xadd(keys_of(MODEL).inbox(client.inbox), {"e": f"1 {receipt.id} chunk 1", "r": b"\x80"})
    await service.answer(*await service.take(), output="end")

    assert (await waiter).unwrap() == "end"
