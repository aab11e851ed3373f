"""Handing jobs over: receipts, duplicates, replays, and what is refused."""

from __future__ import annotations

import asyncio

import pytest

from headrace import (
    AsyncClient,
    InvalidJobError,
    Job,
    QueueFullError,
    ResultGoneError,
    SubmitOutcome,
    TenantQueueFullError,
    UnknownModelError,
    scripts,
)
from headrace.ids import new_token
from headrace.models.registry import Limits
from support.by_hand import HandService
from support.waiting import eventually

MODEL = "by-hand"
pytestmark = pytest.mark.usefixtures("nothing_is_left_open")


def outcomes_of(error: QueueFullError | UnknownModelError) -> list[SubmitOutcome]:
    return [receipt.outcome for receipt in error.receipts]


# -- receipts -----------------------------------------------------------------------------------------------


async def test_a_receipt_says_what_was_handed_over_and_where_the_answer_goes(
    client: AsyncClient, service: HandService
) -> None:
    """A receipt is all that is needed to ask for the job later."""
    receipt = await client.submit(Job(model=MODEL, input="x", id="mine"))

    assert (receipt.model, receipt.id, receipt.inbox) == (MODEL, "mine", client.inbox)
    assert receipt.accepted
    assert not receipt.duplicate


async def test_receipts_come_in_the_order_of_the_jobs(client: AsyncClient, service: HandService) -> None:
    """Jobs of several lanes, tenants and inboxes take several calls; their receipts are put in order again."""
    jobs = [
        Job(
            model=MODEL,
            input=n,
            id=f"job-{n}",
            priority=("high", "normal", "low")[n % 3],
            tenant=f"tenant-{n % 2}",
            inbox=f"box-{n % 4}" if n % 4 else None,
        )
        for n in range(50)
    ]

    receipts = await client.submit_many(jobs)

    assert [receipt.id for receipt in receipts] == [job.id for job in jobs]
    assert [receipt.inbox for receipt in receipts] == [job.inbox or client.inbox for job in jobs]


async def test_more_jobs_than_one_call_takes(client: AsyncClient, service: HandService) -> None:
    """Any number of jobs may be submitted; the client cuts them into calls of `MAX_JOBS`, in order."""
    jobs = [Job(model=MODEL, input=n) for n in range(3 * scripts.MAX_JOBS + 1)]

    receipts = await client.submit_many(jobs)

    assert [receipt.id for receipt in receipts] == [job.id for job in jobs]
    taken = await service.take()
    assert [entry.envelope.job_id for entry in taken] == [job.id for job in jobs]
    await service.answer(*taken)


async def test_no_jobs_at_all(client: AsyncClient) -> None:
    """An empty batch is no error."""
    assert await client.submit_many([]) == []
    assert await client.submit_patiently([]) == []


async def test_many_callers_at_once_share_a_bounded_number_of_connections(
    client: AsyncClient, service: HandService
) -> None:
    """Three hundred concurrent calls wait for each other's connections instead of failing for want of one."""
    receipts = await asyncio.gather(*(client.submit(Job(model=MODEL, input=n)) for n in range(300)))

    assert all(receipt.accepted for receipt in receipts)
    assert int((await service.redis.info("clients"))["connected_clients"]) < 60


async def test_a_deadline_below_one_millisecond_is_still_a_deadline(client: AsyncClient, service: HandService) -> None:
    """0 means "no deadline" on the wire, so the shortest deadline is one millisecond."""
    await client.submit(Job(model=MODEL, input="x", deadline_s=0.0001))

    [entry] = await service.take()
    assert entry.envelope.deadline_ms > 0


async def test_jobs_that_tasks_submit_at_once_share_a_call(client: AsyncClient, service: HandService) -> None:
    """Which spares a web service with a task for each request the calls, and the connections that they would take."""
    await client.submit(Job(model=MODEL, input="x"))  # it asks about the model once
    before = await calls_of_scripts(service)

    receipts = await asyncio.gather(*(client.submit(Job(model=MODEL, input=n, id=f"job-{n}")) for n in range(100)))

    assert [receipt.id for receipt in receipts] == [f"job-{n}" for n in range(100)]
    assert await calls_of_scripts(service) - before == 1


async def calls_of_scripts(service: HandService) -> int:
    return int((await service.redis.info("commandstats"))["cmdstat_evalsha"]["calls"])


# -- duplicates ---------------------------------------------------------------------------------------------


async def test_an_id_that_two_tasks_submit_at_once_is_one_job(client: AsyncClient, service: HandService) -> None:
    job = Job(model=MODEL, input="x", id="mine")

    first, second = await asyncio.gather(client.submit(job), client.submit(job))

    assert [first.outcome, second.outcome] == [SubmitOutcome.ACCEPTED, SubmitOutcome.DUPLICATE]
    assert len(await service.take()) == 1


async def test_an_id_that_waits_is_a_duplicate(client: AsyncClient, service: HandService) -> None:
    """The same id submitted twice is one job."""
    first = await client.submit(Job(model=MODEL, input="first", id="same"))
    second = await client.submit(Job(model=MODEL, input="second", id="same"))

    assert not first.duplicate
    assert second.duplicate
    assert second.accepted
    assert len(await service.take()) == 1


async def test_both_submitters_of_a_waiting_id_get_the_one_answer(client: AsyncClient, service: HandService) -> None:
    """A duplicate's receipt is as good as the first one's."""
    receipts = [await client.submit(Job(model=MODEL, input="x", id="same")) for _ in range(2)]
    waiters = [asyncio.create_task(client.result(receipt, timeout_s=5)) for receipt in receipts]

    await service.answer(*await service.take(), output=7)

    assert [(await waiter).unwrap() for waiter in waiters] == [7, 7]


async def test_an_id_that_has_ended_is_a_duplicate(redis_url: str, service: HandService) -> None:
    """While the answer is kept, submitting the id again leads to the answer there is."""
    async with AsyncClient(redis_url, settings=None) as client:
        await client.submit(Job(model=MODEL, input="x", id="same"))
        await service.answer(*await service.take(), output="once")

        again = await client.submit(Job(model=MODEL, input="x", id="same"))

        assert again.duplicate
        assert (await client.result(again, timeout_s=5)).unwrap() == "once"
        assert await service.take() == []


async def test_an_id_of_another_client_is_a_duplicate(
    client: AsyncClient, service: HandService, redis_url: str
) -> None:
    """Ids are known to the model, not to the client; the second client waits for the first one's answer."""
    await client.submit(Job(model=MODEL, input="x", id="same"))
    async with AsyncClient(redis_url) as other:
        receipt = await other.submit(Job(model=MODEL, input="x", id="same"))
        assert receipt.duplicate

        waiter = asyncio.create_task(other.result(receipt, timeout_s=5))
        await service.answer(*await service.take(), output="shared")

        assert (await waiter).unwrap() == "shared"


async def test_two_concurrent_submissions_of_one_id(client: AsyncClient, service: HandService) -> None:
    """One is accepted and the other is told "duplicate", whichever the server sees first; both are answered."""
    job = Job(model=MODEL, input="x", id="same")
    receipts = await asyncio.gather(*(client.submit(job) for _ in range(8)))
    waiters = [asyncio.create_task(client.result(receipt, timeout_s=5)) for receipt in receipts]
    await service.answer(*await service.take(), output=1)

    assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * 7
    assert [(await waiter).unwrap() for waiter in waiters] == [1] * 8


async def test_one_id_twice_in_one_batch(client: AsyncClient, service: HandService) -> None:
    """Within one call, too, the second of two jobs with one id is the duplicate."""
    first, second = await client.submit_many([Job(model=MODEL, input=n, id="same") for n in range(2)])

    assert (first.duplicate, second.duplicate) == (False, True)
    assert len(await service.take()) == 1


async def test_the_same_id_on_two_models_is_two_jobs(client: AsyncClient, service: HandService, redis_url: str) -> None:
    """An id is an id of a model."""
    async with HandService(redis_url, "another") as another:
        receipts = await client.submit_many([Job(model=name, input="x", id="same") for name in (MODEL, "another")])
        assert [receipt.duplicate for receipt in receipts] == [False, False]
        await service.answer(*await service.take(), output="this")
        await another.answer(*await another.take(), output="that")

        assert (await client.result("same", model="another", timeout_s=5)).unwrap() == "that"
        assert (await client.result("same", model=MODEL, timeout_s=5)).unwrap() == "this"


# -- replays ------------------------------------------------------------------------------------------------


async def submit_raw(service: HandService, *ids: str, token: str) -> list[SubmitOutcome]:
    """One SUBMIT call with a token of the test's choosing."""
    jobs = [(job_id, 0, "-", b"\x81\xa5input\xa1x") for job_id in ids]
    return await scripts.submit(service.redis, MODEL, jobs, priority=1, token=token, inbox="box", tenant="default")


async def test_a_replayed_call_is_accepted_again_and_changes_nothing(service: HandService) -> None:
    """The retry of a call whose reply was lost carries the same token: it finds its own jobs."""
    token = new_token()
    first = await submit_raw(service, "a", "b", token=token)
    replay = await submit_raw(service, "a", "b", token=token)

    assert first == replay == [SubmitOutcome.ACCEPTED] * 2
    assert len(await service.take()) == 2


async def test_a_replay_after_the_job_has_ended_is_still_accepted(service: HandService) -> None:
    """The answer may be faster than the retry."""
    token = new_token()
    await submit_raw(service, "a", token=token)
    await service.answer(*await service.take())

    assert await submit_raw(service, "a", token=token) == [SubmitOutcome.ACCEPTED]
    assert await service.take() == []


async def test_a_replay_finds_its_jobs_though_the_lane_is_full_now(service: HandService) -> None:
    """What was accepted stays accepted, though there is no room for it a second time."""
    await service.set_limits(Limits(lane_capacity=2))
    token = new_token()

    assert await submit_raw(service, "a", "b", token=token) == [SubmitOutcome.ACCEPTED] * 2
    assert await submit_raw(service, "a", "b", token=token) == [SubmitOutcome.ACCEPTED] * 2
    assert await submit_raw(service, "c", token=token) == [SubmitOutcome.QUEUE_FULL]


async def test_another_call_is_no_replay(service: HandService) -> None:
    """The token, not the id, is what tells a replay from a duplicate."""
    await submit_raw(service, "a", token="11111111")

    assert await submit_raw(service, "a", token="22222222") == [SubmitOutcome.DUPLICATE]


# -- refusals -----------------------------------------------------------------------------------------------


async def test_an_unknown_model_is_refused_by_name(client: AsyncClient) -> None:
    """A misspelt model is an error at once, not a job that waits for ever."""
    with pytest.raises(UnknownModelError, match=r"'by-hnad'.*check the name") as caught:
        await client.submit(Job(model="by-hnad", input="x"))

    assert outcomes_of(caught.value) == [SubmitOutcome.UNKNOWN_MODEL]


async def test_a_full_lane_accepts_what_fits_and_says_so_job_by_job(client: AsyncClient, service: HandService) -> None:
    """`receipts` of the error tells the fate of each job."""
    await service.set_limits(Limits(lane_capacity=3))

    with pytest.raises(QueueFullError, match="2 of 5 jobs refused") as caught:
        await client.submit_many([Job(model=MODEL, input=n) for n in range(5)])

    accepted, full = SubmitOutcome.ACCEPTED, SubmitOutcome.QUEUE_FULL
    assert outcomes_of(caught.value) == [accepted, accepted, accepted, full, full]
    assert caught.value.retry_after_s > 0
    assert not isinstance(caught.value, TenantQueueFullError)


async def test_what_was_accepted_beside_a_refusal_is_answered(client: AsyncClient, service: HandService) -> None:
    """A refusal costs the accepted jobs nothing."""
    await service.set_limits(Limits(lane_capacity=1))
    with pytest.raises(QueueFullError) as caught:
        await client.submit_many([Job(model=MODEL, input=n) for n in range(2)])
    await service.answer(*await service.take(), output="fine")

    accepted, refused = caught.value.receipts
    assert (await client.result(accepted, timeout_s=5)).unwrap() == "fine"
    with pytest.raises(ResultGoneError, match="never submitted"):
        await client.result(refused, timeout_s=5)


async def test_a_tenant_at_its_cap_is_refused_and_others_are_not(client: AsyncClient, service: HandService) -> None:
    """A tenant's live jobs count until they end."""
    await service.set_limits(Limits(tenant_capacity=2))
    await client.submit_many([Job(model=MODEL, input=n, tenant="greedy") for n in range(2)])

    with pytest.raises(TenantQueueFullError, match="cap of live jobs"):
        await client.submit(Job(model=MODEL, input="x", tenant="greedy"))
    await client.submit(Job(model=MODEL, input="x", tenant="modest"))

    await service.answer(*await service.take())
    await client.submit(Job(model=MODEL, input="x", tenant="greedy"))


async def test_the_first_refusal_gives_the_error_its_kind(client: AsyncClient, service: HandService) -> None:
    """All jobs are tried; one error reports them all."""
    await service.set_limits(Limits(tenant_capacity=1))
    jobs = [Job(model=MODEL, input="x", tenant="one") for _ in range(2)] + [Job(model="nobody", input="x")]

    with pytest.raises(TenantQueueFullError) as caught:
        await client.submit_many(jobs)

    assert outcomes_of(caught.value) == [
        SubmitOutcome.ACCEPTED,
        SubmitOutcome.TENANT_FULL,
        SubmitOutcome.UNKNOWN_MODEL,
    ]


async def test_an_invalid_job_keeps_the_whole_batch_from_being_sent(client: AsyncClient, service: HandService) -> None:
    """What cannot be packed is found before anything goes out."""
    with pytest.raises(InvalidJobError):
        await client.submit_many([Job(model=MODEL, input="fine"), Job(model=MODEL, input="x" * (1 << 20))])

    assert await service.take() == []
    assert (await client.audit(MODEL)).submitted == 0


async def test_a_refused_job_leaves_nobody_waiting(client: AsyncClient, service: HandService) -> None:
    """Whoever asked for the answer while the job was being refused is told that there is none."""
    await service.set_limits(Limits(lane_capacity=1))
    await client.submit(Job(model=MODEL, input="first"))
    submitting = asyncio.create_task(client.submit(Job(model=MODEL, input="second", id="second")))
    await asyncio.sleep(0)  # the submission is on its way
    asking = asyncio.create_task(client.result("second", model=MODEL, timeout_s=5))

    with pytest.raises(QueueFullError):
        await submitting
    with pytest.raises(ResultGoneError):
        await asking


# -- patience -----------------------------------------------------------------------------------------------


async def test_patience_waits_until_there_is_room(client: AsyncClient, service: HandService) -> None:
    """`submit_patiently` goes on with what was refused, until all of it is accepted."""
    await service.set_limits(Limits(lane_capacity=4))
    submitting = asyncio.create_task(client.submit_patiently([Job(model=MODEL, input=n) for n in range(12)]))

    answered = 0
    while answered < 12:
        taken = await eventually(service.take)
        assert len(taken) <= 4
        answered += len(await service.answer(*taken))

    assert all(receipt.accepted for receipt in await submitting)


async def test_patience_ends_at_an_unknown_model(client: AsyncClient, service: HandService) -> None:
    """Waiting does not help against a wrong name; the receipts still tell the fate of every job."""
    with pytest.raises(UnknownModelError) as caught:
        await client.submit_patiently([Job(model=MODEL, input="x"), Job(model="nobody", input="x")])

    assert outcomes_of(caught.value) == [SubmitOutcome.ACCEPTED, SubmitOutcome.UNKNOWN_MODEL]


async def test_patience_can_be_cancelled(client: AsyncClient, service: HandService) -> None:
    """What was accepted by then stays accepted."""
    await service.set_limits(Limits(lane_capacity=1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await client.submit_patiently([Job(model=MODEL, input=n) for n in range(3)])

    assert (await client.audit(MODEL)).submitted == 1
