"""Fault plans: drawn from a seed, so that what failed can be done again."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from chaos.history import History, read_histories
from chaos.orders import Order, Traffic
from chaos.plan import FaultKind, Targets, describe, make_plan, spread
from chaos.workload import Wish, answer_to, job_id, pick, wish_of

COUNTS = dict.fromkeys(FaultKind, 3)


def test_the_same_seed_gives_the_same_plan() -> None:
    assert make_plan(1, 30.0, COUNTS) == make_plan(1, 30.0, COUNTS)
    assert make_plan(1, 30.0, COUNTS) != make_plan(2, 30.0, COUNTS)


def test_a_plan_has_every_fault_as_often_as_it_is_asked_for_and_in_order() -> None:
    plan = make_plan(5, 30.0, COUNTS)
    assert Counter(fault.kind for fault in plan) == Counter(COUNTS)
    assert [fault.at_s for fault in plan] == sorted(fault.at_s for fault in plan)
    assert describe(plan).count("\n") == len(plan) - 1


@pytest.mark.parametrize("seed", range(20))
def test_every_fault_is_over_in_time_and_hits_somebody(seed: int) -> None:
    targets = Targets(producers=2, routers=1, replicas=4)
    names = {"redis", "producers", "routers", "replicas", "producer-0", "producer-1", "router-0", "node-0"}
    names |= {f"replica-{n}" for n in range(4)}
    for fault in make_plan(seed, 10.0, COUNTS, targets):
        assert 0 <= fault.at_s <= fault.end_s <= 10.0
        assert fault.target in names


def test_a_longer_plan_has_as_many_more_faults() -> None:
    assert spread({FaultKind.KILL_REDIS: 10, FaultKind.CUT: 1}, 2.5) == {FaultKind.KILL_REDIS: 25, FaultKind.CUT: 2}
    assert spread({FaultKind.CUT: 1}, 0.1) == {FaultKind.CUT: 1}


def test_all_of_a_job_follows_from_its_id() -> None:
    job = job_id("producer-3", 17, Wish.FLAKY)
    assert wish_of(job) is Wish.FLAKY
    assert answer_to(job) != answer_to(job_id("producer-3", 18, Wish.FLAKY))


def test_wishes_are_drawn_by_weight() -> None:
    random_ = random.Random(1)
    drawn = Counter(pick({Wish.SLOW: 0.5, Wish.KILL: 0.1}, random_) for _ in range(10_000))
    assert 4800 < drawn[Wish.SLOW] < 5200
    assert 900 < drawn[Wish.KILL] < 1100


def test_an_order_survives_its_way_to_the_process(tmp_path: Path) -> None:
    order = Order(
        "producer",
        "producer-0",
        "producer-0.1",
        tmp_path,
        "unix:///x",
        traffic=Traffic({Wish.KILL: 0.5}, {3: Wish.EAT}),
    )
    assert Order.from_json(order.to_json()) == order


def test_the_lives_of_a_process_are_read_in_their_order(tmp_path: Path) -> None:
    for life in ("producer-0.10", "producer-0.9", "cluster", "replica-123"):
        history = History(tmp_path, life)
        history.note("phase", name=life)
        history.close()
    lives = [event.process for event in read_histories(tmp_path)]
    assert lives.index("producer-0.9") < lives.index("producer-0.10")
    assert sorted(lives) == ["cluster", "producer-0.10", "producer-0.9", "replica-123"]


def test_a_history_is_read_up_to_where_a_kill_cut_it_short(tmp_path: Path) -> None:
    history = History(tmp_path, "router-0.1")
    history.note("deliver", jobs=[["a", 1]])
    history.close()
    with (tmp_path / "router-0.1.jsonl").open("ab") as file:
        file.write(b'["deliver",1,2,{"jo')
    [event] = read_histories(tmp_path)
    assert (event.process, event.name, event.facts) == ("router-0.1", "deliver", {"jobs": [["a", 1]]})
