"""The judge: reads all that is known of a run and says which promise was broken, with the evidence.

In the manner of Jepsen's total queue, over the invariants below. It is pure, so it can be shown runs that
never happened: a checker that has never been seen to fail proves nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from chaos.figures import recoveries, throughput
from chaos.record import Delivery, JobTrace, Record
from chaos.workload import ALLOWED, INNOCENT, Wish, answer_to, wish_of

__all__ = ["INVARIANTS", "Rules", "Violation", "check", "doubled", "lost"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a scenario allows, beyond what is never allowed."""

    max_attempts: int = 3
    lease_s: float = 3.0
    replica_recovery_s: float = 2.0
    """From a replica's death until its jobs run again: a second, and its restart."""
    router_recovery_s: float = 5.0
    deadline_slack_s: float = 0.25
    lane_capacity: int = 1_000_000
    batch_jobs: int = 64
    submit_within_s: float = 60.0
    throughput_ratio: float = 0.0
    """How much of the throughput must be back; 0 asks nothing."""
    throughput_within_s: float = 10.0
    memory_ratio: float = 0.0
    """How much of their baseline Redis and routers may use after the drain; 0 asks nothing."""
    lone_deaths: int = 2
    """Deaths while a job was alone after which it must be dead."""
    deaths_each: int = 8
    """Replicas that one job may kill: halving a batch of 64, and the lone ones."""
    words: int = 0
    """How many words a job generates at most; 0: none is generated."""
    lone_job: str = ""
    """A job that a flood must not hold up for more than `fair_batches` batches."""
    fair_batches: int = 3
    exempt: Mapping[str, str] = field(default_factory=dict)
    """Invariants that this scenario breaks on purpose, and why."""


class Violation(NamedTuple):
    """A promise that was broken."""

    invariant: str
    message: str
    evidence: str = ""

    def __str__(self) -> str:
        return f"{self.invariant}: {self.message}" + (f"\n      {self.evidence}" if self.evidence else "")


Found = Iterator[tuple[str, str]]
"""Messages, each with its evidence."""


def check(record: Record, rules: Rules | None = None) -> list[Violation]:
    """Everything that is wrong with a run; at most five examples of each kind."""
    rules = rules or Rules()
    violations = []
    for code, (_, examine) in INVARIANTS.items():
        if code in rules.exempt:
            continue
        found = list(examine(record, rules))
        violations += [Violation(code, message, evidence) for message, evidence in found[:_EXAMPLES]]
        if len(found) > _EXAMPLES:
            violations.append(Violation(code, f"and {len(found) - _EXAMPLES} more like these"))
    return violations


_EXAMPLES: Final = 5


def lost(record: Record) -> list[str]:
    """Jobs that were acknowledged and have no terminal entry."""
    return [job for job, trace in record.acknowledged() if not trace.terminals]


def doubled(record: Record) -> list[str]:
    """Jobs with more than one terminal entry, in whatever inboxes."""
    return [job for job, trace in record.jobs.items() if len(trace.terminals) > 1]


def story(job: str, trace: JobTrace) -> str:
    """What is known of one job, in the order of time, in seconds since it was submitted."""
    moments = [(delivery.mono_ns, f"read by {delivery.router}") for delivery in trace.deliveries]
    moments += [(sent.mono_ns, f"sent to {sent.replica} with {sent.batch_jobs}") for sent in trace.sent]
    moments += [(start.mono_ns, f"started by {start.replica} with {start.batch_jobs}") for start in trace.starts]
    if trace.acknowledged_ns:
        moments.append((trace.acknowledged_ns, "acknowledged"))
    if trace.cancelled_ns:
        moments.append((trace.cancelled_ns, f"cancel: {trace.cancel}"))
    told = [f"+{(moment - trace.invoked_ns) / 1e9:.3f} {what}" for moment, what in sorted(moments)]
    ended = [f"{entry.status} {entry.entry_id} in {entry.inbox}" for entry in trace.terminals]
    return f"{job}: " + ", ".join(told + (ended or ["no terminal entry"]))


# -- each invariant -------------------------------------------------------------------------------------


def _no_loss(record: Record, _rules: Rules) -> Found:
    for job in lost(record):
        yield f"job {job} was acknowledged and never answered", story(job, record.jobs[job])


def _no_doubles(record: Record, _rules: Rules) -> Found:
    for job in doubled(record):
        yield f"job {job} has {len(record.jobs[job].terminals)} terminal entries", story(job, record.jobs[job])
    for inbox, orders in record.cursors.items():
        yield f"a consumer of {inbox} was shown an entry again, or out of order", orders[0]


def _no_ghosts(record: Record, _rules: Rules) -> Found:
    for job, trace in record.jobs.items():
        if trace.terminals and not trace.invoked_ns:
            yield f"job {job} was answered and never submitted", story(job, trace)


def _right_answers(record: Record, rules: Rules) -> Found:
    for job, trace in record.jobs.items():
        for entry in trace.terminals:
            right = answer_to(job, rules.words)
            if entry.status == "ok" and entry.output != right:
                yield f"job {job} was answered {entry.output!r}, not {right!r}", story(job, trace)
            elif trace.invoked_ns and entry.status not in ALLOWED[wish_of(job)] and wish_of(job) not in INNOCENT:
                yield f"job {job} ended as {entry.status} ({entry.code})", story(job, trace)


def _conservation(record: Record, _rules: Rules) -> Found:
    for _, audit in record.audits:
        ended = sum(audit.get(status, 0) for status in _STATUSES)
        if audit.get("submitted", 0) != ended + audit["live"]:
            yield f"submitted {audit.get('submitted', 0)} is not {ended} ended + {audit['live']} live", str(audit)
    final = record.final.audit
    if not final:
        return
    if final["live"]:
        yield f"{final['live']} jobs live on after the drain", str(final)
    terminals = sum(len(trace.terminals) for trace in record.jobs.values())
    if sum(final.get(status, 0) for status in _STATUSES) != terminals:
        yield f"the counters say otherwise than the {terminals} terminal entries", str(final)
    if record.final.tenants:
        yield "tenants still have live jobs by their counters", str(dict(record.final.tenants))


_STATUSES: Final = ("ok", "error", "expired", "cancelled", "dead")


def _attempts(record: Record, rules: Rules) -> Found:
    letters = Counter(record.final.dead_letters)
    for job, trace in record.jobs.items():
        if trace.max_attempt > rules.max_attempts:
            yield f"job {job} was at attempt {trace.max_attempt} of {rules.max_attempts}", story(job, trace)
        dead = sum(entry.status == "dead" for entry in trace.terminals)
        if record.final.audit and dead != letters[job]:
            yield f"job {job} ended as dead {dead} times and is {letters[job]} dead letters", story(job, trace)
        if trace.invoked_ns and wish_of(job) is Wish.KILL:
            yield from _deaths(job, trace, rules)
    for job in letters.keys() - record.jobs.keys():
        yield f"dead letter {job} was never submitted", ""


def _deaths(job: str, trace: JobTrace, rules: Rules) -> Found:
    killed = {start.replica for start in trace.starts}
    alone = sum(sent.batch_jobs == 1 and sent.replica in killed for sent in trace.sent)
    if len(killed) > rules.deaths_each:
        yield f"job {job} killed {len(killed)} replicas", story(job, trace)
    if trace.terminals and alone > rules.lone_deaths:
        yield f"job {job} killed {alone} replicas alone before it was given up", story(job, trace)


def _cancels(record: Record, _rules: Rules) -> Found:
    for job, trace in record.jobs.items():
        statuses = {entry.status for entry in trace.terminals}
        if trace.cancel == "cancelled":
            if statuses != {"cancelled"}:
                yield f"job {job} was said to be cancelled and ended as {sorted(statuses)}", story(job, trace)
            if any(start.mono_ns > trace.cancelled_ns for start in trace.starts):
                yield f"job {job} started after it was said to be cancelled", story(job, trace)
        elif trace.cancel == "requested" and not statuses <= {"cancelled", "ok"}:
            yield f"job {job} was to be cancelled and ended as {sorted(statuses)}", story(job, trace)
        elif trace.cancel == "unknown":
            yield f"job {job} was accepted, and is not known to who cancels it", story(job, trace)


def _deadlines(record: Record, rules: Rules) -> Found:
    slack_ns = int(rules.deadline_slack_s * 1e9)
    for job, trace in record.jobs.items():
        if trace.deadline_ms:
            late = [start for start in trace.starts if start.wall_ns > trace.deadline_ms * 1_000_000 + slack_ns]
            if late:
                late_s = late[0].wall_ns / 1e9 - trace.deadline_ms / 1e3
                yield f"job {job} was started {late_s:.3f} s after its deadline", story(job, trace)


def _chunks(record: Record, rules: Rules) -> Found:
    for job, chunks in record.chunks.items():
        right, said, tokens = answer_to(job, rules.words), "", 0
        for before, count, text in chunks:
            if before != tokens or not right.startswith(said + text):
                yield f"a chunk of job {job} follows {before} tokens where {tokens} were said", str(chunks[:50])
                break
            said, tokens = said + text, tokens + count
        for entry in record.jobs[job].terminals:
            if isinstance(entry.output, str) and not entry.output.startswith(said):
                yield f"job {job} ended with less than was said of it", story(job, record.jobs[job])


def _innocents(record: Record, _rules: Rules) -> Found:
    for job, trace in record.jobs.items():
        if trace.invoked_ns and wish_of(job) in INNOCENT:
            for entry in trace.terminals:
                if entry.status != "ok" and not (entry.code == "poison" and _framed(record, trace)):
                    yield f"job {job} did nothing and ended as {entry.status} ({entry.code})", story(job, trace)


def _framed(record: Record, trace: JobTrace) -> bool:
    """Whether the harness killed every replica on which the job was alone: nobody can tell that from its doing."""
    struck = {window.target for window in record.windows("kill_replica", "stop_replica")}
    refused = {sent.replica for sent in trace.sent} - {start.replica for start in trace.starts}
    return all(sent.replica in struck | refused for sent in trace.sent if sent.batch_jobs == 1)


def _recovery(record: Record, rules: Rules) -> Found:
    limits = {"router": rules.router_recovery_s, "replica": rules.replica_recovery_s}
    for recovery in recoveries(record):
        if recovery.clean and recovery.seconds > limits[recovery.killed]:
            yield (
                f"after {recovery.life} was killed a job waited {recovery.seconds:.2f} s",
                story(recovery.job, record.jobs[recovery.job]),
            )


def _fairness(record: Record, rules: Rules) -> Found:
    if not rules.lone_job:
        return
    trace = record.jobs.get(rules.lone_job)
    if trace is None or not trace.starts:
        yield f"job {rules.lone_job} never started", ""
        return
    first_ns = trace.starts[0].mono_ns
    before = {
        start.mono_ns
        for other in record.jobs.values()
        for start in other.starts
        if trace.acknowledged_ns < start.mono_ns < first_ns
    }
    if len(before) > rules.fair_batches:
        yield f"job {rules.lone_job} waited for {len(before)} batches", story(rules.lone_job, trace)


def _keys(record: Record, rules: Rules) -> Found:
    for key in record.final.keys_without_ttl:
        yield f"{key} has no TTL and is not on the permanent list", ""
    for lane, pending in record.final.pending.items():
        yield f"{pending} entries of {lane} are still pending", ""
    if rules.memory_ratio and len(record.memory) > 1:
        first, last = record.memory[0][1], record.memory[-1][1]
        for what in first:
            if last[what] > rules.memory_ratio * first[what]:
                yield f"{what} grew from {first[what]:,} to {last[what]:,}", ""


def _back_pressure(record: Record, rules: Rules) -> Found:
    for _, audit in record.audits:
        if audit.get("fullest", 0) > rules.lane_capacity + rules.batch_jobs:
            yield f"a priority held {audit['fullest']} jobs of {rules.lane_capacity}", str(audit)
    if record.replied_s > rules.submit_within_s:
        yield f"a submission took {record.replied_s:.1f} s", ""


def _liveness(record: Record, rules: Rules) -> Found:
    if rules.throughput_ratio:
        rates = throughput(record, within_s=rules.throughput_within_s)
        if rates.ratio < rules.throughput_ratio:
            yield (
                f"throughput is at {rates.ratio:.0%} of the baseline {rules.throughput_within_s:.0f} s after the "
                f"last fault ({rates.base:.0f}/s before, {rates.after:.0f}/s after)",
                "",
            )


def _leases(record: Record, rules: Rules) -> Found:
    lapses = _Lapses(record, rules)
    for job, trace in record.jobs.items():
        for before, after in zip(trace.deliveries, trace.deliveries[1:], strict=False):
            if before.attempt == after.attempt and before.router != after.router and lapses.alive(before, after):
                yield f"{after.router} took job {job} from {before.router}, which was alive", story(job, trace)


class _Lapses:
    """When routers may have been taken for dead."""

    def __init__(self, record: Record, rules: Rules) -> None:
        self._lives = record.lives
        self._ended_ns: dict[str, int] = {}
        self._stops: dict[str, list[tuple[int, int]]] = {}
        after_ns = int(rules.lease_s / 2 * 1e9)
        for window in record.windows("kill_router", "end_router"):
            self._ended_ns[window.target] = window.start_ns
        for window in record.windows("stop_router"):
            self._stops.setdefault(window.target, []).append((window.start_ns, window.end_ns + after_ns))
        self._cut_off = [
            (window.start_ns, window.end_ns + after_ns)
            for window in record.windows("hold", "half_open", "partition")
            if window.target == "routers"
        ]

    def alive(self, before: Delivery, after: Delivery) -> bool:
        """Whether the router that had the job first had no reason to lose it.

        A router that was stopped notes what the server gave it meanwhile, and others have taken from it since, when it
        goes on: then it is the one that came first.
        """
        life = self._lives.get(before.router)
        ended_ns = min(self._ended_ns.get(before.router, 1 << 62), life.end_ns if life else 1 << 62)
        lapses = self._stops.get(before.router, []) + self._stops.get(after.router, []) + self._cut_off
        return after.mono_ns < ended_ns and not any(start <= after.mono_ns <= end for start, end in lapses)


def _crashes(record: Record, _rules: Rules) -> Found:
    for life in record.lives.values():
        killed_by_work = life.role == "replica" and life.status < 0
        if life.status and not life.meant and not killed_by_work:
            yield f"{life.name} ended by itself with status {life.status}", ""


INVARIANTS: Final[Mapping[str, tuple[str, Callable[[Record, Rules], Found]]]] = {
    "I1": ("every acknowledged job has a terminal entry", _no_loss),
    "I2": ("no job has two, and no consumer is shown one twice", _no_doubles),
    "I3": ("nothing is answered that was not submitted", _no_ghosts),
    "I4": ("answers are right, and errors are the job's own", _right_answers),
    "I5": ("submitted = ended + live, at every sample", _conservation),
    "I6": ("attempts are bounded, and who dies of them is a dead letter once", _attempts),
    "I7": ("what is said of a cancellation is true", _cancels),
    "I8": ("nothing starts after its deadline", _deadlines),
    "I9": ("the chunks of a job come without gap or repeat, whoever made them, and add up to its answer", _chunks),
    "I10": ("who did nothing ends well, whoever his batch mates were", _innocents),
    "I11": ("work goes on soon after a kill", _recovery),
    "I12": ("a flood of one tenant does not hold up another", _fairness),
    "I13": ("nothing stays behind: no key without a TTL, no pending entry, no memory", _keys),
    "I14": ("lanes are bounded, and no producer waits for ever", _back_pressure),
    "I15": ("throughput comes back after the last fault", _liveness),
    "I16": ("nobody who lives is robbed", _leases),
    "I17": ("nobody dies of anything but what was done to him", _crashes),
}
