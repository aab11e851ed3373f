"""The search: what is tried next, what is remembered, and that there is always a best so far.

The study here is arithmetic: a candidate's figures follow from its recipe. `test_search_for_real.py` has a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.errors import CompressionError, GateError, StageError
from headrace_workers.compression.candidates import Candidate, plain, propose, shapes_needed
from headrace_workers.compression.latency_table import LatencyTable, LinearUse, Node, Timing
from headrace_workers.compression.pareto import Point
from headrace_workers.compression.recipe import Distill, PruneStructured, Quantize
from headrace_workers.compression.search import OutOfTime, Progress, Tryout, explain_miss, search
from headrace_workers.compression.search_bracket import Bracket, Outcome, Trial, best_first
from headrace_workers.compression.search_front import choose, decide, read_front
from headrace_workers.compression.search_journal import Question
from headrace_workers.compression.search_profile import LinearShape, Profile, Role
from headrace_workers.compression.served import LoadFigures, ServedFigures
from headrace_workers.compression.target import Target, parse_target

NODE = Node(
    processor="a processor",
    architecture="x86_64",
    flags=[],
    isa="none",
    cores=2,
    threads=1,
    torch="2.13.0",
    headrace="0.1.0",
)
EASY = parse_target("speed>=3x, drop<=2%")


def block(number: int) -> list[LinearShape]:
    name = f"layer.{number}"
    return [
        LinearShape(f"{name}.query", 64, 64, Role.QUERY, number),
        LinearShape(f"{name}.key", 64, 64, Role.KEY_VALUE, number),
        LinearShape(f"{name}.value", 64, 64, Role.KEY_VALUE, number),
        LinearShape(f"{name}.out", 64, 64, Role.ATTENTION_OUT, number),
        LinearShape(f"{name}.up", 64, 256, Role.FFN_IN, number),
        LinearShape(f"{name}.down", 256, 64, Role.FFN_OUT, number),
    ]


PROFILE = Profile(
    linears=(*block(0), *block(1), *block(2), *block(3), LinearShape("classifier", 64, 3, exact=True)),
    hidden=64,
    heads=4,
    groups=4,
    ffn=256,
    tables=((2000, 64),),
    others=4000,
)
EVERY_LAYER = [linear.name for linear in PROFILE.linears]


def ideal(uses: list[LinearUse], node: Node = NODE, *, int8: float = 4.0) -> LatencyTable:
    """A node on which time is the number of products, and int8 so many times as fast."""
    timings = [
        Timing(
            inputs=use.inputs,
            outputs=use.outputs,
            rows=512,
            fp32_ms=use.inputs * use.outputs / 1000,
            int8_ms=use.inputs * use.outputs / 1000 / int8,
            int8_kernel="native",
        )
        for use in uses
    ]
    return LatencyTable(node=node, timings=timings)


TABLE = ideal(shapes_needed(PROFILE))


class Clock:
    """Tells the time that it is told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Arithmetic:
    """A study in which quality falls with size, and training takes a second at full fidelity."""

    clock: Clock = field(default_factory=Clock)
    tried: list[tuple[str, float]] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)
    service: bool = True
    full_s: float = 1.0
    """What a training in full takes."""
    overhead: float = 0.0
    """Of the original's time, what no candidate gets rid of."""
    on_trial: Callable[[Candidate], None] = lambda _candidate: None
    model: str = "arithmetic"
    table: LatencyTable = TABLE

    @property
    def question(self) -> Question:
        return Question(source_sha256="aa", data_sha256="bb", seed=0, node=NODE.fingerprint)

    @property
    def original(self) -> list[LinearUse]:
        return PROFILE.uses()

    def first(self, progress: Progress) -> Candidate:
        progress("timing", 1.0)
        return plain(PROFILE, self.table)

    def propose(self, target: Target, rest_ms: float, progress: Progress) -> list[Candidate]:
        progress("ranking", 1.0)
        return propose(PROFILE, self.table, target, ranking=EVERY_LAYER, rest_ms=rest_ms)

    def try_out(self, candidate: Candidate, fidelity: float, artifact: Path, progress: Progress) -> Tryout:
        self.on_trial(candidate)
        for _ in range(10):
            self.clock.now_s += self.full_s * (fidelity if candidate.trains else 0.1) / 10
            progress("training", 0.5)
        self.tried.append((candidate.name, fidelity))
        artifact.mkdir(parents=True)
        drop = 0.05 * (1 - candidate.size_ratio) ** 3 * (2 - fidelity)
        speed = 1 / (self.overhead + (1 - self.overhead) / candidate.speedup)
        figures = {"speed": speed, "size": candidate.size_ratio, "drop": drop}
        return Tryout(figures, candidate.uses)

    def judge(self, artifact: Path | None) -> tuple[dict[str, float], ServedFigures | None]:
        self.clock.now_s += 0.5
        self.judged.append("" if artifact is None else artifact.name)
        if not self.service:
            return ({} if artifact is None else {"drop": 0.001}), None
        load = LoadFigures(texts_per_s=3.0, share=0.3, p50_ms=5.0, p99_ms=9.0)
        rate = 10.0 if artifact is None else 35.0
        return {}, ServedFigures(texts_per_s=rate, replicas=2, loads=[load])


# -- candidates -------------------------------------------------------------------------------------------------


def test_plain_int8_comes_first() -> None:
    """It needs no training, so that there is an answer at once."""
    first, *others = propose(PROFILE, TABLE, EASY, ranking=EVERY_LAYER)
    assert first.recipe.stages == [Quantize()]
    assert not first.trains
    assert first.speedup == pytest.approx(4.0, rel=0.01)
    assert len({candidate.key for candidate in [first, *others]}) == len(others) + 1 <= 12


def test_prices_follow_from_widths() -> None:
    """Half of the neurons: half of the time and the bytes of that part."""
    found = {one.name: one for one in propose(PROFILE, TABLE, EASY, most=99)}
    int8, halved = found["int8"], found["ffn −50%, int8"]
    ffn = {(64, 128), (128, 64)}
    assert sum(use.layers for use in halved.uses if use[:2] in ffn) == 8
    assert halved.speedup == pytest.approx(4 * (4 * 64 * 64 + 2 * 64 * 256) / (4 * 64 * 64 + 2 * 64 * 128), rel=0.02)
    assert halved.size_ratio < int8.size_ratio


def test_sensitive_layers_are_left_alone() -> None:
    found = {one.name: one for one in propose(PROFILE, TABLE, parse_target("drop<=1%"), ranking=EVERY_LAYER, most=99)}
    stage = found["int8, 2 exact"].recipe.stages[0]
    assert isinstance(stage, Quantize)
    assert stage.overrides == {"layer.0.query": None, "layer.0.key": None}
    assert found["int8, 2 exact"].speedup < found["int8"].speedup


def test_what_cannot_be_fast_enough_is_not_tried() -> None:
    found = propose(PROFILE, TABLE, parse_target("speed>=30x"))
    assert all(one.speedup >= 15 for one in found[1:])
    assert any(isinstance(one.recipe.stages[0], Distill) for one in found)


def test_just_enough_is_cut_for_a_speed() -> None:
    """The table says how many neurons must go: no more do."""
    found = propose(PROFILE, TABLE, parse_target("speed>=5x"), most=99)
    cuts = [
        (one.speedup, stage.ratio)
        for one in found
        if isinstance(stage := one.recipe.stages[0], PruneStructured) and stage.target == "ffn"
    ]
    fewest = min(ratio for speed, ratio in cuts if speed >= 5 and ratio is not None)
    assert fewest not in (0.25, 0.5, 0.75)
    assert fewest % (1 / 8) == 0


def test_without_data_nothing_is_trained() -> None:
    assert not any(one.trains for one in propose(PROFILE, TABLE, EASY, trainable=False))


def test_a_model_without_blocks_is_only_quantized_and_cut_where_it_can_be() -> None:
    plain = Profile(linears=(LinearShape("a", 64, 256), LinearShape("b", 256, 10)))
    found = propose(plain, ideal(shapes_needed(plain)), parse_target("size<=30%"))
    assert {one.name for one in found} == {"int8", "int4"}


# -- what comes next --------------------------------------------------------------------------------------------


def tried(name: str, quality: float, seconds: float = 1.0, *, missing: float = 0.0, trained: bool = True) -> Outcome:
    return Outcome(Point(name, quality, 2.0, 0.5), missing, seconds, trained)


def test_one_of_a_few_is_carried_to_the_end() -> None:
    """Two are not three, and yet the better one moves up when both were tried; a failed one never does."""
    bracket = Bracket(["a", "b", "broken"])
    bracket.record(Trial("a", 0), tried("a", 0.8))
    assert bracket.next(9) == Trial("b", 0)
    bracket.record(Trial("b", 0), tried("b", 0.9))
    bracket.record(Trial("broken", 0), Outcome(None))
    assert bracket.next(9) == Trial("b", 1)
    bracket.record(Trial("b", 1), tried("b", 0.9))
    assert bracket.next(9) == Trial("b", 2)
    bracket.record(Trial("b", 2), tried("b", 0.9))
    assert bracket.next(9) is None
    assert bracket.complete


def test_the_best_of_three_need_not_wait_for_the_rest() -> None:
    bracket = Bracket(["a", "b", "c", "d"])
    for name, quality in (("a", 0.7), ("b", 0.9), ("c", 0.8)):
        bracket.record(Trial(name, 0), tried(name, quality))
    assert bracket.next(9) == Trial("b", 1)


def test_what_would_not_end_in_time_is_not_begun() -> None:
    """Training takes three times as long with three times the steps; what does not train does not."""
    bracket = Bracket(["a"], {Trial("a", 0): tried("a", 0.9, seconds=10)})
    assert bracket.expected_s(Trial("a", 1)) == pytest.approx(30)
    assert bracket.next(29) is None
    assert not bracket.complete
    assert bracket.next(31) == Trial("a", 1)
    untrained = Bracket(["a"], {Trial("a", 0): tried("a", 0.9, seconds=10, trained=False)})
    assert untrained.next(11) == Trial("a", 1)


def test_the_target_counts_before_the_front() -> None:
    near, far = tried("near", 0.5, missing=0.1), tried("far", 0.9, missing=0.2)
    assert best_first([far, near]) == ["near", "far"]
    assert best_first([tried("a", 0.5), tried("b", 0.9)]) == ["b", "a"]


# -- the search -------------------------------------------------------------------------------------------------


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


# -- deciding again ---------------------------------------------------------------------------------------------


def test_another_node_decides_from_the_same_front(tmp_path: Path) -> None:
    """Where int8 brings nothing, only what was cut is fast."""
    study = Arithmetic(service=False)
    target = parse_target("speed>=2x")
    front = search(study, target, tmp_path, budget_s=1000, clock=study.clock)
    uses = [use for entry in front.entries for use in entry.uses]
    elsewhere = NODE.model_copy(update={"processor": "an old one"})
    here = decide(front, target, ideal([*uses, *front.original], NODE))
    there = decide(front, target, ideal([*uses, *front.original], elsewhere, int8=1.0))
    int8 = next(entry.key for entry in front.entries if entry.name == "int8")
    assert here.speeds[int8] == pytest.approx(front.entry(int8).figures["speed"], rel=1e-3)
    assert there.speeds[int8] == pytest.approx(1.0, rel=0.01)
    assert there.chosen != int8
    assert there.node.processor == "an old one"
    assert not there.shortfalls


def test_what_is_not_in_the_table_differs_between_nodes_as_fp32_does(tmp_path: Path) -> None:
    """Twice as slow in everything is as fast, relatively: also where half of the time is attention."""
    study = Arithmetic(service=False, overhead=0.5)
    target = parse_target("speed>=1x")
    front = search(study, target, tmp_path, budget_s=1000, clock=study.clock)
    assert front.rest_ms > 0
    slow = LatencyTable(
        node=NODE,
        timings=[
            one.model_copy(update={"fp32_ms": 2 * one.fp32_ms, "int8_ms": 2 * one.int8_ms})
            for one in ideal([use for entry in front.entries for use in entry.uses] + front.original).timings
        ],
    )
    speeds = decide(front, target, slow).speeds
    assert speeds == {entry.key: pytest.approx(entry.asked["speed"], rel=1e-3) for entry in front.entries}


def test_what_was_tried_in_full_is_chosen_before_a_glimpse(tmp_path: Path) -> None:
    """And a finalist before what was never held out or served."""
    study = Arithmetic(service=False)
    front = search(study, EASY, tmp_path, budget_s=1000, clock=study.clock)
    int8 = next(entry for entry in front.entries if entry.name == "int8").model_copy(update={"held_out": {}})
    better = int8.figures | {"speed": 99.0, "drop": 0.0, "size": 0.01}
    glimpse = int8.model_copy(update={"key": "glimpse", "fidelity": 0.1, "figures": better})
    final = int8.model_copy(update={"key": "final", "held_out": {"drop": 0.015}})
    other = int8.model_copy(update={"key": "other", "figures": better})
    assert choose([glimpse, int8], EASY) == int8
    assert choose([other, final], EASY) == final
    assert choose([other, int8], EASY) == other


def test_a_folder_without_a_front(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="holds no search"):
        read_front(tmp_path)
    (tmp_path / "front.json").write_text('{"schema_version": 2}')
    with pytest.raises(CompressionError, match="is not a front: "):
        read_front(tmp_path)


def test_the_nearest_is_chosen_where_none_meets(tmp_path: Path) -> None:
    study = Arithmetic(service=False)
    front = search(study, EASY, tmp_path, budget_s=1000, clock=study.clock)
    fastest = max(front.entries, key=lambda entry: entry.asked["speed"])
    assert choose(front.entries, parse_target("speed>=10000x")) == fastest
