"""What is measured of a run: how soon work went on after a kill, and how much was done when."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from chaos.record import JobTrace, Record, Window

__all__ = ["Recovery", "Throughput", "percentile", "recoveries", "redis_recoveries_s", "throughput"]

_DISTURBANCES: Final = (
    "kill_redis",
    "tear_redis",
    "stop_redis",
    "hold",
    "half_open",
    "fill_memory",
    "delay",
    "stop_replica",
)
_LEASE_SHADOW_NS: Final = 6_000_000_000
"""How long after a router's kill its jobs may still wait for another router."""
_AFTERMATH_NS: Final = 1_000_000_000
"""How long after Redis was away connections may still pause before they are tried again."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a kill cost the job that waited longest for it."""

    killed: str
    """`router` or `replica`."""
    life: str
    job: str
    jobs: int
    """How many jobs the killed process had."""
    seconds: float
    """From the kill to the job's next start, or its answer."""
    clean: bool
    """Whether nothing else that stops work was done meanwhile."""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] if ordered else 0.0


def recoveries(record: Record) -> list[Recovery]:
    """For each kill of a router or a replica that had jobs, the job that waited longest."""
    offset_ns = _wall_offset_ns(record)
    kills = {window.target: window for window in record.windows("kill_router", "kill_replica")}
    held = _held_by(record, kills)
    found = []
    for life, window in kills.items():
        worst = max(
            ((_waited_ns(record.jobs[job], window, kills, offset_ns), job) for job in held.get(life, ())),
            default=(0, ""),
        )
        if worst[1]:
            end_ns = window.start_ns + worst[0]
            clean = _clean(record, window, end_ns)
            found.append(
                Recovery(window.kind.removeprefix("kill_"), life, worst[1], len(held[life]), worst[0] / 1e9, clean)
            )
    return found


def _wall_offset_ns(record: Record) -> int:
    """Wall less monotonic time, from any event that has both."""
    for trace in record.jobs.values():
        for start in trace.starts:
            return start.wall_ns - start.mono_ns
    return 0


def _held_by(record: Record, kills: dict[str, Window]) -> dict[str, set[str]]:
    """The jobs that each killed process had when it died: given to it, and not answered yet."""
    held: dict[str, set[str]] = {}
    offset_ns = _wall_offset_ns(record)
    for job, trace in record.jobs.items():
        ended_ns = min((terminal.wall_ns for terminal in trace.terminals), default=1 << 62) - offset_ns
        for sending in trace.sent:
            life = sending.replica
            if life in kills and ended_ns > kills[life].start_ns:
                held.setdefault(life, set()).add(job)
        for delivery in trace.deliveries:
            window = kills.get(delivery.router)
            if window and ended_ns > window.start_ns and not _sent_between(trace, delivery.mono_ns, window.start_ns):
                held.setdefault(delivery.router, set()).add(job)
    return held


def _sent_between(trace: JobTrace, start_ns: int, end_ns: int) -> bool:
    """Whether a replica has the job already: then the death of its router does not stop it."""
    return any(start_ns <= sending.mono_ns <= end_ns for sending in trace.sent)


def _waited_ns(trace: JobTrace, window: Window, kills: dict[str, Window], offset_ns: int) -> int:
    """From the kill until the job runs again or is answered, or whoever took it on was killed too."""
    moments = [start.mono_ns for start in trace.starts]
    moments += [terminal.wall_ns - offset_ns for terminal in trace.terminals]
    moments += [moment for moment, life in _holders(trace) if life in kills and life != window.target]
    return max(0, min((moment - window.start_ns for moment in moments if moment > window.start_ns), default=0))


def _holders(trace: JobTrace) -> Iterable[tuple[int, str]]:
    for sending in trace.sent:
        yield sending.mono_ns, sending.replica
    for delivery in trace.deliveries:
        yield delivery.mono_ns, delivery.router


def _clean(record: Record, window: Window, end_ns: int) -> bool:
    for other in record.faults:
        if other.start_ns > end_ns or other is window:
            continue
        since_ns = window.start_ns - other.end_ns
        if other.kind in _DISTURBANCES and since_ns <= _AFTERMATH_NS:
            return False
        if window.kind == "kill_replica" and other.kind.endswith("_router") and since_ns <= _LEASE_SHADOW_NS:
            return False
    return True


def redis_recoveries_s(record: Record) -> list[float]:
    """For each start of the server after a kill, the seconds until the first answer was written."""
    moments = [moment for moment, _ in record.finished]
    return [
        (moments[at] - up_ns) / 1e9
        for up_ns in record.redis_up_ns
        if (at := bisect_left(moments, up_ns)) < len(moments)
    ]


@dataclass(frozen=True, slots=True)
class Throughput:
    """Answers a second: before the faults, in the worst second of them, and in the best while after them."""

    base: float
    least: float
    after: float

    @property
    def ratio(self) -> float:
        """What came back."""
        return self.after / self.base if self.base else 0.0


_SECOND_NS: Final = 1_000_000_000
_AFTER_WINDOW_NS: Final = 2 * _SECOND_NS
_STEP_NS: Final = _SECOND_NS // 4


def throughput(record: Record, *, within_s: float) -> Throughput:
    """Answers a second. `after` is the best two seconds that end within `within_s` of the last fault."""
    phases = record.phases
    if not {"baseline", "faults", "calm", "drain"} <= phases.keys():
        return Throughput(0.0, 0.0, 0.0)
    answered = _Counter(record.finished)
    end_ns = min(phases["drain"], phases["calm"] + int(within_s * _SECOND_NS))
    least = min((answered.rate(at, at + _SECOND_NS) for at in _steps(phases["faults"], phases["calm"])), default=0.0)
    after = max(
        (answered.rate(at - _AFTER_WINDOW_NS, at) for at in _steps(phases["calm"] + _AFTER_WINDOW_NS, end_ns + 1)),
        default=answered.rate(phases["calm"], end_ns),
    )
    return Throughput(answered.rate(phases["baseline"], phases["faults"]), least, after)


def _steps(start_ns: int, end_ns: int) -> Iterable[int]:
    return range(start_ns, end_ns, _STEP_NS)


class _Counter:
    def __init__(self, finished: Sequence[tuple[int, int]]) -> None:
        self._moments = [moment for moment, _ in finished]
        self._sums = [0, *accumulate(count for _, count in finished)]

    def rate(self, start_ns: int, end_ns: int) -> float:
        """Answers a second in [start, end)."""
        if end_ns <= start_ns:
            return 0.0
        first, last = bisect_left(self._moments, start_ns), bisect_right(self._moments, end_ns)
        return (self._sums[last] - self._sums[first]) * 1e9 / (end_ns - start_ns)
