"""Jobs that were not taken: which error says so, and when there may be room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import redis.asyncio

from headrace.errors import QueueFullError, TenantQueueFullError, UnknownModelError
from headrace.keys import keys_of
from headrace.messages.job import Receipt, SubmitOutcome
from headrace.server.connection import execute, translated

__all__ = ["drain_rate", "raise_refusals", "room_after_s"]

_UNKNOWN_S: Final = 1.0
_SHORTEST_S: Final = 0.05
_LONGEST_S: Final = 60.0


async def room_after_s(client: redis.asyncio.Redis, model: str, jobs: int) -> float:
    """How long until as many jobs have ended, at the rate at which the model's jobs ended lately; in seconds."""
    async with translated(f"reading how fast {model} drains"):
        rate = await execute(client, "HGET", keys_of(model).meta, "drain_per_s")
    jobs_per_s = drain_rate(rate or b"")
    if jobs_per_s <= 0:
        return _UNKNOWN_S
    return round(min(_LONGEST_S, max(_SHORTEST_S, jobs / jobs_per_s)), 3)


def drain_rate(text: bytes) -> float:
    """Jobs that end in a second, as a service says it; 0 where it says nothing sensible."""
    try:
        rate = float(text)
    except ValueError:
        return 0.0
    return rate if math.isfinite(rate) else 0.0


def raise_refusals(
    receipts: Sequence[Receipt], *, of: SubmitOutcome | None = None, retry_after_s: float = _UNKNOWN_S
) -> None:
    """Raise the error of the first refusal among receipts, if there is one (`of` a kind)."""
    refused = next((r for r in receipts if not r.accepted and of in (None, r.outcome)), None)
    if refused is None:
        return
    count = sum(not receipt.accepted for receipt in receipts)
    if refused.outcome is SubmitOutcome.UNKNOWN_MODEL:
        raise UnknownModelError(
            f"no service has registered the model {refused.model!r} in this Redis; "
            "check the name against `headrace status`, or start the service first",
            receipts=list(receipts),
        )
    tenant = refused.outcome is SubmitOutcome.TENANT_FULL
    kind = TenantQueueFullError if tenant else QueueFullError
    raise kind(
        f"{count} of {len(receipts)} jobs refused: "
        + (f"their tenant has its cap of live jobs on {refused.model}" if tenant else f"{refused.model}'s lane is full")
        + f"; retry after {retry_after_s} s",
        retry_after_s=retry_after_s,
        receipts=list(receipts),
    )
