"""Which replicas have died, as calls have shown, for as long as they are named among the living.

Serve takes a dead replica from its list within a second, as long as its controller lives. Where the controller died
as well, or a node went without a word, that takes up to a minute. What is sent there meanwhile fails, and never ran:
it says nothing of the jobs, and those that would be blamed for it most are those that run alone.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from headrace_cluster.slots.ledger import Slot

__all__ = ["LostReplicas"]

_MOST: Final = 1000
"""Names that are remembered. Each life of a replica has one of its own."""


class LostReplicas:
    """Remembers, for each replica that died, the last batch that was sent anywhere before that was known."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, int] = OrderedDict()

    def died(self, slot: Slot, *, sent: int) -> bool:
        """A batch did not come back from a replica, for it died, when so many batches had been sent in all.

        Returns whether that is news: a replica dies once, with all the batches that it has.
        """
        if slot.replica in self._last:
            return False
        self._last[slot.replica] = sent
        while len(self._last) > _MOST:
            self._last.popitem(last=False)
        return True

    def answered(self, replica: str) -> None:
        """It lives, whatever was thought."""
        self._last.pop(replica, None)

    def had_died(self, slot: Slot) -> bool:
        """Whether a batch was sent to a replica that was dead already, so that it cannot have run there."""
        return slot.number > self._last.get(slot.replica, slot.number)
