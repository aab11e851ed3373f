"""Which pool the next batch goes to, where a model has several: a fast and dear one, say, and slow and cheap ones.

The batch goes where it is predicted to be done within its deadline at the least cost; where no pool can be in time, to
the first that is done. A slow pool's free slot stays empty while a fast pool, busy for the moment, would be done with
all that waits before the slow one were done with this batch: "minimum completion time" with a look at the backlog
(Maheswaran et al. 1999, "Dynamic mapping of a class of independent tasks"). Where more waits, nobody is left idle.

Pure, and only asked where there is a choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Option", "Placement", "place"]

_MARGIN: Final = 0.25
"""By what part of its run time a batch must be done before its deadline: predictions are that good."""
_ALIKE: Final = 1.1
"""Up to what ratio two costs are the same: then the one that is done first is taken."""


@dataclass(frozen=True, slots=True)
class Option:
    """What a pool could do for the next batch."""

    pool: str
    starts_s: float
    """When its next slot would begin with the batch."""
    run_s: float
    """How long the batch takes there."""
    weight: float = 1.0
    """What a second of one replica costs."""
    slots: float = 1.0
    """How many batches, or jobs where each has a slot, the pool works on at a time."""
    ready_s: float | None = None
    """From when on the batch may be sent there; None while the pool has no slot for it."""

    @property
    def done_s(self) -> float:
        """When it would be done with the batch."""
        return self.starts_s + self.run_s

    @property
    def cost(self) -> float:
        """What the batch costs there."""
        return self.weight * self.run_s

    def drained_s(self, batches: float) -> float:
        """When it would be done with so many such batches, this one among them."""
        return self.done_s + self.run_s * max(0.0, batches - 1) / self.slots

    @property
    def surely_done_s(self) -> float:
        """The same, as far as can be said."""
        return self.done_s + _MARGIN * self.run_s

    def in_time(self, deadline_s: float | None) -> bool:
        """Whether the batch would be done by then."""
        return deadline_s is None or self.surely_done_s <= deadline_s


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the next batch goes."""

    pool: str
    wait: bool = False
    """Whether to wait for that pool's next slot, which is taken by others now."""
    until_s: float = 0.0
    """And until when at most: by then the pool should be done with the batch."""


def place(options: Sequence[Option], now_s: float, *, batches: float, deadline_s: float | None) -> Placement | None:
    """The pool for the next batch; None if it may be sent nowhere now.

    Args:
        options: what each pool could do.
        now_s: the time.
        batches: how many such batches wait, infinitely many if it is not known.
        deadline_s: when the most urgent of its jobs must be done.
    """
    open_ = [option for option in options if option.ready_s is not None and option.ready_s <= now_s]
    if not open_:
        return None
    chosen = _cheapest_in_time(open_, deadline_s)
    better = [
        option for option in options if option not in open_ and _worth_waiting(option, chosen, batches, deadline_s)
    ]
    if not better:
        return Placement(chosen.pool)
    first = min(better, key=lambda option: option.done_s)
    return Placement(first.pool, wait=True, until_s=first.done_s)


def _cheapest_in_time(options: Sequence[Option], deadline_s: float | None) -> Option:
    timely = [option for option in options if option.in_time(deadline_s)]
    if timely:
        least = min(option.cost for option in timely)
        options = [option for option in timely if option.cost <= _ALIKE * least]
    return min(options, key=lambda option: option.done_s)


def _worth_waiting(option: Option, chosen: Option, batches: float, deadline_s: float | None) -> bool:
    """Whether a pool that is busy is done with everything before `chosen` is with one batch, and at no higher cost."""
    if chosen.in_time(deadline_s) and option.cost > chosen.cost:
        return False
    return option.drained_s(batches) < chosen.done_s
