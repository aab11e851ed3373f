"""All that is known of a run, by job and by process: what the checker reads. No I/O here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from chaos.history import Event

__all__ = [
    "Delivery",
    "FinalState",
    "JobTrace",
    "Life",
    "Record",
    "Sending",
    "Start",
    "Terminal",
    "Window",
]


class Terminal(NamedTuple):
    """One terminal entry of an inbox, wherever it was seen."""

    inbox: str
    entry_id: str
    status: str
    attempt: int
    output: Any
    code: str = ""

    @property
    def wall_ns(self) -> int:
        """When the server wrote it, to the millisecond."""
        return int(self.entry_id.partition("-")[0]) * 1_000_000


class Sending(NamedTuple):
    """The job came to a replica, in a batch."""

    mono_ns: int
    replica: str
    batch_jobs: int


class Delivery(NamedTuple):
    """A router got the job."""

    mono_ns: int
    router: str
    attempt: int


class Start(NamedTuple):
    """An engine began to run the job."""

    mono_ns: int
    wall_ns: int
    replica: str
    batch_jobs: int


@dataclass(slots=True)
class JobTrace:
    """What became of one job."""

    invoked_ns: int = 0
    acknowledged_ns: int = 0
    full: int = 0
    unknown: bool = False
    deadline_ms: int = 0
    cancel: str = ""
    """What the producer was told when it cancelled."""
    cancelled_ns: int = 0
    max_attempt: int = 0
    terminals: list[Terminal] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    sent: list[Sending] = field(default_factory=list)


class Window(NamedTuple):
    """A fault and how long it lasted, in monotonic ns."""

    kind: str
    target: str
    """The life of the process that was hit, or what else."""
    start_ns: int
    end_ns: int


@dataclass(slots=True)
class Life:
    """One life of a process."""

    name: str
    role: str
    start_ns: int
    end_ns: int = 1 << 62
    status: int = 0
    """How it ended; negative for a signal's."""
    meant: bool = True
    """Whether the harness meant it to end."""


@dataclass(slots=True)
class FinalState:
    """What stood in Redis when all was over."""

    terminals: list[tuple[str, Terminal]] = field(default_factory=list)
    """Of each job that has an entry in an inbox still, in the order of the inboxes."""
    audit: Mapping[str, int] = field(default_factory=dict)
    tenants: Mapping[str, int] = field(default_factory=dict)
    pending: Mapping[str, int] = field(default_factory=dict)
    dead_letters: list[str] = field(default_factory=list)
    keys_without_ttl: list[str] = field(default_factory=list)
    """That are not on the permanent list."""


@dataclass(slots=True)
class Record:
    """A run: its jobs, its processes, what was done to them, and what was measured."""

    jobs: dict[str, JobTrace] = field(default_factory=dict)
    lives: dict[str, Life] = field(default_factory=dict)
    """By process, as histories name it: `router-1.3`."""
    faults: list[Window] = field(default_factory=list)
    redis_up_ns: list[int] = field(default_factory=list)
    outages: list[tuple[int, int]] = field(default_factory=list)
    """When there was no server."""
    audits: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    memory: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    phases: dict[str, int] = field(default_factory=dict)
    finished: list[tuple[int, int]] = field(default_factory=list)
    """When how many answers were written."""
    replied_s: float = 0.0
    """The longest that a submission took."""
    cursors: dict[str, list[str]] = field(default_factory=dict)
    """Entry ids in the order in which a consumer of each inbox saw them, where that order was wrong."""
    chunks: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)
    """Of each job every chunk, in the order in which they came: the tokens before it, its own, and its text."""
    final: FinalState = field(default_factory=FinalState)

    @classmethod
    def of(cls, events: Iterable[Event], final: FinalState) -> Record:
        """Read histories, each in its own order, processes in any."""
        record = cls(final=final)
        reader = _Reader(record)
        for event in events:
            reader.read(event)
        reader.finish()
        return record

    def acknowledged(self) -> Iterable[tuple[str, JobTrace]]:
        """Jobs that a producer was told are accepted."""
        return ((job, trace) for job, trace in self.jobs.items() if trace.acknowledged_ns)

    def windows(self, *kinds: str) -> list[Window]:
        """The faults of some kinds."""
        return [window for window in self.faults if window.kind in kinds]


def _entry_order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)


class _Reader:
    """Fills a record with events."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._seen: set[tuple[str, str]] = set()
        self._seen_chunks: set[tuple[str, str]] = set()
        self._cursor: dict[str, str] = {}
        self._down_ns = 0
        self._invoked_ns: dict[str, int] = {}

    def read(self, event: Event) -> None:
        handler = getattr(self, "_" + event.name.replace(".", "_"), None)
        if handler is None:
            raise ValueError(f"{event.process} wrote an event {event.name!r} that nobody reads")
        handler(event)

    def finish(self) -> None:
        for job, terminal in self._record.final.terminals:
            self._terminal(job, terminal)
        self._record.faults.sort(key=lambda fault: fault.start_ns)
        self._record.finished.sort()
        self._record.audits.sort(key=lambda audit: audit[0])
        for trace in self._record.jobs.values():
            trace.starts.sort()
            trace.deliveries.sort()

    def _trace(self, job: str) -> JobTrace:
        trace = self._record.jobs.get(job)
        if trace is None:
            trace = self._record.jobs[job] = JobTrace()
        return trace

    def _terminal(self, job: str, terminal: Terminal) -> None:
        place = (terminal.inbox, terminal.entry_id)
        if place not in self._seen:
            self._seen.add(place)
            self._trace(job).terminals.append(terminal)

    # -- producers and consumers ------------------------------------------------------------------------

    def _submit_invoke(self, event: Event) -> None:
        self._invoked_ns[event.process] = event.mono_ns
        for job in event.facts["jobs"]:
            trace = self._trace(job)
            trace.invoked_ns = trace.invoked_ns or event.mono_ns

    def _submit_ok(self, event: Event) -> None:
        self._replied(event)
        for job in event.facts["jobs"]:
            trace = self._trace(job)
            trace.acknowledged_ns = trace.acknowledged_ns or event.mono_ns

    _submit_known = _submit_ok

    def _submit_full(self, event: Event) -> None:
        self._replied(event)
        for job in event.facts["jobs"]:
            self._trace(job).full += 1

    def _submit_unknown(self, event: Event) -> None:
        self._replied(event)
        for job in event.facts["jobs"]:
            self._trace(job).unknown = True

    def _replied(self, event: Event) -> None:
        took_s = (event.mono_ns - self._invoked_ns[event.process]) / 1e9
        self._record.replied_s = max(self._record.replied_s, took_s)

    def _cancel_invoke(self, event: Event) -> None:
        for job in event.facts["jobs"]:
            self._trace(job).cancel = "asked"

    def _cancel_reply(self, event: Event) -> None:
        for job, answer in event.facts["answers"].items():
            trace = self._trace(job)
            trace.cancel, trace.cancelled_ns = answer, event.mono_ns

    def _result(self, event: Event) -> None:
        inbox = event.facts["inbox"]
        for job, status, attempt, output, entry_id, code in event.facts["entries"]:
            last = self._cursor.get(inbox)
            if last is not None and _entry_order(entry_id) <= _entry_order(last):
                self._record.cursors.setdefault(inbox, []).append(f"{entry_id} after {last}")
            self._cursor[inbox] = entry_id
            self._terminal(job, Terminal(inbox, entry_id, status, attempt, output, code))

    def _chunk(self, event: Event) -> None:
        for entry_id, job, before, tokens, text in event.facts["chunks"]:
            place = (event.process.partition(".")[0], entry_id)
            if place not in self._seen_chunks:
                self._seen_chunks.add(place)
                self._record.chunks.setdefault(job, []).append((before, tokens, text))

    # -- routers and replicas ---------------------------------------------------------------------------

    def _deliver(self, event: Event) -> None:
        for job, attempt in event.facts["jobs"]:
            self._trace(job).deliveries.append(Delivery(event.mono_ns, event.process, attempt))

    def _batch(self, event: Event) -> None:
        jobs = event.facts["jobs"]
        for job, attempt, deadline_ms in jobs:
            trace = self._trace(job)
            trace.sent.append(Sending(event.mono_ns, event.process, len(jobs)))
            trace.max_attempt = max(trace.max_attempt, attempt)
            trace.deadline_ms = deadline_ms

    def _start(self, event: Event) -> None:
        jobs = event.facts["jobs"]
        for job in jobs:
            self._trace(job).starts.append(Start(event.mono_ns, event.wall_ns, event.process, len(jobs)))

    def _finish(self, event: Event) -> None:
        self._record.finished.append((event.mono_ns, event.facts["answered"]))

    # -- the cluster ------------------------------------------------------------------------------------

    def _fault(self, event: Event) -> None:
        facts = event.facts
        self._record.faults.append(Window(facts["kind"], facts["target"], facts["start_ns"], event.mono_ns))

    def _process_start(self, event: Event) -> None:
        name = event.facts["name"]
        self._record.lives[name] = Life(name, event.facts["role"], event.mono_ns)

    def _process_exit(self, event: Event) -> None:
        facts = event.facts
        life = self._record.lives[facts["name"]]
        life.end_ns, life.status, life.meant = event.mono_ns, facts["status"], facts["meant"]

    def _redis_down(self, event: Event) -> None:
        self._down_ns = event.mono_ns

    def _redis_up(self, event: Event) -> None:
        self._record.redis_up_ns.append(event.mono_ns)
        self._record.outages.append((self._down_ns, event.mono_ns))

    def _phase(self, event: Event) -> None:
        self._record.phases[event.facts["name"]] = event.mono_ns

    def _audit(self, event: Event) -> None:
        self._record.audits.append((event.mono_ns, event.facts))

    def _memory(self, event: Event) -> None:
        self._record.memory.append((event.mono_ns, event.facts))
