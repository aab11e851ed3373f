"""The slots of a shared pool as one model's router sees them: a whole replica, calls that fail, clocks that differ."""

from __future__ import annotations

import pytest

from headrace.messages.host import LoadedModel
from headrace_cluster.slots.ledger import Slot
from support.shared_slots import MIB, Routers


def test_a_slot_is_idle_where_no_batch_of_this_model_is() -> None:
    """Others' batches are no company for it."""
    routers = Routers("a", "b", places=3)
    assert routers.slots["a"].best(0.0) == Slot("pool/0", idle=True)
    assert routers.send("a") == "pool/0"
    assert routers.slots["a"].best(0.0) == Slot("pool/0", idle=False)
    routers.back("a", "pool/0")
    assert routers.send("b", 2.0) == "pool/0"
    assert routers.slots["a"].best(2.0) == Slot("pool/0", idle=True)


# -- a replica for oneself --------------------------------------------------------------------------------------------


def test_a_replica_that_is_shunned_is_taken_where_no_other_is_idle() -> None:
    routers = Routers("a", "b", replicas=2)
    assert routers.slots["a"].reserve(0.0, shunned="pool/0") == Slot("pool/1", idle=True, alone=True)
    routers.slots["a"].unreserve()
    routers.table.update(["pool/0"])
    assert routers.slots["a"].reserve(0.0, shunned="pool/0") == Slot("pool/0", idle=True, alone=True)


def test_what_one_has_reserved_no_other_gets() -> None:
    routers = Routers("a", "b", "c", replicas=2)
    for model, replica in (("a", "pool/0"), ("b", "pool/1")):
        slot = routers.slots[model].reserve(0.0)
        assert slot is not None
        assert slot.replica == replica
    assert routers.slots["c"].reserve(0.0) is None
    assert routers.slots["a"].reserve(0.0) == Slot("pool/0", idle=True, alone=True)


def test_while_all_are_busy_the_least_busy_is_given_nothing_new() -> None:
    routers = Routers("a", "b", replicas=2, places=3)
    for replica, batches in (("pool/0", 2), ("pool/1", 1)):
        routers.slots["b"].take(Slot(replica, idle=True), batches)
    assert routers.slots["a"].reserve(0.0) is None
    assert routers.send("b", 5.0) == "pool/0"
    assert routers.send("b", 5.0) is None  # though there is room at the other


def test_a_reservation_stays_where_it_is_and_moves_only_to_one_that_is_idle_first() -> None:
    routers = Routers("a", "b", replicas=2)
    waiting = routers.slots["a"]
    routers.slots["b"].take(Slot("pool/0", idle=True), 2)
    routers.slots["b"].take(Slot("pool/1", idle=True), 1)
    assert waiting.reserve(0.0) is None  # it waits for pool/1
    routers.slots["b"].release(Slot("pool/0", idle=False), 2)
    assert waiting.reserve(0.0) == Slot("pool/0", idle=True, alone=True)
    assert routers.send("b", 5.0) == "pool/1"  # which is anybody's again
    routers.slots["b"].release(Slot("pool/1", idle=False), 2)
    routers.table.update(["pool/1", "pool/0"])
    assert waiting.reserve(0.0) == Slot("pool/0", idle=True, alone=True)


def test_of_two_that_are_idle_the_reserved_one_stays_reserved() -> None:
    routers = Routers("a", "b", replicas=2)
    assert routers.slots["b"].reserve(0.0) == Slot("pool/0", idle=True, alone=True)
    assert routers.slots["a"].reserve(0.0) == Slot("pool/1", idle=True, alone=True)
    routers.slots["b"].unreserve()
    assert routers.slots["a"].reserve(0.0) == Slot("pool/1", idle=True, alone=True)


def test_who_wants_no_replica_for_himself_any_more_lets_others_in() -> None:
    routers = Routers("a", "b")
    assert routers.slots["a"].reserve(0.0) is not None
    assert routers.send("b") is None
    routers.slots["a"].unreserve()
    assert routers.woken == ["b"]
    assert routers.send("b") == "pool/0"


# -- how many ---------------------------------------------------------------------------------------------------------


def test_places_are_counted_in_whole_ones_however_parts_are_rounded() -> None:
    """Three tenths and seven tenths are not one, to a computer."""
    routers = Routers("a", places=10)
    slot = Slot("pool/0", idle=True)
    for taken in range(1, 11):
        routers.slots["a"].take(slot)
        assert (routers.slots["a"].taken(slot), routers.slots["a"].room(slot)) == (taken, 10 - taken)
    for taken in range(9, -1, -1):
        routers.slots["a"].release(slot)
        assert (routers.slots["a"].taken(slot), routers.slots["a"].room(slot)) == (taken, 10 - taken)
    assert routers.table.replicas["pool/0"].load == 0, "errors of rounding do not add up"


def test_what_comes_back_twice_is_counted_once() -> None:
    """A batch that was given up, and whose call came back after all."""
    routers = Routers("a", "b", places=4)
    slot = Slot("pool/0", idle=True)
    routers.slots["a"].take(slot, 2)
    routers.slots["b"].take(slot, 1)
    routers.slots["a"].release(slot, 2)
    routers.slots["a"].release(slot, 2)
    assert (routers.slots["a"].in_flight, routers.slots["b"].in_flight) == (0, 1)
    assert routers.slots["a"].taken(slot) == 1


def test_what_is_free_is_what_is_not_taken() -> None:
    routers = Routers("a", replicas=2)
    assert routers.slots["a"].free(0.0) == 4
    routers.send("a")
    assert routers.slots["a"].free(0.0) == 3
    routers.slots["a"].suspend(Slot("pool/1", idle=True), 0.0)
    assert routers.slots["a"].free(0.5) == 1


# -- who is left alone ------------------------------------------------------------------------------------------------


def test_a_replica_is_left_alone_for_as_long_as_is_said() -> None:
    routers = Routers("a", replicas=2)
    routers.slots["a"].suspend(Slot("pool/0", idle=True), 0.0, for_s=7.0)
    assert routers.send("a", 6.9) == "pool/1"
    routers.back("a", "pool/1")
    assert routers.slots["a"].free(6.9) == 2
    assert routers.slots["a"].free(7.0) == 4


def test_a_call_that_came_back_ends_that_and_wakes_who_waits() -> None:
    routers = Routers("a", "b")
    slot = Slot("pool/0", idle=True)
    routers.slots["a"].suspend(slot, 0.0, for_s=60.0)
    assert routers.send("b", 1.0) is None
    routers.slots["a"].resume(slot)
    assert routers.woken == ["b"]
    assert routers.send("b", 1.0) == "pool/0"


def test_each_router_is_told_times_of_its_own_clock() -> None:
    """The clocks of two Redis servers differ; the table goes by its own."""
    table_s = [100.0]
    routers = Routers("a", "b", clock=lambda: table_s[0])
    routers.slots["a"].suspend(Slot("pool/0", idle=True), 5000.0)
    assert routers.send("a", 5000.5) is None
    assert routers.send("b", 20.5) is None
    assert routers.slots["a"].next_resume_s(5000.0) == pytest.approx(5001.0)
    assert routers.slots["b"].next_resume_s(20.0) == pytest.approx(21.0)
    table_s[0] = 101.0
    assert routers.send("a", 5001.0) == "pool/0"


def test_who_waits_asks_again_when_his_patience_ends_and_every_second() -> None:
    routers = Routers("a")
    assert routers.slots["a"].next_resume_s(0.0) is None  # it wants nothing
    for _ in range(2):
        routers.send("a")
    routers.table.heard("pool/0", 2 * MIB, [LoadedModel("a", MIB, 2.5, 0.0)])
    assert routers.send("a", 0.0) is None
    assert [routers.slots["a"].next_resume_s(now_s) for now_s in (0.0, 1.0, 2.0, 3.0)] == [1.0, 2.0, 2.5, 4.0]


def test_nothing_is_said_of_when_a_batch_comes_back() -> None:
    """It depends on what others do there, so no batch is taken to be late."""
    routers = Routers("a")
    slots = routers.slots["a"]
    assert not slots.predictable
    slots.learn_slowness("pool/0", 3.0)
    assert slots.slowness("pool/0") == 1.0
    assert (slots.capacity("pool"), slots.replicas, slots.pools) == (2, 1, {"pool": 1})
