"""One line of JSON for each change of a decision, and now and then one that says that nothing can be decided."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Final

from headrace_cluster.autoscaling.autoscaler import Decision

__all__ = ["DecisionLog"]

log = logging.getLogger("headrace.autoscaling")

_HOLDING_EVERY_S: Final = 30.0
"""Between two lines on the same trouble."""


class DecisionLog:
    """Writes down what is worth it."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}
        self._trouble_due_s = float("-inf")

    def note(self, now_s: float, decisions: Iterable[Decision]) -> None:
        """Write a line for each pool that is to have another number of replicas than it was told last."""
        for made in decisions:
            if made.holding:
                self.trouble(now_s, f"{made.pool} stays at {made.replicas}: {'; '.join(made.reasons)}")
            elif made.replicas != self._told.get(made.pool, made.before):
                log.info("%s", _line(made, self._told.get(made.pool, made.before)))
            self._told[made.pool] = made.replicas

    def trouble(self, now_s: float, words: str) -> None:
        """Write that something keeps decisions from being made, unless that was written a moment ago."""
        if now_s >= self._trouble_due_s:
            self._trouble_due_s = now_s + _HOLDING_EVERY_S
            log.warning("%s", json.dumps({"event": "holding", "reason": words}))


def _line(made: Decision, before: int) -> str:
    return json.dumps(
        {
            "event": "scaling",
            "pool": made.pool,
            "direction": "up" if made.replicas > before else "down",
            "from": before,
            "to": made.replicas,
            "reasons": list(made.reasons),
        }
    )
