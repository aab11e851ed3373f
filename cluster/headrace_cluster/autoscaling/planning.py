"""From the configuration to what the autoscaler works by."""

from __future__ import annotations

from headrace.models.shards import shard_names
from headrace_cluster.autoscaling.plan import ModelPlan, PoolPlan, ScalingPlan
from headrace_cluster.autoscaling.variant_ladder import LadderPolicy
from headrace_cluster.config.models import ModelConfig
from headrace_cluster.config.pools import PoolConfig
from headrace_cluster.config.settings import ServiceConfig
from headrace_cluster.scheduling.cost_model import CPU_PRIOR, GPU_PRIOR, SLOT_PRIOR, Coefficients

__all__ = ["scaling_plan"]


def scaling_plan(config: ServiceConfig) -> ScalingPlan:
    """All models and pools of a service. Those of fixed size are in it, for they do a part of the work."""
    own = [
        _pool(f"{model}@{pool.name}", pool, [hosted])
        for model, hosted in config.models.items()
        for pool in hosted.own_pools
    ]
    shared = [
        _pool(f"@{name}", pool, sharing)
        for name, pool in config.shared_pools.items()
        if (sharing := [*config.sharing(name).values()])
    ]
    models = tuple(_model(*item) for item in config.models.items())
    return ScalingPlan(models, (*own, *shared), metrics=config.metrics.enabled, logs=config.logs)


def _model(name: str, hosted: ModelConfig) -> ModelPlan:
    pools = tuple(f"@{pool.shared}" if pool.shared is not None else f"{name}@{pool.name}" for pool in hosted.pools)
    return ModelPlan(
        name,
        pools,
        shards=tuple(shard_names(name, hosted.shards)),
        max_jobs=hosted.batching.max_jobs,
        max_tokens=hosted.batching.max_tokens,
        slots=hosted.engine.slots if hosted.engine.generates else 0,
        drain_s=hosted.scaling.drain_s,
        idle_s=hosted.scaling.idle_s,
        utilisation=hosted.scaling.utilisation,
        ladder=_ladder(hosted),
    )


def _ladder(hosted: ModelConfig) -> LadderPolicy | None:
    if (adaptive := hosted.adaptive) is None:
        return None
    return LadderPolicy(adaptive.floor, adaptive.step_after_s, adaptive.back_after_s, hosted.scaling.drain_s)


def _pool(name: str, pool: PoolConfig, models: list[ModelConfig]) -> PoolPlan:
    """A pool that several models share cools down as slowly as the slowest of them asks for."""
    least, most = pool.bounds
    asked = [hosted.scaling.cool_down_s for hosted in models if hosted.scaling.cool_down_s is not None]
    return PoolPlan(
        name,
        least,
        most,
        cost=pool.cost,
        cool_down_s=max(asked, default=None),
        prior=_prior(pool, models),
        cpus=pool.cpus,
        gpus=pool.gpus,
        labels=dict(pool.labels),
    )


def _prior(pool: PoolConfig, models: list[ModelConfig]) -> Coefficients:
    if any(hosted.engine.generates for hosted in models):
        return SLOT_PRIOR
    return GPU_PRIOR if pool.gpus else CPU_PRIOR
