"""Runs that never happened, written by hand for the checker: events with their times, and what Redis held then."""

from __future__ import annotations

from typing import Any

from chaos.history import Event
from chaos.record import FinalState, Record, Terminal
from chaos.workload import answer_to

__all__ = ["SECOND_NS", "WALL_NS", "Run", "good_run"]

SECOND_NS = 1_000_000_000
WALL_NS = 1_700_000_000 * SECOND_NS


class Run:
    """A run by hand: events with their times in seconds."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.final = FinalState()
        self._answers = 0
        self.at(0.0, "cluster", "process.start", name="router-0.1", role="router", pid=10)
        self.at(0.0, "cluster", "process.start", name="router-1.1", role="router", pid=11)
        self.at(0.0, "cluster", "process.start", name="replica-0.1", role="replica", pid=12)
        self.at(0.0, "cluster", "process.start", name="replica-1.1", role="replica", pid=13)

    def at(self, when_s: float, process: str, event: str, **facts: Any) -> None:
        """Something happened."""
        mono_ns = int(when_s * SECOND_NS)
        self.events.append(Event(process, event, mono_ns, WALL_NS + mono_ns, facts))

    def submit(self, job: str, *, at_s: float = 1.0, acknowledged: bool = True) -> None:
        self.at(at_s, "producer-0.1", "submit.invoke", jobs=[job])
        self.at(at_s + 0.001, "producer-0.1", "submit.ok" if acknowledged else "submit.unknown", jobs=[job])

    def deliver(self, job: str, *, at_s: float = 1.01, router: str = "router-0.1", attempt: int = 1) -> None:
        self.at(at_s, router, "deliver", jobs=[[job, attempt]])

    def start(
        self, *jobs: str, at_s: float = 1.02, replica: str = "replica-0.1", attempt: int = 1, deadline_ms: int = 0
    ) -> None:
        self.at(at_s, replica, "batch", jobs=[[job, attempt, deadline_ms] for job in jobs])
        self.at(at_s, replica, "start", jobs=list(jobs))

    def answer(
        self,
        job: str,
        *,
        at_s: float = 1.05,
        status: str = "ok",
        output: str | None = None,
        inbox: str = "box",
        seen: bool = True,
        code: str = "",
    ) -> None:
        self._answers += 1
        wall_ms = (WALL_NS + int(at_s * SECOND_NS)) // 1_000_000
        entry = f"{wall_ms}-{self._answers}"
        output = answer_to(job) if output is None and status == "ok" else output
        self.final.terminals.append((job, Terminal(inbox, entry, status, 1, output, code)))
        self.at(at_s, "replica-0.1", "finish", answered=1, late=0)
        if seen:
            entries = [[job, status, 1, output, entry, code]]
            self.at(at_s + 0.01, "producer-0.1", "result", inbox=inbox, entries=entries)

    def whole(self, job: str, *, at_s: float = 1.0) -> None:
        """A job's good life."""
        self.submit(job, at_s=at_s)
        self.deliver(job, at_s=at_s + 0.01)
        self.start(job, at_s=at_s + 0.02)
        self.answer(job, at_s=at_s + 0.05)

    def fault(self, kind: str, target: str, start_s: float, end_s: float | None = None) -> None:
        end_s = start_s if end_s is None else end_s
        self.at(end_s, "cluster", "fault", kind=kind, target=target, start_ns=int(start_s * SECOND_NS))

    def audit(self, when_s: float = 2.0, **numbers: int) -> None:
        self.at(when_s, "cluster", "audit", **{"live": 0} | numbers)

    @property
    def record(self) -> Record:
        return Record.of(sorted(self.events, key=lambda event: event.mono_ns), self.final)


def good_run() -> Run:
    """Nothing is wrong with it, though a router was killed with a job in its hands."""
    run = Run()
    for number in range(3):
        run.whole(f"a-{number}.plain", at_s=1 + number)
    run.submit("a-3.refuse")
    run.answer("a-3.refuse", status="error", code="invalid_input")
    run.submit("a-4.plain", acknowledged=False)
    run.submit("a-5.plain", at_s=5.0)
    run.deliver("a-5.plain", at_s=5.1, router="router-1.1")
    run.fault("kill_router", "router-1.1", 5.2)
    run.at(5.2, "cluster", "process.exit", name="router-1.1", role="router", status=-9, meant=True)
    run.deliver("a-5.plain", at_s=8.5)
    run.start("a-5.plain", at_s=8.6)
    run.answer("a-5.plain", at_s=8.7)
    run.audit(submitted=3, ok=1, live=2)
    run.final.audit = {"submitted": 5, "ok": 4, "error": 1, "live": 0}
    return run
