"""A study for searches that is arithmetic alone: a candidate's figures follow from its recipe, and time is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from headrace_workers.compression.search.candidates import Candidate, plain, propose, shapes_needed
from headrace_workers.compression.search.journal import Question
from headrace_workers.compression.search.latency_table import LatencyTable, LinearUse, Node, Timing
from headrace_workers.compression.search.profile import LinearShape, Profile, Role
from headrace_workers.compression.search.served import LoadFigures, ServedFigures
from headrace_workers.compression.search.study_search import Progress, Tryout
from headrace_workers.compression.search.target import Target, parse_target

__all__ = ["EASY", "EVERY_LAYER", "NODE", "PROFILE", "TABLE", "Arithmetic", "Clock", "ideal"]

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
