"""The ledger finds by its heaps what a look at every replica would find, whatever has happened."""

from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from headrace_cluster.slots.ledger import Slot, SlotLedger, pool_of

NAMES = ["a/0", "a/1", "a/2", "b/0", "b/1", "c/0"]
CAPACITY = {"a": 2, "b": 1, "c": 4}


class Naive:
    """The same by looking at all of them."""

    def __init__(self) -> None:
        self.present: set[str] = set()
        self.taken = dict.fromkeys(NAMES, 0)
        self.suspended_until_s = dict.fromkeys(NAMES, -math.inf)

    def usable(self, now_s: float) -> list[tuple[int, str]]:
        return sorted(
            (self.taken[name], name)
            for name in self.present
            if self.suspended_until_s[name] <= now_s and self.taken[name] < CAPACITY[pool_of(name)]
        )

    def free(self, now_s: float) -> int:
        return sum(CAPACITY[pool_of(name)] - taken for taken, name in self.usable(now_s))


class Both:
    """The ledger and its naive twin, which are told the same."""

    def __init__(self) -> None:
        self.ledger = SlotLedger(per_pool=CAPACITY)
        self.naive = Naive()
        self.out: list[Slot] = []

    def take(self, _: int, now_s: float) -> None:
        if (slot := self.ledger.best(now_s)) is not None:
            self.ledger.take(slot)
            self.naive.taken[slot.replica] += 1
            self.out.append(slot)

    def back(self, number: int, _: float) -> None:
        if self.out:
            slot = self.out.pop(number % len(self.out))
            self.ledger.release(slot)
            self.naive.taken[slot.replica] -= 1

    def update(self, number: int, _: float) -> None:
        self.naive.present = {name for n, name in enumerate(NAMES) if number >> n & 1}
        self.ledger.update(self.naive.present)
        for gone in set(NAMES) - self.naive.present:
            if not self.naive.taken[gone]:  # it is forgotten, and comes back as new
                self.naive.suspended_until_s[gone] = -math.inf

    def suspend(self, number: int, now_s: float) -> None:
        name = NAMES[number % len(NAMES)]
        if name in self.naive.present:
            for_s = math.inf if number % 5 == 0 else number / 20
            self.ledger.suspend(Slot(name, idle=False), now_s, for_s=for_s)
            self.naive.suspended_until_s[name] = now_s + for_s

    def resume(self, number: int, _: float) -> None:
        name = NAMES[number % len(NAMES)]
        self.ledger.resume(Slot(name, idle=False))
        self.naive.suspended_until_s[name] = -math.inf

    def reserve(self, _: int, now_s: float) -> None:
        self.ledger.reserve(now_s)

    def unreserve(self, _: int, __: float) -> None:
        self.ledger.unreserve()

    def agree(self, now_s: float) -> None:
        ledger, naive = self.ledger, self.naive
        usable = [(taken, name) for taken, name in naive.usable(now_s) if name != ledger._reserved]
        best = ledger.best(now_s)
        assert (best and (naive.taken[best.replica], best.replica)) == (usable[0] if usable else None)
        assert ledger.free(now_s) == naive.free(now_s)
        assert (ledger.in_flight, ledger.replicas) == (len(self.out), len(naive.present))
        assert {pool: slot.replica for pool, slot in ledger.best_of_pools(now_s).items()} == {
            pool: min(one for one in usable if pool_of(one[1]) == pool)[1] for pool in {pool_of(n) for _, n in usable}
        }


moves = st.tuples(
    st.sampled_from(
        [Both.take, Both.take, Both.back, Both.update, Both.suspend, Both.resume, Both.reserve, Both.unreserve]
    ),
    st.integers(0, 63),
)


@given(st.lists(moves, max_size=60))
def test_it_finds_what_a_look_at_all_would_find(steps: list[tuple[Callable[[Both, int, float], None], int]]) -> None:
    both = Both()
    both.update(63, 0.0)
    for n, (move, number) in enumerate(steps):
        now_s = 0.4 * n
        move(both, number, now_s)
        both.agree(now_s)


def test_its_memory_does_not_grow_with_what_passes_through() -> None:
    """Entries that are out of date are swept."""
    ledger = SlotLedger()
    ledger.update(f"r{n}" for n in range(64))
    for n in range(20_000):
        slot = ledger.best(float(n))
        assert slot is not None
        ledger.take(slot)
        ledger.learn_slowness(slot.replica, 1 + n % 3)
        ledger.suspend(slot, float(n), for_s=0.5)
        ledger.release(slot)

    assert sum(map(len, ledger._heaps.values())) < 300
    assert len(ledger._suspended) < 300


def test_the_quicker_of_two_that_are_idle_is_first() -> None:
    ledger = SlotLedger()
    ledger.update(["a", "b"])
    for _ in range(10):
        ledger.learn_slowness("a", 2.0)
    best = ledger.best(0.0)
    assert best is not None
    assert best.replica == "b"
    ledger.take(best)
    other = ledger.best(0.0)
    assert other is not None
    assert other.replica == "a", "though slow, it is idle"
