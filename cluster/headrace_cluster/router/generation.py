"""Which of several applications on one Redis reads a model's lanes: the newest one that can run its jobs.

While a service is exchanged, two generations of its application stand side by side: two clusters of KubeRay, say, or
the old and the new routers of one. Both would read; a model that is not loaded yet, or no more, would hold jobs that
the other could run. So every router asks Redis who leads (`lua/lead.lua`), and reads only where its generation does.
Nothing depends on this for correctness: answers are fenced job by job, and a job that two routers hold is answered
once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from headrace.scripts import Leader

__all__ = ["GenerationFence"]

_SILENT_S: Final = 1.5
"""How long a newer generation must be silent before an older takes over again: other routers of it come first."""


class GenerationFence:
    """What one router of one model knows of its generation. Pure: time comes in as an argument.

    Args:
        number: the generation; the higher is the newer.
        needs: names of the pools that must have a replica before the router may take over from an older generation.
        drain_s: how long the router may go on with what it holds when a newer one reads.
    """

    def __init__(self, number: int = 0, *, needs: Iterable[str] = (), drain_s: float = 30.0) -> None:
        self.number = number
        self.leads = False
        """Whether this generation reads, as far as is known."""
        self.needs = frozenset(needs)
        self._drain_s = drain_s
        self._present: frozenset[str] = frozenset()
        self._retired = False
        self._hand_back_s: float | None = None
        self._silent_since_s: float | None = None

    def replicas_changed(self, replicas: Iterable[str]) -> None:
        """Take note of the replicas there are; a replica's name begins with its pool's."""
        self._present = frozenset(name.partition("/")[0] for name in replicas)

    def retire(self) -> None:
        """The router is to end: it reads nothing more, whoever leads."""
        self._retired = True

    @property
    def able(self) -> bool:
        """Whether jobs of the model can be run here. Of pools that may scale from zero, no replica is asked."""
        return not self._retired and self.needs <= self._present

    def may_succeed(self, now_s: float) -> bool:
        """Whether a newer generation has been silent for so long that this one may take over again."""
        return self._silent_since_s is not None and now_s - self._silent_since_s >= _SILENT_S

    def told(self, leader: Leader, now_s: float) -> bool:
        """Redis says who leads; returns whether that is news."""
        if leader.lives:
            self._silent_since_s = None
        elif self._silent_since_s is None or now_s < self._silent_since_s:  # or the clock was set back
            self._silent_since_s = now_s
        leads = leader.generation == self.number
        if leads == self.leads:
            return False
        self.leads = leads
        self._hand_back_s = None if leads else now_s + self._drain_s
        return True

    def hand_back_due(self, now_s: float) -> bool:
        """Whether what is still held is to be given to the generation that reads. True once for each loss."""
        if self._hand_back_s is None or now_s < self._hand_back_s:
            return False
        self._hand_back_s = None
        return True
