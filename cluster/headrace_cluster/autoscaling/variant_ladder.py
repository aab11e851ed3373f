"""Which variant of its model a pool runs: the best, until that is too slow for the load and no replica can be added.

What is computed here is only when to go one rung down to a faster variant, and when to come back up. Quality has a
floor that its owner set; no load makes a pool go below. Pure: time and load are passed in, and the variant that runs is
what Redis says, so that several who decide agree with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace.messages.rungs import Rung

__all__ = ["LadderPolicy", "PoolLoad", "VariantChoice", "VariantLadder"]

_BUSY_AT_MOST: Final = 0.8
"""How busy the better variant may be expected to be when the pool goes back to it. Above that, a load that varies by
a fifth would drive it away again."""
_DRAINED_SHARE: Final = 0.5
"""Of the drain target, what the better variant may need for what waits."""
_MOST_PATIENCE: Final = 16
"""By what the wait before going back grows at most, where going back turned out to be wrong."""
_LONGEST_GAP_S: Final = 5.0
"""Between two looks. After a longer one nobody knows what was in between, and nothing has been sustained."""


@dataclass(frozen=True, slots=True)
class LadderPolicy:
    """When a pool changes its variant."""

    floor: float = 0.97
    """The least quality, as a share of the first variant's."""
    step_after_s: float = 15.0
    """How long the pool must have been overloaded before it takes a faster variant."""
    back_after_s: float = 120.0
    """How long a better one must have been fast enough before the pool goes back to it."""
    drain_s: float = 30.0
    """What waits shall be done in that time; more is overload."""


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """What a pool has to do, at the variant that it runs and with all replicas that it may have."""

    drain_s: float
    """Seconds until what waits is done, if as much comes in as did lately; infinite where it never is."""
    busy: float
    """Share of what it can do that comes in: above 1 the backlog grows."""
    at_most: bool
    """Whether no replica can be added."""


@dataclass(frozen=True, slots=True)
class VariantChoice:
    """What a pool shall run."""

    variant: str
    changed: bool
    """Whether that is another than it runs."""
    reasons: tuple[str, ...]


class VariantLadder:
    """Decides for one pool.

    Args:
        policy: when to change.
    """

    def __init__(self, policy: LadderPolicy) -> None:
        self._policy = policy
        self._seen_s = float("-inf")
        self._current: str | None = None
        self._overloaded_s: float | None = None
        self._spare_s: float | None = None
        self._back_s: float | None = None
        self._patience = 1

    def decide(
        self, now_s: float, load: PoolLoad | None, *, rungs: Sequence[Rung], current: str | None
    ) -> VariantChoice:
        """What the pool shall run from now on.

        Args:
            now_s: any clock's time that does not jump; one that does restarts the waiting.
            load: None if it is not known, and then nothing changes.
            rungs: what it may run, best quality first.
            current: what it was told to run last; None: nothing yet.

        Raises:
            ValueError: there are no rungs.
        """
        allowed = self._allowed(rungs)
        if not 0 <= now_s - self._seen_s <= _LONGEST_GAP_S or current != self._current:
            self._forget()  # what was seen was of another time, or of another variant
        self._seen_s, self._current = now_s, current
        at = next((n for n, rung in enumerate(allowed) if rung.variant == current), None)
        if at is None:
            return self._begin(rungs, allowed, current)
        if load is None:
            self._forget()
            return VariantChoice(allowed[at].variant, False, ("the load is not known: nothing changes",))
        self._watch(now_s, load, allowed, at)
        return self._step(now_s, load, allowed, at)

    def _allowed(self, rungs: Sequence[Rung]) -> list[Rung]:
        """Those within the floor; the first is always."""
        if not rungs:
            raise ValueError("a pool that chooses between variants must have one")
        return [rungs[0], *(rung for rung in rungs[1:] if rung.quality >= self._policy.floor * rungs[0].quality)]

    def _begin(self, rungs: Sequence[Rung], allowed: Sequence[Rung], current: str | None) -> VariantChoice:
        """Told to run nothing, or what it may not: the fastest that it may and that is not faster; else the best."""
        if current is None:
            return VariantChoice(allowed[0].variant, True, ("it begins with the best variant",))
        speed = next((rung.speed for rung in rungs if rung.variant == current), 0.0)
        chosen = max((rung for rung in allowed if rung.speed <= speed), key=lambda rung: rung.speed, default=allowed[0])
        reason = f"it may run {current} no more: its quality is below {self._policy.floor:g} of the best"
        return VariantChoice(chosen.variant, True, (reason if speed else f"{current} is no variant that it has",))

    def _forget(self) -> None:
        self._overloaded_s = self._spare_s = None

    # -- watching ---------------------------------------------------------------------------------------

    def _watch(self, now_s: float, load: PoolLoad, allowed: Sequence[Rung], at: int) -> None:
        """Note since when it has been overloaded, or could have done with the better variant."""
        overloaded = load.at_most and load.drain_s > self._policy.drain_s
        self._overloaded_s = _since(self._overloaded_s, now_s, overloaded)
        spare = at > 0 and self._would_do(load, allowed[at].speed / allowed[at - 1].speed)
        self._spare_s = _since(self._spare_s, now_s, spare)
        if self._back_s is not None and now_s - self._back_s > self._wait_s:
            self._back_s, self._patience = None, 1  # going back was right

    def _would_do(self, load: PoolLoad, slower: float) -> bool:
        """Whether a variant that is so many times slower would be fast enough, with room to spare."""
        drained = load.drain_s * slower <= self._policy.drain_s * _DRAINED_SHARE
        return drained and load.busy * slower <= _BUSY_AT_MOST

    @property
    def _wait_s(self) -> float:
        return self._policy.back_after_s * self._patience

    # -- stepping ---------------------------------------------------------------------------------------

    def _step(self, now_s: float, load: PoolLoad, allowed: Sequence[Rung], at: int) -> VariantChoice:
        policy, variant = self._policy, allowed[at].variant
        if self._overloaded_s is not None and now_s - self._overloaded_s >= policy.step_after_s:
            if at + 1 < len(allowed):
                return self._faster(load, allowed[at + 1], variant)
            return VariantChoice(variant, False, ("overloaded, and no faster variant is within the floor",))
        if self._spare_s is not None and now_s - self._spare_s >= self._wait_s:
            return self._better(now_s, load, allowed[at - 1], variant)
        return VariantChoice(variant, False, ())

    def _faster(self, load: PoolLoad, to: Rung, before: str) -> VariantChoice:
        if self._back_s is not None:  # it went back lately, and that was wrong: the next time it waits longer
            self._back_s, self._patience = None, min(_MOST_PATIENCE, 2 * self._patience)
        policy = self._policy
        return VariantChoice(
            to.variant,
            True,
            (
                f"{before} needs {load.drain_s:.0f} s for what waits, more than {policy.drain_s:g},"
                f" for {policy.step_after_s:g} s",
                "no replica can be added",
                f"{to.variant} is {to.speed:.2g} times as fast as the best and keeps {to.quality:.3g} of its quality",
            ),
        )

    def _better(self, now_s: float, load: PoolLoad, to: Rung, before: str) -> VariantChoice:
        wait_s, self._back_s = self._wait_s, now_s
        return VariantChoice(
            to.variant,
            True,
            (
                f"{to.variant} would have been fast enough for {wait_s:g} s",
                f"{before} is {load.busy:.0%} busy and needs {load.drain_s:.1f} s for what waits",
            ),
        )


def _since(before_s: float | None, now_s: float, holds: bool) -> float | None:
    """Since when something has held that may hold now."""
    if not holds:
        return None
    return now_s if before_s is None else before_s
