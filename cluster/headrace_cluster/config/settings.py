"""What a service is told: which models it hosts, where, how their jobs are grouped, and which Redis it serves.

Priority, highest first: command line, environment (`HEADRACE_…`, `__` between levels), YAML file, default.
An unknown key is refused by its name, in the file and in the environment alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError, model_validator

from headrace.ids import MODEL_PATTERN
from headrace.models.shards import model_of, shard_names
from headrace.server.check import Checks, Durability
from headrace_cluster.config.file import read_yaml
from headrace_cluster.config.models import ModelConfig
from headrace_cluster.config.pools import POOL_PATTERN, PoolConfig, SharedPoolConfig
from headrace_cluster.config.sources import ConfigSources
from headrace_cluster.config.strict import StrictConfig
from headrace_cluster.redis_address import RedisAddress
from headrace_workers.telemetry.observability import LogsConfig, MetricsConfig, Observability, TracingConfig

__all__ = ["RedisConfig", "RouterConfig", "ServiceConfig", "load_config"]


class RouterConfig(StrictConfig):
    """The routers, which share the lanes between them."""

    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Router processes. Each routes every model; more than one share the lanes."""
    cpus: Annotated[float, Field(gt=0, le=64)] = 1.0
    """Cores that Ray sets aside for one router."""
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)
    """What the labels of a node must be for a router to run there, as Ray's `label_selector` takes them."""
    drain_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """How long a router that is stopped may take to finish what it holds."""


class RedisConfig(StrictConfig):
    """What the service asks of its Redis server when it starts."""

    checks: Checks = "error"
    """What becomes of a server that does not fit: `error` refuses to start, `warn` says so and goes on, `off` does not
    look."""
    durability: Durability | None = None
    """The least that the server must keep through a crash: `always`, `everysec` or `none`. Unset, whatever it has will
    do, with a warning where that is nothing."""
    url_file: Path | None = None
    """A file that holds the URL, in place of `redis_url`: a mounted secret, say. Every process reads it where it runs,
    so that the password is neither in this configuration nor in Ray."""
    ca_file: Path | None = None
    """The certificate of the authority that the server's certificate must be of. Unset, those that the machine
    trusts."""
    cert_file: Path | None = None
    """Our own certificate, where the server asks for one."""
    key_file: Path | None = None
    """The key of `cert_file`, unless it is in there."""


class ServiceConfig(StrictConfig):
    """The whole service. It is checked as it is given; `load_config` puts it together from its sources."""

    redis_url: SecretStr = SecretStr("")
    """The Redis server: `redis://`, `unix://`, `redis+sentinel://` or `redis+cluster://`; `rediss…` for TLS. Empty:
    `headrace serve` starts a server of its own, and a deployed service refuses to start."""
    models: Annotated[dict[Annotated[str, Field(pattern=MODEL_PATTERN)], ModelConfig], Field(min_length=1)]
    """What is hosted, by the name under which producers know it."""
    shared_pools: dict[Annotated[str, Field(pattern=POOL_PATTERN)], SharedPoolConfig] = Field(default_factory=dict)
    """Pools in which several models run, by the names that `models.<name>.pools[].shared` gives."""
    generation: Annotated[int, Field(ge=1, lt=1 << 53)] | None = None
    """Where several applications are on one Redis, the one with the highest number reads, once it can run jobs. Unset:
    when it was built, in Unix milliseconds, so that the newest reads."""
    router: RouterConfig = RouterConfig()
    """The routers, which share all lanes."""
    redis: RedisConfig = RedisConfig()
    """How the Redis server is reached, and what it must be like."""
    metrics: MetricsConfig = MetricsConfig()
    """What is counted and measured (docs/observability.md)."""
    tracing: TracingConfig = TracingConfig()
    """Spans of single jobs."""
    logs: LogsConfig = LogsConfig()
    """What the processes write."""

    @property
    def observability(self) -> Observability:
        """How the service is watched, as every process of it is told."""
        return Observability(metrics=self.metrics, tracing=self.tracing, logs=self.logs)

    @model_validator(mode="after")
    def _shards_have_no_shards(self) -> ServiceConfig:
        for name, hosted in self.models.items():
            if hosted.shards > 1 and model_of(name) != name:
                raise ValueError(f"models: {name!r} names one shard of {model_of(name)!r}, and has none of its own")
        return self

    @model_validator(mode="after")
    def _shared_pools_exist(self) -> ServiceConfig:
        for name, hosted in self.models.items():
            if hosted.shared_pool not in {None, *self.shared_pools}:
                known = ", ".join(sorted(self.shared_pools)) or "none"
                raise ValueError(f"models.{name}: there is no shared pool {hosted.shared_pool!r}; there is {known}")
            for pool in hosted.own_pools:
                if "name" in pool.model_fields_set and pool.name in self.shared_pools:
                    raise ValueError(
                        f"models.{name}: {pool.name!r} is the name of a shared pool; write shared: {pool.name}, or"
                        " call the model's own pool something else"
                    )
        return self

    def sharing(self, pool: str) -> dict[str, ModelConfig]:
        """The models of a shared pool."""
        return {name: hosted for name, hosted in self.models.items() if hosted.shared_pool == pool}

    @property
    def pools(self) -> dict[str, PoolConfig]:
        """All pools, by the names of their deployments: `minilm@cpu`, and `@all` where it is shared."""
        own = {f"{model}@{pool.name}": pool for model, hosted in self.models.items() for pool in hosted.own_pools}
        return own | {f"@{name}": pool for name, pool in self.shared_pools.items()}

    def pools_of(self, model: str) -> tuple[PoolConfig, ...]:
        """All pools in which a model runs; a shared one as it is said there."""
        hosted = self.models[model]
        return tuple(pool if pool.shared is None else self.shared_pools[pool.shared] for pool in hosted.pools)

    @property
    def may_rest(self) -> frozenset[str]:
        """Names in Redis of models that may have no replica at all, until a job comes."""
        return frozenset(
            name
            for model, hosted in self.models.items()
            if any(pool.bounds[0] == 0 for pool in self.pools_of(model))
            for name in shard_names(model, hosted.shards)
        )

    @property
    def redis_address(self) -> RedisAddress:
        """Where Redis is; false if nobody has said so."""
        return RedisAddress(
            self.redis_url,
            url_file=self.redis.url_file,
            ca_file=self.redis.ca_file,
            cert_file=self.redis.cert_file,
            key_file=self.redis.key_file,
        )


def load_config(file: Path | dict[str, Any] | None = None, *, overrides: dict[str, Any] | None = None) -> ServiceConfig:
    """Read, merge and check the configuration.

    Args:
        file: a YAML file, or what one would hold.
        overrides: what the command line says; outranks everything.

    Raises:
        ConfigError: naming the source and the key of everything that is wrong, and what is wrong about it.
    """
    name, content = (str(file), read_yaml(file)) if isinstance(file, Path) else ("configuration", file or {})
    sources = ConfigSources(list(ServiceConfig.model_fields), name)
    sources.add(content, name)
    sources.add_environment()
    sources.add(overrides or {}, "command line")
    try:
        # By way of JSON, whose strict rules know lists for tuples, but neither "2" nor true for 2.
        return ServiceConfig.model_validate_json(json.dumps(sources.content, default=str), strict=True)
    except ValidationError as error:
        raise sources.explain(error, ServiceConfig) from None
