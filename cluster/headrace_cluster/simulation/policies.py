"""What is compared: headrace, the same with fixed numbers of replicas, and Serve as it comes.

Each policy is given the same jobs and the same replicas. They differ in who forms batches and who scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from headrace_cluster.autoscaling.plan import ModelPlan
from headrace_cluster.scheduling.cost_model import CPU_PRIOR, SLOT_PRIOR
from headrace_cluster.scheduling.credit import credit_of
from headrace_cluster.scheduling.routing import PoolFacts, RoutingPolicy
from headrace_cluster.simulation.arrivals import ModelArrivals
from headrace_cluster.simulation.fifo import FifoRouting
from headrace_cluster.simulation.jobs import Jobs
from headrace_cluster.simulation.oracle import least_s
from headrace_cluster.simulation.outcome import Outcome
from headrace_cluster.simulation.pools import SimulatedPool
from headrace_cluster.simulation.routing import HeadraceRouting, Routing
from headrace_cluster.simulation.run import ModelRun
from headrace_cluster.simulation.scaling import FixedScaling, HeadraceScaling, Scaling, ServeScaling
from headrace_cluster.simulation.trace import ModelTrace, PoolTrace, Trace

__all__ = ["POLICIES", "Policy", "run_model"]

_PEAK_S: Final = 10.0
"""Over how long the load is averaged whose maximum the peak is."""
_TO_FOLLOW: Final = 8
_LOW_SLACK: Final = 0.1


@dataclass(frozen=True, slots=True)
class Policy:
    """One way to run a trace."""

    name: str
    about: str
    forming: Literal["headrace", "fifo"]
    scaling: Literal["headrace", "serve", "peak", "mean"]


POLICIES: Final = (
    Policy("headrace", "batches by urgency and fairness, replicas by work", "headrace", "headrace"),
    Policy("serve", "batches in order of arrival, Serve's own autoscaler", "fifo", "serve"),
    Policy("fifo", "batches in order of arrival, replicas for the peak", "fifo", "peak"),
    Policy("peak", "headrace's batches, replicas for the peak", "headrace", "peak"),
    Policy("mean", "headrace's batches, replicas for the mean", "headrace", "mean"),
)


def run_model(trace: Trace, model: ModelTrace, arrivals: ModelArrivals, policy: Policy) -> Outcome:
    """Simulate one model under one policy."""
    return _Setup(trace, model, arrivals, policy).run()


class _Setup:
    """What a run is made of."""

    def __init__(self, trace: Trace, model: ModelTrace, arrivals: ModelArrivals, policy: Policy) -> None:
        self._trace, self._model, self._arrivals, self._policy = trace, model, arrivals, policy
        self._work = model.work or trace.work
        self._batching = model.batching or trace.batching
        self._jobs = Jobs(arrivals, self._work, padded=self._batching.padded)

    def run(self) -> Outcome:
        """Simulate."""
        pools = self._pools()
        routing = self._routing(pools)
        outcome = ModelRun(
            self._jobs,
            pools,
            routing,
            self._scaling(pools, routing),
            losses=self._trace.losses,
            overhead_s=self._trace.overhead_s,
            horizon_s=self._trace.horizon_s or (self._jobs.offset_s[-1] if len(self._jobs) else 0.0),
            seed=self._trace.seed,
        ).run()
        if isinstance(routing, HeadraceRouting):
            outcome.hedged = routing.hedged
        return outcome

    def _pools(self) -> list[SimulatedPool]:
        specs = self._model.pools or self._trace.pools
        if self._policy.forming == "fifo":
            specs = (max(specs, key=lambda spec: spec.max_replicas * spec.speed),)
        fixed = self._fixed(specs)
        lanes = self._work.slots or 1
        return [
            SimulatedPool(self._model.name, spec, lanes=lanes, replicas=spec.min_replicas if fixed is None else count)
            for spec, count in zip(specs, fixed or [0] * len(specs), strict=True)
        ]

    def _fixed(self, specs: Sequence[PoolTrace]) -> list[int] | None:
        """Replicas for the load as somebody would choose who knows it, the cheapest pools first; None: they vary."""
        if self._policy.scaling not in ("peak", "mean"):
            return None
        left = self._load(self._policy.scaling == "peak")
        counts = dict.fromkeys(specs, 0)
        for spec in sorted(specs, key=lambda spec: spec.cost / spec.speed):
            counts[spec] = min(max(spec.min_replicas, math.ceil(left / spec.speed - 1e-9)), spec.max_replicas)
            left = max(0.0, left - counts[spec] * spec.speed)
        if not any(counts.values()):
            counts[specs[0]] = 1
        return list(counts.values())

    def _load(self, peak: bool) -> float:
        """Replicas of speed 1 that the work would keep busy if all batches were full: at most, or on average."""
        if not len(self._arrivals):
            return 0.0
        seconds = least_s(self._arrivals, self._work, self._batching) / (self._work.slots or 1)
        offset_s = self._arrivals.offset_s
        span_s = max(self._trace.horizon_s, float(offset_s[-1]), _PEAK_S)
        if not peak:
            return float(seconds.sum() / span_s)
        return float(np.bincount((offset_s / _PEAK_S).astype(np.int64), weights=seconds).max() / _PEAK_S)

    def _routing(self, pools: Sequence[SimulatedPool]) -> Routing:
        if self._policy.forming == "fifo":
            return FifoRouting(
                self._jobs,
                max_jobs=self._batching.max_jobs,
                wait_timeout_s=self._trace.serve.batch_wait_timeout_s,
                slots=self._work.slots,
            )
        policy = RoutingPolicy(
            forming=self._batching.to_policy(),
            batches_per_replica=max(pool.spec.batches_per_replica for pool in pools),
            jobs_per_replica=self._work.slots and self._work.slots + -(-self._work.slots // _TO_FOLLOW),
            pools={pool.spec.name: self._facts(pool.spec) for pool in pools},
        )
        routing = HeadraceRouting(self._jobs, policy, credit_of(policy))
        if self._trace.measured and len(self._jobs):
            slacks_s = (self._arrivals.deadline_s - self._arrivals.offset_s)[np.isfinite(self._arrivals.deadline_s)]
            slack_s = float(np.quantile(slacks_s, _LOW_SLACK)) if len(slacks_s) else None
            routing.scheduler.costs.restore({}, float(self._arrivals.tokens.mean()), slack_s)
        return routing

    def _facts(self, spec: PoolTrace) -> PoolFacts:
        """A pool whose cost model has the truth for a prior, as after a restart, or knows nothing."""
        prior = SLOT_PRIOR if self._work.slots else CPU_PRIOR
        if self._trace.measured:
            prior = (self._work.batch_s / spec.speed, self._work.job_s / spec.speed, self._work.token_s / spec.speed)
        return PoolFacts(weight=spec.cost, batches_per_replica=spec.batches_per_replica, prior=prior)

    def _scaling(self, pools: Sequence[SimulatedPool], routing: Routing) -> Scaling:
        if self._policy.scaling == "headrace" and isinstance(routing, HeadraceRouting):
            return HeadraceScaling(self._plan(pools), pools, self._trace.scaling, routing.scheduler.costs)
        if self._policy.scaling == "serve":
            [pool] = pools
            target = self._trace.serve.target_ongoing_requests or self._work.slots or self._batching.max_jobs
            return ServeScaling(pool, self._trace.serve, target=target)
        return FixedScaling()

    def _plan(self, pools: Sequence[SimulatedPool]) -> ModelPlan:
        scaling = self._trace.scaling
        return ModelPlan(
            self._model.name,
            tuple(pool.name for pool in pools),
            max_jobs=self._batching.max_jobs,
            max_tokens=self._batching.max_tokens,
            slots=self._work.slots,
            drain_s=scaling.drain_s,
            idle_s=scaling.idle_s,
            utilisation=scaling.utilisation,
        )
