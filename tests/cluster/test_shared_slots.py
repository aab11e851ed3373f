"""The table of a shared pool, one rule at a time: what is known of its replicas, whose turn it is, what is paid for."""

from __future__ import annotations

import pytest

from headrace.messages.host import LoadedModel
from headrace_cluster.slots.ledger import Slot
from support.shared_slots import MIB, Routers


def told(routers: Routers, replica: str, *models: str, load_s: float = 1.0, **ran_s: float) -> None:
    """A replica says what it has loaded, and for how long who ran."""
    rows = [LoadedModel(name, MIB, load_s, ran_s.get(name, 0.0)) for name in models]
    routers.table.heard(replica, 2 * MIB, rows)


# -- what is known of the replicas ------------------------------------------------------------------------------------


def test_a_model_that_is_on_its_way_to_a_replica_counts_as_there() -> None:
    """Another's batch comes back from there meanwhile, and says what is loaded so far."""
    routers = Routers("a", "b", replicas=2)
    told(routers, "pool/0", "a")
    routers.slots["b"].take(Slot("pool/0", idle=True))
    told(routers, "pool/0", "a")
    assert routers.table.replicas.homes_of("b") == {"pool/0"}
    routers.slots["b"].release(Slot("pool/0", idle=True))
    told(routers, "pool/0", "a")
    assert routers.table.replicas.homes_of("b") == set()


def test_a_replica_that_comes_back_is_one_like_others() -> None:
    """Serve's word was late: it had never gone."""
    routers = Routers("a", replicas=1)
    assert routers.send("a") == "pool/0"
    routers.table.update([])
    assert routers.send("a") is None
    routers.table.update(["pool/0"])
    assert routers.woken == ["a"]
    assert routers.send("a") == "pool/0"
    assert routers.slots["a"].pools == {"pool": 1}


def test_what_a_replica_had_is_forgotten_with_it() -> None:
    routers = Routers("a", replicas=2)
    told(routers, "pool/0", "a")
    routers.table.update(["pool/1"])
    assert routers.table.replicas.homes_of("a") == set()
    assert routers.slots["a"].pools == {"pool": 1}


def test_a_replica_that_is_gone_is_not_waited_for() -> None:
    routers = Routers("a", replicas=2)
    slot = Slot("pool/0", idle=True)
    routers.slots["a"].take(slot)
    routers.slots["a"].suspend(slot, 0.0, for_s=60.0)
    routers.table.update(["pool/1"])
    assert routers.slots["a"].next_resume_s(0.0) is None
    assert routers.slots["a"].pools == {"pool": 1}  # though a batch is out at the other


def test_of_many_suspended_the_first_that_may_be_tried_again_counts() -> None:
    routers = Routers("a", replicas=3)
    for replica, for_s in (("pool/0", 9.0), ("pool/1", 4.0), ("pool/2", 1.0)):
        routers.slots["a"].suspend(Slot(replica, idle=True), 0.0, for_s=for_s)
    assert routers.slots["a"].next_resume_s(2.0) == pytest.approx(4.0)


# -- whose turn it is -------------------------------------------------------------------------------------------------


def test_who_ran_for_the_shorter_time_is_next() -> None:
    """Seconds count, as the replica says them, not batches."""
    routers = Routers("long", "short")
    told(routers, "pool/0", "long", "short")
    for model in ("long", "short"):
        assert routers.send(model, 0.0) == "pool/0"
    for model in ("long", "short"):
        assert routers.send(model, 0.0) is None
    told(routers, "pool/0", "long", "short", long=3.0, short=0.5)
    routers.slots["long"].release(Slot("pool/0", idle=False))
    assert routers.woken == ["short"]


def test_of_those_that_are_to_be_loaded_the_one_that_waits_longest_is_next() -> None:
    routers = Routers("a", "b", "c")
    for _ in range(2):
        routers.slots["a"].take(Slot("pool/0", idle=True))
    told(routers, "pool/0", "a")
    assert routers.send("c", 1.0) is None
    assert routers.send("b", 2.0) is None
    routers.slots["a"].release(Slot("pool/0", idle=False))
    assert routers.woken == ["c"]


def test_a_replica_loads_one_model_at_a_time() -> None:
    """A second that waits for it would only keep others from its slot."""
    routers = Routers("a", "b", "c")
    told(routers, "pool/0", "c")
    assert routers.send("a") == "pool/0"
    assert routers.send("b") is None
    assert routers.send("c") == "pool/0"
    told(routers, "pool/0", "c", "a")
    routers.slots["c"].release(Slot("pool/0", idle=False))
    assert routers.woken == ["b"]
    assert routers.send("b") == "pool/0"


def test_of_two_that_are_to_be_loaded_one_is_woken_for_a_replica_that_is_free_again() -> None:
    routers = Routers("a", "b")
    slot = Slot("pool/0", idle=True)
    routers.slots["a"].suspend(slot, 0.0, for_s=60.0)
    for model in ("a", "b"):
        assert routers.send(model) is None
    routers.slots["a"].resume(slot)
    assert routers.woken == ["a"]


def test_a_load_that_came_to_nothing_keeps_no_other_from_the_replica() -> None:
    """Its call failed, and the replica never said to have the model."""
    routers = Routers("a", "b")
    assert routers.send("a") == "pool/0"
    assert routers.send("b") is None
    routers.slots["a"].release(Slot("pool/0", idle=True))
    assert routers.woken == ["b"]
    assert routers.send("b") == "pool/0"


def test_who_runs_alone_waits_no_more_for_a_slot() -> None:
    routers = Routers("a", "b")
    for _ in range(2):
        routers.slots["b"].take(Slot("pool/0", idle=True))
    told(routers, "pool/0", "b")
    assert routers.send("a") is None
    routers.slots["b"].release(Slot("pool/0", idle=True), 2)
    slot = routers.slots["a"].reserve(0.0)
    assert slot is not None
    routers.slots["a"].take(slot)
    assert routers.slots["a"].next_resume_s(0.0) is None


def test_whoever_waits_is_woken_once_for_each_turn() -> None:
    routers = Routers("a", "b", "c")
    told(routers, "pool/0", "a", "b", "c")
    for model in ("a", "a"):
        routers.send(model)
    for model in ("b", "c"):
        assert routers.send(model) is None
    routers.slots["a"].release(Slot("pool/0", idle=False))
    routers.slots["c"].unwanted()
    assert routers.woken == ["b"]


def test_who_was_given_a_slot_waits_no_more() -> None:
    routers = Routers("a", "b")
    told(routers, "pool/0", "a", "b")
    for _ in range(2):
        routers.slots["b"].take(Slot("pool/0", idle=True))
    assert routers.send("a") is None
    routers.slots["b"].release(Slot("pool/0", idle=False))
    assert routers.send("a") == "pool/0"
    routers.woken.clear()
    routers.slots["b"].release(Slot("pool/0", idle=False))
    assert routers.woken == []
    assert routers.slots["a"].next_resume_s(0.0) is None


def test_who_has_work_out_takes_part_in_the_shares_though_it_wants_no_more() -> None:
    routers = Routers("a", "b", replicas=2)
    for model in ("a", "b"):
        routers.send(model)
        routers.slots[model].unwanted()
    assert routers.table.active == 2
    assert routers.slots["a"].ahead == 1
    routers.slots["b"].release(Slot("pool/1", idle=False))
    routers.slots["b"].unwanted()
    assert routers.table.active == 1
    assert routers.slots["a"].ahead == 2


# -- where it goes ----------------------------------------------------------------------------------------------------


def test_a_model_goes_where_there_is_room_for_it_before_where_another_must_go() -> None:
    routers = Routers("a", "b", replicas=2)
    told(routers, "pool/0", "x", "y")
    told(routers, "pool/1", "z")
    assert routers.send("a") == "pool/1"


def test_a_batch_goes_where_it_fits_now_before_where_loading_it_would_cost_less() -> None:
    """Half of the first replica, which has room in its memory, is not free; the second is."""
    routers = Routers("texts", replicas=2)
    words = routers.table.of_model("words", model="words", places=10, wake=lambda: None)
    told(routers, "pool/0", "words")
    told(routers, "pool/1", "x", "y")
    words.take(Slot("pool/0", idle=True), 6)
    assert routers.send("texts") == "pool/1"


def test_a_model_does_not_wait_for_a_replica_that_fails() -> None:
    routers = Routers("a", replicas=2)
    told(routers, "pool/0", "a")
    routers.slots["a"].suspend(Slot("pool/0", idle=True), 0.0, for_s=60.0)
    assert routers.send("a", 0.1) == "pool/1"


def test_a_model_waits_for_where_it_is_no_longer_than_a_load_takes() -> None:
    """And, having waited that long, goes elsewhere without having been woken."""
    routers = Routers("a", "b", replicas=2)
    told(routers, "pool/0", "a", load_s=4.0)
    for _ in range(2):
        assert routers.send("a") == "pool/0"
    assert [routers.send("a", now_s) for now_s in (0.0, 3.9, 4.0)] == [None, None, "pool/1"]


# -- loads are paid for -----------------------------------------------------------------------------------------------


def test_after_a_load_those_that_are_there_have_their_time_first() -> None:
    """Twice the seconds of the load: 0.2 s, of half a replica, is two batches of 0.2 s."""
    routers = Routers("there", "cold", "colder")
    told(routers, "pool/0", "there", load_s=0.1)
    for name in ("there", "cold", "colder"):
        model = routers.slots[name].model
        model.load_s, model.batch_s = 0.1, 0.2
    there = Slot("pool/0", idle=False)
    for _ in range(2):
        routers.slots["there"].take(there)
    for name in ("there", "cold", "colder"):
        assert routers.send(name, 1.0) is None
    routers.slots["there"].release(there)
    assert routers.send("cold", 1.0) == "pool/0"
    sent = []
    for _ in range(3):
        routers.slots["there"].release(there)
        told(routers, "pool/0", "there", "cold", load_s=0.1)
        sent.append([name for name in ("colder", "there") if routers.send(name, 1.0)])
        for name in ("colder", "there"):
            routers.slots[name].best(1.0)
    assert [names[:1] for names in sent] == [["there"], ["there"], ["colder"]]
