"""The checker is shown runs that never happened: a good one, and for each promise one that breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.checker import INVARIANTS, Rules, check, doubled, lost
from chaos.made_up_runs import SECOND_NS, WALL_NS, Run, good_run
from chaos.sabotage import SABOTAGES
from chaos.workload import answer_to


def broken(run: Run, rules: Rules | None = None) -> set[str]:
    """Which invariants the checker says are broken."""
    return {violation.invariant for violation in check(run.record, rules)}


def test_a_good_run_is_found_good() -> None:
    run = good_run()
    assert check(run.record) == []
    assert lost(run.record) == doubled(run.record) == []


def test_a_job_that_nobody_acknowledged_may_be_lost_or_run() -> None:
    run = good_run()
    run.answer("a-4.plain", at_s=9.0)
    run.final.audit = {"submitted": 6, "ok": 5, "error": 1, "live": 0}
    assert broken(run) == set()


# -- each invariant is seen red -------------------------------------------------------------------------


def i1_lost(run: Run) -> None:
    run.submit("b-0.plain")


def i2_doubled(run: Run) -> None:
    run.answer("a-0.plain", at_s=6.0)
    run.final.audit = {"submitted": 6, "ok": 5, "error": 1, "live": 0}


def i2_in_two_inboxes(run: Run) -> None:
    run.answer("a-0.plain", at_s=6.0, inbox="another", seen=False)
    run.final.audit = {"submitted": 6, "ok": 5, "error": 1, "live": 0}


def i2_shown_twice(run: Run) -> None:
    seen = next(event for event in run.events if event.name == "result")
    run.at(9.0, "producer-0.2", "result", **seen.facts)


def i3_ghost(run: Run) -> None:
    run.answer("b-0.plain", at_s=6.0)
    run.final.audit = {"submitted": 6, "ok": 5, "error": 1, "live": 0}


def i4_wrong_bytes(run: Run) -> None:
    run.submit("b-0.plain")
    run.answer("b-0.plain", output="nonsense", at_s=9.0)
    run.final.audit = {"submitted": 6, "ok": 5, "error": 1, "live": 0}


def i4_wrong_status(run: Run) -> None:
    run.submit("b-0.refuse")
    run.answer("b-0.refuse", at_s=9.0)
    run.final.audit = {"submitted": 6, "ok": 5, "error": 1, "live": 0}


def i5_a_sample_that_does_not_add_up(run: Run) -> None:
    run.audit(3.0, submitted=4, ok=3, live=0)


def i5_jobs_that_live_on(run: Run) -> None:
    run.final.audit = {"submitted": 6, "ok": 4, "error": 1, "live": 1}


def i5_more_answers_than_counted(run: Run) -> None:
    run.final.audit = {"submitted": 4, "ok": 3, "error": 1, "live": 0}


def i5_a_tenant_that_is_never_done(run: Run) -> None:
    run.final.tenants = {"default": 3}


def i6_too_many_attempts(run: Run) -> None:
    run.start("a-0.plain", at_s=1.03, attempt=9)


def i6_dead_without_a_letter(run: Run) -> None:
    run.submit("b-0.kill")
    run.answer("b-0.kill", status="dead", at_s=9.0)
    run.final.audit = {"submitted": 6, "ok": 4, "error": 1, "dead": 1, "live": 0}


def i6_a_letter_without_a_death(run: Run) -> None:
    run.final.dead_letters = ["a-0.plain"]


def i6_a_letter_from_nowhere(run: Run) -> None:
    run.final.dead_letters = ["b-0.plain"]


def i6_a_killer_that_goes_on_killing(run: Run) -> None:
    run.submit("b-0.kill")
    for number in range(4):
        run.start("b-0.kill", at_s=2.0 + number, replica=f"replica-0.{number + 2}")
    run.answer("b-0.kill", status="dead", at_s=9.0)
    run.final.dead_letters = ["b-0.kill"]
    run.final.audit = {"submitted": 6, "ok": 4, "error": 1, "dead": 1, "live": 0}


def i7_cancelled_and_answered(run: Run) -> None:
    run.at(1.5, "producer-0.1", "cancel.invoke", jobs=["a-1.plain"])
    run.at(1.6, "producer-0.1", "cancel.reply", answers={"a-1.plain": "cancelled"})


def i7_cancelled_and_started(run: Run) -> None:
    run.submit("b-0.cancel")
    run.at(1.6, "producer-0.1", "cancel.reply", answers={"b-0.cancel": "cancelled"})
    run.start("b-0.cancel", at_s=2.0)
    run.answer("b-0.cancel", status="cancelled", at_s=9.0)
    run.final.audit = {"submitted": 6, "ok": 4, "error": 1, "cancelled": 1, "live": 0}


def i7_requested_and_failed(run: Run) -> None:
    run.at(1.6, "producer-0.1", "cancel.reply", answers={"a-3.refuse": "requested"})


def i7_unknown_and_accepted(run: Run) -> None:
    run.at(1.6, "producer-0.1", "cancel.reply", answers={"a-1.plain": "unknown"})


def i8_late(run: Run) -> None:
    run.start("a-0.plain", at_s=1.6, deadline_ms=(WALL_NS + SECOND_NS) // 1_000_000)


def i9_a_gap(run: Run) -> None:
    words = answer_to("a-0.plain")
    for entry, number in enumerate((0, 1, 3)):
        run.at(2.0, "producer-0.1", "chunk", chunks=[[f"{entry}-0", "a-0.plain", number, 1, words[number]]])


def i9_a_repeat(run: Run) -> None:
    words = answer_to("a-0.plain")
    for entry, number in enumerate((0, 1, 1)):
        run.at(2.0, "producer-0.1", "chunk", chunks=[[f"{entry}-0", "a-0.plain", number, 1, words[number]]])


def i9_another_s_words(run: Run) -> None:
    run.at(2.0, "producer-0.1", "chunk", chunks=[["1-0", "a-0.plain", 0, 1, answer_to("a-1.plain")]])


def i9_less_at_the_end_than_before(run: Run) -> None:
    run.submit("b-0.cancel")
    run.at(2.0, "producer-0.1", "chunk", chunks=[["1-0", "b-0.cancel", 0, 2, answer_to("b-0.cancel")[:2]]])
    run.answer("b-0.cancel", status="cancelled", output=answer_to("b-0.cancel")[:1])
    run.final.audit = {"submitted": 6, "ok": 4, "error": 1, "cancelled": 1, "live": 0}


def i10_an_innocent(run: Run) -> None:
    run.submit("b-0.plain")
    run.answer("b-0.plain", status="dead", at_s=9.0, code="killed_replicas")
    run.final.dead_letters = ["b-0.plain"]
    run.final.audit = {"submitted": 6, "ok": 4, "error": 1, "dead": 1, "live": 0}


def i10_an_innocent_that_was_alone_on_a_replica_that_died_by_itself(run: Run) -> None:
    run.submit("b-0.plain")
    run.start("b-0.plain", replica="replica-1.1")
    run.at(2.0, "cluster", "process.exit", name="replica-1.1", role="replica", status=-9, meant=False)
    run.answer("b-0.plain", status="dead", at_s=9.0, code="poison")
    run.final.dead_letters = ["b-0.plain"]
    run.final.audit = {"submitted": 6, "ok": 4, "error": 1, "dead": 1, "live": 0}


def i11_a_router_whose_jobs_wait(run: Run) -> None:
    run.submit("b-0.plain", at_s=20.0)
    run.deliver("b-0.plain", at_s=20.1, router="router-2.1")
    run.fault("kill_router", "router-2.1", 20.2)
    run.at(20.2, "cluster", "fault", kind="cut", target="routers", start_ns=int(20.2 * SECOND_NS))
    run.deliver("b-0.plain", at_s=30.0)
    run.start("b-0.plain", at_s=30.1)
    run.answer("b-0.plain", at_s=30.2)
    run.final.audit = {"submitted": 6, "ok": 5, "error": 1, "live": 0}


def i11_a_replica_whose_jobs_wait(run: Run) -> None:
    run.submit("b-0.plain", at_s=20.0)
    run.deliver("b-0.plain", at_s=20.1)
    run.start("b-0.plain", at_s=20.2, replica="replica-1.1")
    run.fault("kill_replica", "replica-1.1", 20.21)
    run.start("b-0.plain", at_s=24.0)
    run.answer("b-0.plain", at_s=24.2)
    run.final.audit = {"submitted": 6, "ok": 5, "error": 1, "live": 0}


def i13_a_key(run: Run) -> None:
    run.final.keys_without_ttl = ["hr:{chaos}:j:a-0.plain"]


def i13_a_pending_entry(run: Run) -> None:
    run.final.pending = {"hr:{chaos}:q:1": 1}


def i14_a_lane_without_bound(run: Run) -> None:
    run.audit(3.0, submitted=2_000_000, live=2_000_000, fullest=2_000_000)


def i14_a_submission_that_hangs(run: Run) -> None:
    run.at(10.0, "producer-0.1", "submit.invoke", jobs=["b-0.plain"])
    run.at(99.0, "producer-0.1", "submit.unknown", jobs=["b-0.plain"])


def i16_robbed(run: Run) -> None:
    run.deliver("a-0.plain", at_s=1.03, router="router-1.1")


def i17_a_crash(run: Run) -> None:
    run.at(9.0, "cluster", "process.exit", name="router-0.1", role="router", status=1, meant=False)


BREAKS = [
    i1_lost,
    i2_doubled,
    i2_in_two_inboxes,
    i2_shown_twice,
    i3_ghost,
    i4_wrong_bytes,
    i4_wrong_status,
    i5_a_sample_that_does_not_add_up,
    i5_jobs_that_live_on,
    i5_more_answers_than_counted,
    i5_a_tenant_that_is_never_done,
    i6_too_many_attempts,
    i6_dead_without_a_letter,
    i6_a_letter_without_a_death,
    i6_a_letter_from_nowhere,
    i6_a_killer_that_goes_on_killing,
    i7_cancelled_and_answered,
    i7_cancelled_and_started,
    i7_requested_and_failed,
    i7_unknown_and_accepted,
    i8_late,
    i9_a_gap,
    i9_a_repeat,
    i9_another_s_words,
    i9_less_at_the_end_than_before,
    i10_an_innocent,
    i10_an_innocent_that_was_alone_on_a_replica_that_died_by_itself,
    i11_a_router_whose_jobs_wait,
    i11_a_replica_whose_jobs_wait,
    i13_a_key,
    i13_a_pending_entry,
    i14_a_lane_without_bound,
    i14_a_submission_that_hangs,
    i16_robbed,
    i17_a_crash,
]


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda break_it: str(break_it.__name__))
def test_a_broken_promise_is_seen(break_it: Callable[[Run], None]) -> None:
    run = good_run()
    break_it(run)
    assert broken(run) == {break_it.__name__.partition("_")[0].upper()}


def phases(run: Run, *, after: int) -> None:
    """Ten answers a second before the faults, and `after` a second from then on."""
    for name, when_s in (("baseline", 100.0), ("faults", 104.0), ("calm", 108.0), ("drain", 120.0)):
        run.at(when_s, "cluster", "phase", name=name)
    for second in range(100, 120):
        run.at(second + 0.5, "replica-0.1", "finish", answered=10 if second < 104 else after, late=0)


@pytest.mark.parametrize(("after", "found"), [(9, set()), (3, {"I15"})])
def test_throughput_that_does_not_come_back_is_seen(after: int, found: set[str]) -> None:
    run = good_run()
    phases(run, after=after)
    assert broken(run, Rules(throughput_ratio=0.8)) == found


def test_memory_that_does_not_come_back_is_seen() -> None:
    run = good_run()
    for when_s, used in ((0.5, 1000), (50.0, 9000), (90.0, 1900)):
        run.at(when_s, "cluster", "memory", redis_bytes=used)
    assert broken(run, Rules(memory_ratio=2.0)) == set()
    assert broken(run, Rules(memory_ratio=1.5)) == {"I13"}


@pytest.mark.parametrize(("batches", "found"), [(3, set()), (5, {"I12"})])
def test_a_job_behind_a_flood_is_seen(batches: int, found: set[str]) -> None:
    run = good_run()
    run.submit("b-0.plain", at_s=20.0)
    for number in range(batches):
        run.start(f"a-{number % 3}.plain", at_s=20.1 + number)
    run.start("b-0.plain", at_s=29.0)
    run.answer("b-0.plain", at_s=29.1)
    run.final.audit = {"submitted": 6, "ok": 5, "error": 1, "live": 0}
    assert broken(run, Rules(lone_job="b-0.plain")) == found


def test_a_router_that_was_stopped_for_a_lease_may_be_robbed() -> None:
    run = good_run()
    run.fault("stop_router", "router-0.1", 1.02, 6.0)
    run.deliver("a-0.plain", at_s=4.5, router="router-1.1")
    assert broken(run) == set()


@pytest.mark.parametrize(("link", "found"), [("routers", set[str]()), ("replicas", {"I16"})])
@pytest.mark.parametrize("kind", ["hold", "half_open", "partition"])
def test_routers_that_were_cut_off_may_be_robbed(kind: str, link: str, found: set[str]) -> None:
    """Their heartbeats are lost together, and the first command that arrives again may be one's to reap."""
    run = good_run()
    run.fault(kind, link, 1.02, 5.0)
    run.deliver("a-0.plain", at_s=5.04, router="router-1.1")
    assert broken(run) == found


def test_a_router_that_goes_on_notes_what_it_was_given_while_it_was_stopped() -> None:
    """It was robbed meanwhile, and robs nobody."""
    run = good_run()
    run.submit("b-0.plain", at_s=20.0)
    run.fault("stop_router", "router-2.1", 19.9, 24.0)
    run.deliver("b-0.plain", at_s=23.2, router="router-0.1")
    run.deliver("b-0.plain", at_s=24.1, router="router-2.1")
    run.start("b-0.plain", at_s=24.2)
    run.answer("b-0.plain", at_s=24.3)
    run.final.audit = {"submitted": 6, "ok": 5, "error": 1, "live": 0}
    assert broken(run) == set()


def test_a_job_may_be_blamed_for_what_the_harness_did_to_its_replicas() -> None:
    run = good_run()
    run.submit("b-0.plain")
    for replica, when_s in (("replica-0.1", 20.0), ("replica-1.1", 21.0)):
        run.start("b-0.plain", at_s=when_s, replica=replica)
        run.fault("kill_replica", replica, when_s + 0.001)
    run.answer("b-0.plain", status="dead", at_s=22.0, code="poison")
    run.final.dead_letters = ["b-0.plain"]
    run.final.audit = {"submitted": 6, "ok": 4, "error": 1, "dead": 1, "live": 0}
    assert broken(run) == set()


def test_what_a_scenario_breaks_on_purpose_is_left_out() -> None:
    run = good_run()
    i1_lost(run)
    assert broken(run, Rules(exempt={"I1": "the append-only file is not written at once"})) == set()


def test_every_invariant_is_seen_red_somewhere() -> None:
    red = {break_it.__name__.partition("_")[0].upper() for break_it in BREAKS} | {"I12", "I15"}
    assert red == set(INVARIANTS)


def test_every_promise_and_every_broken_build_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text("utf-8")
    assert set(re.findall(r"^\| (I\d+) \|", page, re.MULTILINE)) == set(INVARIANTS)
    assert set(re.findall(r"^\| `([a-z_]+)` \| ", page, re.MULTILINE)) >= set(SABOTAGES)


def test_evidence_tells_the_story_of_the_job() -> None:
    run = good_run()
    i1_lost(run)
    [violation] = check(run.record)
    assert "b-0.plain was acknowledged" in str(violation)
    assert "+0.001 acknowledged, no terminal entry" in violation.evidence


def test_many_violations_of_one_kind_are_summed_up() -> None:
    run = good_run()
    for number in range(9):
        run.submit(f"b-{number}.plain")
    violations = check(run.record)
    assert len(violations) == 6
    assert violations[-1].message == "and 4 more like these"
