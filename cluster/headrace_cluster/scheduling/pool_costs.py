"""What a router knows of its model's pools, and of the jobs they get: what batches take, and how urgent jobs are.

Pure. `PoolMemory` keeps it in Redis, for the next router and for the autoscaler.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from headrace_cluster.scheduling.cost_model import CostModel
from headrace_cluster.scheduling.routing import PoolFacts

__all__ = ["PoolCosts"]

_TRUSTED: Final = 8
"""From how many batches on somebody may be late."""
_TOKENS_WEIGHT: Final = 0.002
"""What one job moves the mean of tokens at least. The number of replicas follows this mean, and sizes have long tails:
of fifty jobs, the mean is still off by a tenth or two."""
_SLACKS: Final = 256
_LOW: Final = 0.1
"""Which quantile of the last jobs' slacks counts: nine of ten give at least as much time."""


class PoolCosts:
    """The cost models of one model's pools, by pool, and what its jobs have been like.

    Args:
        pools: what is known of each beforehand.
    """

    def __init__(self, pools: Mapping[str, PoolFacts] | None = None) -> None:
        self._facts = dict(pools or {})
        self.models: dict[str, CostModel] = {}
        self.mean_tokens: float | None = None
        """Tokens of a job; None before the first."""
        self._sized = 0
        """Jobs that the mean is of."""
        self._known_slack_s: float | None = None
        self._slacks: deque[float] = deque(maxlen=_SLACKS)

    def facts(self, pool: str) -> PoolFacts:
        """What is known of a pool beforehand."""
        return self._facts.get(pool) or PoolFacts()

    @property
    def known(self) -> frozenset[str]:
        """The pools that are known beforehand, and those that have been learned of."""
        return frozenset(self._facts) | frozenset(self.models)

    def of(self, pool: str) -> CostModel:
        """A pool's cost model, made where it is missing."""
        model = self.models.get(pool)
        if model is None:
            model = self.models[pool] = CostModel(self.facts(pool).prior)
        return model

    def trusted(self, pool: str) -> bool:
        """Whether predictions for it rest on enough measurements to call somebody late."""
        return self.of(pool).measured >= _TRUSTED

    def learn(self, pool: str, jobs: int, tokens: int, run_s: float, *, counted: float | None = None) -> float | None:
        """A batch took so long: by how much that is more or less than predicted, if predictions are worth anything.

        Args:
            pool: where.
            jobs: how many.
            tokens: of all of them.
            run_s: how long it took.
            counted: as how many tokens they count there, if padding makes a difference.
        """
        if jobs <= 0:
            return None
        cost, size = self.of(pool), tokens if counted is None else counted
        ratio = run_s / cost.predict_s(jobs, size) if self.trusted(pool) else None
        cost.learn(jobs, size, run_s)
        mean = tokens / jobs
        before = mean if self.mean_tokens is None else self.mean_tokens
        self._sized += jobs
        self.mean_tokens = before + min(1.0, max(jobs * _TOKENS_WEIGHT, jobs / self._sized)) * (mean - before)
        return ratio

    def note_slack(self, slack_s: float) -> None:
        """A job came so long before its deadline."""
        self._slacks.append(slack_s)

    @property
    def slack_s(self) -> float | None:
        """How long before its deadline a job comes, nine times of ten at least; None if none has had one."""
        if not self._slacks:
            return self._known_slack_s
        return sorted(self._slacks)[int(_LOW * len(self._slacks))]

    def restore(self, models: Mapping[str, CostModel], mean_tokens: float | None, slack_s: float | None) -> None:
        """What was known before. What has been learned since is worth more."""
        for pool, model in models.items():
            if pool not in self.models or not self.models[pool].measured:
                self.models[pool] = model
        if self.mean_tokens is None and mean_tokens is not None:
            self.mean_tokens, self._sized = mean_tokens, round(1 / _TOKENS_WEIGHT)
        self._known_slack_s = slack_s
