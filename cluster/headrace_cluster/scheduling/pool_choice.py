"""Which slot the next batch gets: the only pool's best, or that of the pool where it is placed.

This is where `place` gets its facts: what waits, what each pool has to do, and what the batch would take there. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from headrace_cluster.scheduling.batch_former import BatchFormer
from headrace_cluster.scheduling.placement import Option, Placement, place
from headrace_cluster.scheduling.pool_costs import PoolCosts
from headrace_cluster.scheduling.stragglers import BatchesOut
from headrace_cluster.slots.ledger import Slot
from headrace_cluster.slots.table import SlotTable

__all__ = ["NextSlot", "PoolChoice"]

_ReadyAt = Callable[[float, Slot], float | None]


class NextSlot(NamedTuple):
    """Where the next batch goes, and from when on it may. Without a slot: when to look again, if that is known."""

    slot: Slot | None
    ready_s: float | None


class PoolChoice:
    """Chooses slots for the batches of one model.

    Args:
        former: what waits.
        costs: what batches take.
        out: what the replicas have to do.
        one_by_one: whether jobs end each by itself; then each has a slot, and is counted as a batch.
        ready_at: from when on a batch may be sent to a slot, if that is known.
    """

    def __init__(
        self, former: BatchFormer, costs: PoolCosts, out: BatchesOut, *, one_by_one: bool, ready_at: _ReadyAt
    ) -> None:
        self.more_waits = False
        """Whether there is more in Redis than the router may hold; then no pool is left idle."""
        self._former = former
        self._costs = costs
        self._out = out
        self._one_by_one = one_by_one
        self._ready_at = ready_at
        self._wait_until_s: float | None = None

    def next_slot(self, slots: SlotTable, now_s: float) -> NextSlot:
        """The slot for the next batch. It is not taken yet."""
        if len(slots.pools) > 1:
            return self._of_several(slots, now_s)
        slot = slots.best(now_s) if len(self._former) else None
        ready_s = self._ready_at(now_s, slot) if slot is not None else None
        if not len(self._former) or (slot is not None and (ready_s is None or ready_s > now_s)):
            slots.unwanted()
        return NextSlot(slot, ready_s)

    def soonest_s(self, slots: SlotTable, now_s: float) -> float:
        """When the next batch should be back at the soonest, where more waits than may be held; else the time it is.

        Nor is there more to say where predictions are not trusted, or jobs end one by one, each after its own time.
        """
        pools = slots.pools
        if not (self.more_waits and len(self._former) and slots.predictable) or self._one_by_one:
            return now_s
        if self._former.earliest_deadline_s is None or not all(map(self._costs.trusted, pools)):
            return now_s
        free, size = slots.best_of_pools(now_s), self._next_size()
        options = (self._option(pool, free.get(pool), slots, pools[pool], size, now_s) for pool in pools)
        return min((option.surely_done_s for option in options if option is not None), default=now_s)

    def sent(self) -> None:
        """A batch was sent: whatever was waited for is over."""
        self._wait_until_s = None

    def _of_several(self, slots: SlotTable, now_s: float) -> NextSlot:
        if not len(self._former):
            return NextSlot(None, None)
        free = slots.best_of_pools(now_s)
        if (unknown := self._unknown(free, now_s)) is not None:
            return NextSlot(unknown, now_s)
        jobs, tokens = self._next_size()
        options = [
            option
            for pool, replicas in slots.pools.items()
            if (option := self._option(pool, free.get(pool), slots, replicas, (jobs, tokens), now_s)) is not None
        ]
        placement = self._place(options, len(self._former) / jobs, now_s)
        if placement is None:
            return NextSlot(None, min((o.ready_s for o in options if o.ready_s is not None), default=None))
        if placement.wait:
            return NextSlot(None, self._wait_until_s)
        return NextSlot(free[placement.pool], now_s)

    def _unknown(self, free: Mapping[str, Slot], now_s: float) -> Slot | None:
        """The slot of a pool of which nothing is known yet, and that does nothing: one batch is how it gets known."""
        for pool, slot in free.items():
            if not self._costs.of(pool).measured and slot.idle and self._out.first_back_s(pool, now_s) is None:
                ready_s = self._ready_at(now_s, slot)
                if ready_s is not None and ready_s <= now_s:
                    return slot
        return None

    def _place(self, options: list[Option], batches: float, now_s: float) -> Placement | None:
        """As `place` says, which waits for no pool longer than that pool should take."""
        deadline_s = self._former.earliest_deadline_s
        batches = math.inf if self.more_waits or self._patience_is_over(now_s) else batches
        placement = place(options, now_s, batches=batches, deadline_s=deadline_s)
        if placement is not None and placement.wait and self._wait_until_s is None:
            self._wait_until_s = placement.until_s
        return placement

    def _patience_is_over(self, now_s: float) -> bool:
        return self._wait_until_s is not None and now_s >= self._wait_until_s

    def _next_size(self) -> tuple[float, float]:
        """Jobs and tokens of the next batch, nearly: what waits, in equal parts."""
        mean = self._former.tokens / len(self._former)
        if self._one_by_one:
            return 1.0, mean
        policy = self._former.policy
        jobs = max(1.0, min(len(self._former), policy.max_jobs, policy.max_tokens / max(1.0, mean)))
        return jobs, jobs * mean

    def _option(
        self, pool: str, slot: Slot | None, slots: SlotTable, replicas: int, size: tuple[float, float], now_s: float
    ) -> Option | None:
        """What a pool could do; None if nobody knows when it has a slot again."""
        starts_s = self._starts_s(pool, slot, now_s)
        if starts_s is None:
            return None
        return Option(
            pool,
            starts_s=starts_s,
            run_s=self._costs.of(pool).predict_s(*size) * (slots.slowness(slot.replica) if slot is not None else 1.0),
            weight=self._costs.facts(pool).weight,
            slots=replicas * (slots.capacity(pool) if self._one_by_one else 1),
            ready_s=self._ready_at(now_s, slot) if slot is not None else None,
        )

    def _starts_s(self, pool: str, slot: Slot | None, now_s: float) -> float | None:
        if slot is None:
            return self._out.first_back_s(pool, now_s)
        return now_s if slot.idle or self._one_by_one else max(now_s, self._out.free_s(slot.replica, now_s))
