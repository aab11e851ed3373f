"""The search: what is tried next, what is remembered, and that there is always a best so far.

The study here is arithmetic: a candidate's figures follow from its recipe. `test_search_trial.py` has a model.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.errors import CompressionError, GateError, StageError
from headrace_workers.compression.recipe import Distill
from headrace_workers.compression.search.candidates import Candidate
from headrace_workers.compression.search.front import read_front
from headrace_workers.compression.search.journal import Question
from headrace_workers.compression.search.served import ServedFigures
from headrace_workers.compression.search.study_search import OutOfTime, explain_miss, search
from headrace_workers.compression.search.target import parse_target
from support.arithmetic_study import EASY, Arithmetic


def test_a_search_finds_what_meets_the_target(tmp_path: Path) -> None:
    study = Arithmetic()
    front = search(study, EASY, tmp_path, budget_s=1000, clock=study.clock)
    assert front.met
    assert front.ended == "complete"
    assert explain_miss(front) is None
    assert read_front(tmp_path) == front
    best = front.entry(front.chosen)
    assert best.fidelity == 1
    assert (tmp_path / best.artifact).is_dir()


def test_candidates_are_tried_a_little_and_the_best_in_full(tmp_path: Path) -> None:
    study = Arithmetic()
    front = search(study, EASY, tmp_path, budget_s=1000, clock=study.clock)
    counts = {fidelity: sum(f == fidelity for _, f in study.tried) for fidelity in (0.1, 0.3, 1.0)}
    assert counts[0.1] == 11
    assert counts[0.3] == 11 // 3
    assert counts[1.0] == 1 + 1  # int8, which needs no training, and the best of the others
    assert len(set(study.tried)) == len(study.tried)
    assert sum(entry.fidelity == 1 for entry in front.entries) == counts[1.0]  # as it was tried last
    left = {f"trials/{file.name}" for file in (tmp_path / "trials").iterdir()}
    assert left == {entry.artifact for entry in front.entries}  # earlier attempts at the same are gone


def test_nothing_is_tried_twice_after_a_kill(tmp_path: Path) -> None:
    """The journal has each trial before the next one begins; the one that was under way begins anew."""

    class Killed(BaseException):
        pass

    first = Arithmetic()

    def kill_at_fifth(_candidate: Candidate) -> None:
        if len(first.tried) == 4:
            raise Killed

    first.on_trial = kill_at_fifth
    with pytest.raises(Killed):
        search(first, EASY, tmp_path, budget_s=1000, clock=first.clock)
    assert read_front(tmp_path).entries  # what was found so far is there already
    second = Arithmetic()
    resumed = search(second, EASY, tmp_path, budget_s=1000, clock=second.clock)
    whole = Arithmetic()
    once = search(whole, EASY, tmp_path / "once", budget_s=1000, clock=whole.clock)
    assert first.tried + second.tried == whole.tried
    assert (resumed.chosen, resumed.entries[-1].name) == (once.chosen, once.entries[-1].name)
    assert [entry.figures for entry in resumed.entries] == [entry.figures for entry in once.entries]


def test_a_torn_line_is_as_if_never_written(tmp_path: Path) -> None:
    study = Arithmetic()
    search(study, EASY, tmp_path, budget_s=1000, clock=study.clock)
    journal = tmp_path / "search.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    torn = next(number for number, line in enumerate(lines) if json.loads(line)["kind"] == "judged")
    journal.write_bytes(b"".join(lines[:torn]) + lines[torn][:20])
    again = Arithmetic()
    assert search(again, EASY, tmp_path, budget_s=1000, clock=again.clock).met
    assert again.tried == []
    assert again.judged == study.judged
    third = Arithmetic()
    search(third, EASY, tmp_path, budget_s=1000, clock=third.clock)
    assert third.judged == []


def test_a_spent_budget_leaves_the_best_so_far(tmp_path: Path) -> None:
    """Half-way through a training, too: the clock is looked at in every step."""
    study = Arithmetic()
    front = search(study, parse_target("speed>=3x, drop<=0.1%"), tmp_path, budget_s=0.5, clock=study.clock)
    assert front.ended == "budget"
    assert "int8" in {entry.name for entry in front.entries}
    assert study.clock.now_s < 0.6 + 0.5  # the judgement of a finalist is not cut short
    study.clock.now_s = 0
    longer = search(study, EASY, tmp_path, budget_s=1000, clock=study.clock)  # and another target
    assert longer.ended == "complete"
    assert longer.met


def test_a_training_is_given_up_when_time_is_over(tmp_path: Path) -> None:
    """What it takes is not known before; it is looked at in every step. The journal knows nothing of it."""
    study = Arithmetic(full_s=1000, service=False)
    front = search(study, EASY, tmp_path, budget_s=200, clock=study.clock)
    assert [entry.name for entry in front.entries] == ["int8"]
    assert front.ended == "budget"
    assert 160 <= study.clock.now_s <= 160 + 1000 * 0.1 / 10 + 4 * 0.5


def test_ctrl_c_leaves_the_best_so_far(tmp_path: Path) -> None:
    study = Arithmetic()

    def interrupt(candidate: Candidate) -> None:
        if candidate.trains:
            raise KeyboardInterrupt

    study.on_trial = interrupt
    front = search(study, EASY, tmp_path, budget_s=1000, clock=study.clock)
    assert front.ended == "interrupted"
    assert front.chosen
    assert read_front(tmp_path) == front


def test_what_cannot_be_met_says_by_how_much(tmp_path: Path) -> None:
    study = Arithmetic(service=False)
    front = search(study, parse_target("speed>=3x, size<=1%"), tmp_path, budget_s=1000, clock=study.clock)
    assert not front.met
    assert len(front.entries) > 5
    error = explain_miss(front)
    assert isinstance(error, GateError)
    assert str(error).startswith("the target speed>=3x, size<=1% is not met; nearest is 'student")
    assert "away from size<=1%" in str(error)
    assert "speed is" not in str(error)


def test_a_candidate_that_cannot_be_made_is_left_out(tmp_path: Path) -> None:
    study = Arithmetic()

    def refuse(candidate: Candidate) -> None:
        if any(isinstance(stage, Distill) for stage in candidate.recipe.stages):
            raise StageError("no such student")

    study.on_trial = refuse
    front = search(study, EASY, tmp_path, budget_s=1000, clock=study.clock)
    assert front.met
    assert {failed.reason for failed in front.failed} == {"no such student"}
    assert all("student" not in entry.name for entry in front.entries)


def test_nothing_can_be_made(tmp_path: Path) -> None:
    study = Arithmetic()

    def refuse(_candidate: Candidate) -> None:
        raise StageError("NaN in layer.0")

    study.on_trial = refuse
    front = search(study, EASY, tmp_path, budget_s=1000, clock=study.clock)
    assert front.chosen == ""
    assert "NaN in layer.0" in str(explain_miss(front))


def test_finalists_are_held_against_the_target_as_served(tmp_path: Path) -> None:
    """Behind the service they are 3.5 times as fast, whatever they were in process."""
    study = Arithmetic()
    front = search(study, EASY, tmp_path, budget_s=1000, clock=study.clock)
    assert study.judged[0] == ""
    assert len(study.judged) == len(set(study.judged)) <= 1 + 3
    chosen = front.entry(front.chosen)
    assert chosen.served is not None
    assert chosen.asked["speed"] == chosen.served.speedup == 3.5 != chosen.figures["speed"]
    assert front.original_served is not None


def test_a_finalist_that_fails_behind_the_service_is_not_a_success(tmp_path: Path) -> None:
    study = Arithmetic()
    front = search(study, parse_target("speed>=3.9x"), tmp_path, budget_s=1000, clock=study.clock)
    assert all(entry.figures["speed"] > 3.9 for entry in front.entries if entry.final)
    assert front.entry(front.chosen).served is None or not front.met


def test_a_search_that_is_complete_judges_nobody_else_when_it_goes_on(tmp_path: Path) -> None:
    """Also where those that it judged turned out so slow behind the service that another would be chosen now."""

    class Disappointing(Arithmetic):
        def judge(self, artifact: Path | None) -> tuple[dict[str, float], ServedFigures | None]:
            held_out, served = super().judge(artifact)
            if served is not None and artifact is not None:
                served = served.model_copy(update={"texts_per_s": 2.0})
            return held_out, served

    target = parse_target("speed>=3.9x")
    search(once := Disappointing(), target, tmp_path, budget_s=1000, clock=once.clock)
    assert len(once.judged) > 1
    search(again := Disappointing(), target, tmp_path, budget_s=1000, clock=again.clock)
    assert (again.tried, again.judged) == ([], [])


def test_another_model_needs_another_folder(tmp_path: Path) -> None:
    search(one := Arithmetic(), EASY, tmp_path, budget_s=1000, clock=one.clock)

    class Other(Arithmetic):
        @property
        def question(self) -> Question:
            return super().question.model_copy(update={"source_sha256": "cc", "seed": 1})

    with pytest.raises(CompressionError, match="differs in source_sha256, seed; choose another -o"):
        search(Other(), EASY, tmp_path, budget_s=1000)


def test_time_that_is_up_is_no_error_of_a_candidate() -> None:
    assert not issubclass(OutOfTime, CompressionError)
