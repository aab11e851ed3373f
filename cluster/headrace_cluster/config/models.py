"""What is said of a model: what runs it, where, how its jobs are grouped, and towards what it scales."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, model_validator

from headrace.models.registry import Limits
from headrace_cluster.config.pools import PoolConfig
from headrace_cluster.config.strict import StrictConfig
from headrace_cluster.config.variants import AdaptiveConfig
from headrace_cluster.scheduling.batch_former import FormingPolicy
from headrace_cluster.scheduling.cost_model import CPU_PRIOR, GPU_PRIOR, SLOT_PRIOR
from headrace_cluster.scheduling.routing import HELD_BYTES, PoolFacts, RoutingPolicy
from headrace_workers.engines.factory import EngineConfig
from headrace_workers.generation.batch_call import LIFE_S

__all__ = ["BatchingConfig", "ModelConfig", "ScalingConfig"]

_Patience = Annotated[float, Field(ge=0, le=86_400)]
_Share = Annotated[int, Field(ge=1, le=1_000_000)]


class BatchingConfig(StrictConfig):
    """How a model's jobs are grouped."""

    max_jobs: Annotated[int, Field(ge=1, le=4096)] = 64
    """Jobs in one batch."""
    max_tokens: Annotated[int, Field(ge=1, le=1 << 24)] = 4096
    """The work budget of a batch: tokens of all its jobs. A job larger than that runs alone."""
    max_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 26)] = 3 << 20
    """Payload bytes of one batch, which travel in one message."""
    linger_ms: Annotated[float, Field(ge=0, le=60_000)] = 5.0
    """Shortest time between two batches that are not full; a lone job never waits."""
    patience_s: tuple[_Patience, _Patience, _Patience] = (0.0, 1.0, 10.0)
    """For priorities high, normal and low: how long after submission a job without a deadline is due."""
    shares: tuple[_Share, _Share, _Share] = (12, 3, 1)
    """For priorities high, normal and low: how work is divided when all have more than can be done."""
    padded: bool = False
    """Whether the engine pads shorter jobs; then alike lengths are put together."""

    def to_policy(self) -> FormingPolicy:
        """What the batch former is given."""
        return FormingPolicy(
            max_jobs=self.max_jobs,
            max_tokens=self.max_tokens,
            max_bytes=self.max_bytes,
            linger_s=self.linger_ms / 1000,
            patience_s=self.patience_s,
            shares=self.shares,
            padded=self.padded,
        )


class ScalingConfig(StrictConfig):
    """Towards what the pools of a model scale that have `min_replicas` and `max_replicas`."""

    drain_s: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    """How soon after its submission a job is to be answered, where its deadline does not ask for more."""
    idle_s: Annotated[float, Field(ge=1, le=604_800)] = 300.0
    """For how long no job must have come before a pool may go to no replica at all."""
    cool_down_s: Annotated[float, Field(ge=0, le=86_400)] | None = None
    """For how long fewer replicas must have been enough before some are given back; unset: for as long as a new one
    takes to start, and five seconds at least."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 1.0
    """What part of its replicas' time steady arrivals may fill."""


_LEAST_HELD_BYTES: Final = 4 << 20
"""What a router may hold of a model however many share its pool: a batch of the usual size, and another."""
_SIGNS_OF_LIFE: Final = 5
"""How many a replica must have missed before it may be killed."""
_TO_FOLLOW: Final = 8
"""For how many jobs that generate another one is prepared, to take the place of whichever ends first."""


class ModelConfig(StrictConfig):
    """One model that the service hosts."""

    engine: EngineConfig
    """What runs its jobs."""
    pools: Annotated[tuple[PoolConfig, ...], Field(min_length=1)] = (PoolConfig(),)
    """Where it runs; one entry for each kind of hardware."""
    batching: BatchingConfig = BatchingConfig()
    """How its jobs are grouped."""
    scaling: ScalingConfig = ScalingConfig()
    """Towards what its pools scale."""
    adaptive: AdaptiveConfig | None = None
    """Faster variants of its artifact under overload; unset: it runs one variant, whatever comes."""
    limits: Limits = Limits()
    """How much of its work Redis may hold; of each shard, where there are several."""
    shards: Annotated[int, Field(ge=1, le=1000)] = 1
    """Names under which its work lies in Redis, `m#0` and on: with several it spreads over a Redis Cluster."""
    call_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """How long a replica may take for one batch before it is killed; after half of it, it gets nothing new. One that
    generates may take as long as it says every two seconds that it goes on."""
    lone_failures: Annotated[int, Field(ge=1, le=100)] = 2
    """After how many failures alone on a replica a job is taken to be the cause, and set aside."""

    @model_validator(mode="after")
    def _pools_have_names_of_their_own(self) -> ModelConfig:
        names = [pool.name for pool in self.pools]
        if len(set(names)) < len(names):
            raise ValueError(f"two pools have one name: {sorted(names)}")
        return self

    @model_validator(mode="after")
    def _a_shared_pool_is_the_only_one(self) -> ModelConfig:
        if self.shared_pool is not None and len(self.pools) > 1:
            raise ValueError(f"pools: a model that shares {self.shared_pool!r} has no other pool")
        return self

    @model_validator(mode="after")
    def _what_adapts_has_variants(self) -> ModelConfig:
        if self.adaptive is None:
            return self
        if self.engine.kind not in ("encoder", "decoder"):
            raise ValueError(f"adaptive: an engine of kind {self.engine.kind} has no variants to choose between")
        if self.engine.variant is not None:
            raise ValueError("adaptive: leave engine.variant out; it would be the only one")
        if self.shared_pool is not None:
            raise ValueError(
                f"adaptive: {self.shared_pool!r} is shared, and does not change the variants of its models"
            )
        return self

    @model_validator(mode="after")
    def _signs_of_life_come_in_time(self) -> ModelConfig:
        least_s = _SIGNS_OF_LIFE * LIFE_S
        if self.engine.generates and self.call_timeout_s < least_s:
            raise ValueError(
                f"call_timeout_s must be at least {least_s:g} for an engine that generates: it gives a sign of life"
                f" every {LIFE_S:g} s"
            )
        return self

    @property
    def shared_pool(self) -> str | None:
        """The shared pool in which it runs, if it has none of its own."""
        return next((pool.shared for pool in self.pools if pool.shared is not None), None)

    @property
    def own_pools(self) -> tuple[PoolConfig, ...]:
        """The pools that run nothing else."""
        return tuple(pool for pool in self.pools if pool.shared is None)

    @property
    def jobs_per_replica(self) -> int:
        """Jobs of one that generates which one router may have there: those that run, and an eighth to follow them."""
        return self.engine.slots + -(-self.engine.slots // _TO_FOLLOW) if self.engine.generates else 0

    def _facts(self, pool: PoolConfig) -> PoolFacts:
        prior = SLOT_PRIOR if self.engine.generates else GPU_PRIOR if pool.gpus else CPU_PRIOR
        return PoolFacts(weight=pool.cost, batches_per_replica=pool.batches_per_replica, prior=prior)

    def to_policy(self, *, sharing: int = 0) -> RoutingPolicy:
        """What the model's router is given.

        Args:
            sharing: how many models share its pool.
        """
        return RoutingPolicy(
            forming=self.batching.to_policy(),
            limits=self.limits,
            shards=self.shards,
            batches_per_replica=max(pool.batches_per_replica for pool in self.pools),
            jobs_per_replica=self.jobs_per_replica,
            pools={pool.name: self._facts(pool) for pool in self.own_pools},
            call_timeout_s=self.call_timeout_s,
            lone_failures=self.lone_failures,
            max_held_bytes=max(_LEAST_HELD_BYTES, HELD_BYTES // max(1, sharing)),
        )
