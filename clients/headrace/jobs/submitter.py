"""Handing jobs over: many with each call to the server, and the fate of each told by a receipt."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import redis.asyncio

from headrace import scripts
from headrace.ids import new_token
from headrace.inboxes.own_inbox import OwnInbox
from headrace.jobs.refusal import raise_refusals, room_after_s
from headrace.jobs.shared_calls import SharedCalls
from headrace.messages.job import PRIORITIES, Job, Priority, Receipt, SubmitOutcome
from headrace.messages.payload import pack_payload
from headrace.models.shards import Shards, shard_of
from headrace.telemetry.tracing import submitting

__all__ = ["Submitter"]

_LONGEST_PAUSE_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.05

_Call = tuple[str, Priority, str, str, str]
"""What the jobs of one SUBMIT call have in common: model, priority, inbox, tenant, retry policy."""

_Envelope = tuple[str, int, str, bytes]
"""A job as SUBMIT takes it: id, deadline in ms from now or 0, traceparent, payload."""


class Submitter:
    """Hands the jobs of one client over.

    Args:
        client: for commands.
        shards: of the models.
        own_inbox: expects the answers of jobs that name no other.
    """

    def __init__(self, client: redis.asyncio.Redis, shards: Shards, own_inbox: OwnInbox) -> None:
        self._redis = client
        self._shards = shards
        self._own_inbox = own_inbox
        self._shared = SharedCalls(self._submit, most=scripts.MAX_JOBS)

    async def hand_over(self, jobs: Sequence[Job]) -> list[Receipt]:
        """Submit jobs and report the outcome of each, refusals included.

        Raises:
            InvalidJobError: one of them is too large, or not Unicode; none was sent.
        """
        self._own_inbox.require_open()
        payloads = [pack_payload(job) for job in jobs]
        with submitting(len(jobs)) as traceparent:
            return await self._send(jobs, payloads, traceparent or "-")

    async def hand_over_patiently(self, jobs: Sequence[Job]) -> list[Receipt]:
        """As `hand_over`, but wait, with jitter, for as long as lanes or tenants are full.

        Raises:
            InvalidJobError, UnknownModelError.
        """
        receipts = await self.hand_over(jobs)
        pause_s, before = _FIRST_PAUSE_S, 0
        while refused := [n for n, receipt in enumerate(receipts) if not receipt.accepted]:
            raise_refusals(receipts, of=SubmitOutcome.UNKNOWN_MODEL)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s) if len(refused) == before else _FIRST_PAUSE_S
            before = len(refused)
            await asyncio.sleep(random.uniform(0.5, 1.5) * pause_s)
            for n, receipt in zip(refused, await self.hand_over([jobs[n] for n in refused]), strict=True):
                receipts[n] = receipt
        return receipts

    async def raise_refusals(self, receipts: Sequence[Receipt]) -> None:
        """Raise the error of the first refusal, with how long the service takes to make room."""
        refused = [receipt for receipt in receipts if not receipt.accepted]
        if refused:
            raise_refusals(receipts, retry_after_s=await room_after_s(self._redis, refused[0].model, len(refused)))

    async def _send(self, jobs: Sequence[Job], payloads: Sequence[bytes], traceparent: str) -> list[Receipt]:
        receipts: dict[int, Receipt] = {}
        shards = {model: await self._shards.count(model) for model in {job.model for job in jobs}}
        for call, places in self._calls(jobs, shards):
            envelopes = [
                (jobs[n].id, _milliseconds(jobs[n].deadline_s), jobs[n].traceparent or traceparent, payloads[n])
                for n in places
            ]
            receipts.update(zip(places, await self._call(call, envelopes), strict=True))
        return [receipts[n] for n in range(len(jobs))]

    def _calls(self, jobs: Sequence[Job], shards: Mapping[str, int]) -> Iterable[tuple[_Call, list[int]]]:
        """Places of jobs that may share one script call."""
        groups: dict[_Call, list[int]] = {}
        for place, job in enumerate(jobs):
            retry = job.retry.to_word() if job.retry else "-"
            model = shard_of(job.model, job.id, shards[job.model])
            groups.setdefault((model, job.priority, job.inbox or self._own_inbox.name, job.tenant, retry), []).append(
                place
            )
        for key, places in groups.items():
            for start in range(0, len(places), scripts.MAX_JOBS):
                yield key, places[start : start + scripts.MAX_JOBS]

    async def _call(self, call: _Call, envelopes: Sequence[_Envelope]) -> list[Receipt]:
        """Hand jobs over that may share a call; answers that come here are expected from before it on."""
        model, _, inbox, _, _ = call
        ids = [envelope[0] for envelope in envelopes]
        expected = self._own_inbox.expect(model, ids) if inbox == self._own_inbox.name else set()
        try:
            outcomes = await self._shared.outcomes(call, envelopes)
            receipts = [Receipt(model, job_id, inbox, told) for job_id, told in zip(ids, outcomes, strict=True)]
            expected -= {receipt.id for receipt in receipts if receipt.outcome is SubmitOutcome.ACCEPTED}
        finally:
            self._own_inbox.withdraw(model, expected)
        return receipts

    async def _submit(self, call: _Call, envelopes: Sequence[_Envelope]) -> list[SubmitOutcome]:
        """One call to the server, and what became of its jobs."""
        model, priority, inbox, tenant, retry = call
        outcomes = await scripts.submit(
            self._redis,
            model,
            envelopes,
            priority=PRIORITIES.index(priority),
            token=new_token(),
            inbox=inbox,
            tenant=tenant,
            retry=retry,
        )
        return _once_each([envelope[0] for envelope in envelopes], outcomes)


def _once_each(job_ids: Sequence[str], outcomes: Sequence[SubmitOutcome]) -> list[SubmitOutcome]:
    """The outcomes, where the second of an id is a duplicate: the script takes it for a replay."""
    accepted = set[str]()
    told = []
    for job_id, outcome in zip(job_ids, outcomes, strict=True):
        told.append(SubmitOutcome.DUPLICATE if job_id in accepted else outcome)
        if outcome is SubmitOutcome.ACCEPTED:
            accepted.add(job_id)
    return told


def _milliseconds(deadline_s: float | None) -> int:
    """A deadline as SUBMIT takes it, where 0 is none."""
    return 0 if deadline_s is None else max(1, round(deadline_s * 1000))
