"""The router's other pure parts: slots, credit and the estimate of tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.keys import LANES
from headrace_cluster.scheduling.credit import CreditPolicy, entries_to_read
from headrace_cluster.scheduling.token_estimate import TokenEstimate
from headrace_cluster.slots.ledger import Slot, SlotLedger

# -- slots --------------------------------------------------------------------------------------------------------


def ledger_of(*replicas: str, per_replica: int = 2) -> SlotLedger:
    ledger = SlotLedger(per_replica=per_replica, suspension_s=1.0)
    ledger.update(replicas)
    return ledger


def taken(ledger: SlotLedger, now_s: float = 0.0) -> Slot:
    slot = ledger.best(now_s)
    assert slot is not None
    ledger.take(slot)
    return slot


def test_without_replicas_there_is_no_slot() -> None:
    """Jobs wait in Redis."""
    ledger = ledger_of()
    assert ledger.best(0.0) is None
    assert (ledger.replicas, ledger.free(0.0), ledger.in_flight) == (0, 0, 0)


def test_an_idle_replica_comes_first() -> None:
    """A second batch goes to a replica only when none is idle."""
    ledger = ledger_of("a", "b")

    slots = [taken(ledger) for _ in range(4)]

    assert [slot.idle for slot in slots] == [True, True, False, False]
    assert {slot.replica for slot in slots[:2]} == {slot.replica for slot in slots[2:]} == {"a", "b"}
    assert ledger.best(0.0) is None


def test_a_slot_that_comes_back_is_free() -> None:
    """As soon as the batch is answered."""
    ledger = ledger_of("a", per_replica=1)
    slot = taken(ledger)
    assert ledger.free(0.0) == 0
    ledger.release(slot)

    assert ledger.free(0.0) == 1
    assert ledger.in_flight == 0


def test_looking_takes_nothing() -> None:
    """The batch may turn out not to be ready."""
    ledger = ledger_of("a", per_replica=1)
    assert ledger.best(0.0) == ledger.best(0.0) == Slot("a", idle=True)


def test_a_replica_that_failed_is_left_alone_for_a_while() -> None:
    """And tried again afterwards, unless Serve has removed it."""
    ledger = ledger_of("a", "b")
    ledger.suspend(taken(ledger), 10.0)

    assert ledger.next_resume_s(10.0) == 11.0
    assert {taken(ledger, 10.5).replica for _ in range(2)} == {"b"}
    assert ledger.best(10.5) is None
    assert ledger.best(11.0) == Slot("a", idle=False)
    assert ledger.next_resume_s(11.0) is None


def test_a_replica_that_went_gets_nothing_more() -> None:
    """What is out at it still has to come back."""
    ledger = ledger_of("a", "b")
    slot = taken(ledger)
    ledger.update(["b"])

    assert (ledger.replicas, ledger.in_flight) == (1, 1)
    assert {taken(ledger).replica for _ in range(2)} == {"b"}
    ledger.release(slot)
    assert ledger.in_flight == 2


def test_a_replica_that_came_back_has_what_it_still_holds() -> None:
    """It was gone for a moment from Serve's list, not from the world."""
    ledger = ledger_of("a")
    slot = taken(ledger)
    ledger.update([])
    ledger.update(["a"])

    assert ledger.free(0.0) == 1
    ledger.release(slot)
    assert ledger.free(0.0) == 2


def test_replicas_that_went_are_forgotten() -> None:
    """A pool that restarts its replicas for a year leaves nothing behind."""
    ledger = SlotLedger()
    for n in range(1000):
        ledger.update([f"replica-{n}"])
        slot = taken(ledger)
        ledger.update([])
        ledger.release(slot)

    assert len(ledger._replicas) == 0


def test_releasing_what_is_forgotten_is_harmless() -> None:
    """A late reply of a replica that nobody knows any more."""
    ledger = ledger_of("a")
    ledger.release(Slot("stranger", idle=True))
    ledger.suspend(Slot("stranger", idle=True), 0.0)

    assert ledger.free(0.0) == 2


@given(st.lists(st.tuples(st.sampled_from(["take", "back", "update", "suspend"]), st.integers(0, 7)), max_size=80))
def test_slots_are_never_taken_twice_or_lost(steps: list[tuple[str, int]]) -> None:
    """After whatever happened, what is free and what is out add up."""
    ledger, out, now_s = ledger_of("a", "b", "c"), list[Slot](), 0.0
    for what, number in steps:
        now_s += 0.3
        if what == "take" and (slot := ledger.best(now_s)) is not None:
            assert sum(other.replica == slot.replica for other in out) < ledger.per_replica
            ledger.take(slot)
            out.append(slot)
        elif what == "back" and out:
            ledger.release(out.pop(number % len(out)))
        elif what == "update":
            ledger.update([name for n, name in enumerate("abc") if number >> n & 1])
        elif what == "suspend" and out:
            ledger.suspend(out[number % len(out)], now_s)
        assert ledger.in_flight == len(out)
        assert (ledger.best(now_s) is not None) == (ledger.free(now_s) > 0)
    ledger.update("abc")
    for slot in out:
        ledger.release(slot)
    assert ledger.free(now_s + 1000) == 6


# -- credit -------------------------------------------------------------------------------------------------------

POLICY = CreditPolicy(batch_jobs=64, max_held_bytes=64 << 20, max_read=512)


def readable(**given: float) -> int:
    """What may be read of each lane with one replica of two free slots, unless said otherwise."""
    facts = {"free_slots": 2, "replicas": 1, "waiting": 0, "held_bytes": 0, "mean_bytes": 200.0, **given}
    return entries_to_read(POLICY, **facts)  # type: ignore[arg-type]


def test_an_idle_router_reads_for_its_slots_and_one_batch_more() -> None:
    """For each replica one batch is held ready."""
    assert readable() == 3 * 64


def test_without_replicas_nothing_is_read() -> None:
    """What waits in Redis can be taken by any router."""
    assert readable(replicas=0, free_slots=0) == 0


def test_what_is_held_of_a_priority_is_no_credit_any_more() -> None:
    """Of that one alone: a flood in one does not keep the others from being seen."""
    assert readable(waiting=100) == 92
    assert readable(waiting=192) == 0


def test_little_credit_is_not_worth_a_read() -> None:
    """Half a batch is the least, so that reading stays in bulk under load."""
    assert readable(waiting=161) == 0
    assert readable(waiting=160) == 32


def test_a_read_takes_at_most_so_many() -> None:
    """A pool of many replicas is filled in several reads."""
    assert readable(free_slots=100, replicas=50) == 512


def test_lanes_of_one_priority_share_its_credit() -> None:
    """Where several tenants' lanes had something at the last read, each gives its part."""
    assert readable(active=3) == 64


def test_large_payloads_are_read_in_small_numbers() -> None:
    """Bytes are a credit, too, which all 24 lanes share; full is full."""
    assert readable(mean_bytes=1 << 20) == 2
    assert readable(mean_bytes=1 << 20, held_bytes=63 << 20) == 1
    assert readable(held_bytes=64 << 20) == 0


@given(
    st.integers(0, 200),
    st.integers(0, 100),
    st.tuples(*[st.integers(0, 20_000)] * 3),
    st.integers(0, 65 << 20),
    st.floats(0, 1 << 20),
)
def test_credit_is_never_overdrawn(
    free_slots: int, replicas: int, waiting: tuple[int, int, int], held_bytes: int, mean_bytes: float
) -> None:
    """Though all priorities are read at once: what one holds fits the slots and a batch more a replica."""
    counts = [
        readable(free_slots=free_slots, replicas=replicas, waiting=held, held_bytes=held_bytes, mean_bytes=mean_bytes)
        for held in waiting
    ]
    room = (free_slots + replicas) * POLICY.batch_jobs
    for held, count in zip(waiting, counts, strict=True):
        assert 0 <= count <= POLICY.max_read
        assert not count or held + count <= room
    brought = sum(counts) * LANES // 3 * mean_bytes
    assert max(counts) <= 1 or held_bytes + brought <= POLICY.max_held_bytes + 1


# -- tokens -------------------------------------------------------------------------------------------------------


def test_before_anything_is_known() -> None:
    """0.3 tokens a byte, and never none."""
    assert TokenEstimate().tokens(100) == 30
    assert TokenEstimate().tokens(0) == 1


def test_the_estimate_follows_what_replicas_report() -> None:
    """Whatever the language and the tokenizer."""
    estimate = TokenEstimate()
    for _ in range(300):
        estimate.learn(4000, 2000)
    assert estimate.tokens(100) == pytest.approx(50, abs=1)
    for _ in range(300):
        estimate.learn(4000, 400)
    assert estimate.tokens(100) == pytest.approx(10, abs=1)


def test_long_batches_weigh_as_much_as_they_cost() -> None:
    """The estimate is of the sums, not the mean of ratios."""
    estimate = TokenEstimate()
    for _ in range(2000):
        estimate.learn(10_000, 1000)
        estimate.learn(100, 100)
    assert estimate.tokens_per_byte == pytest.approx(1100 / 10_100, rel=0.05)


@pytest.mark.parametrize(("size", "tokens"), [(0, 5), (5, 0), (-1, 5), (5, -1)])
def test_nonsense_is_not_learned(size: int, tokens: int) -> None:
    """Nothing ran, nothing is learned."""
    estimate = TokenEstimate()
    estimate.learn(size, tokens)
    assert estimate.tokens(100) == 30


@given(st.lists(st.tuples(st.integers(1, 1 << 22), st.integers(1, 1 << 22)), min_size=1, max_size=50))
def test_the_estimate_stays_between_what_was_seen(batches: list[tuple[int, int]]) -> None:
    """No report makes it overshoot."""
    estimate = TokenEstimate()
    for size, tokens in batches:
        estimate.learn(size, tokens)
    ratios = [0.3, *(tokens / size for size, tokens in batches)]
    assert min(ratios) * 0.999 <= estimate.tokens_per_byte <= max(ratios) * 1.001
