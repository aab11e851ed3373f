"""What a service is told: which models it hosts, where, how their jobs are grouped, and which Redis it serves.

Priority, highest first: command line, environment (`HEADRACE_…`, `__` between levels), YAML file, default.
An unknown key is refused by its name, in the file and in the environment alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from headrace.ids import MODEL_PATTERN
from headrace.registry import Limits
from headrace.server_check import Checks, Durability
from headrace.shards import model_of
from headrace_cluster.batch_former import FormingPolicy
from headrace_cluster.config_file import read_yaml
from headrace_cluster.config_sources import ConfigSources
from headrace_cluster.redis_address import RedisAddress
from headrace_cluster.routing import RoutingPolicy
from headrace_workers.engines.factory import EngineConfig
from headrace_workers.generation.batch_call import LIFE_S

__all__ = ["BatchingConfig", "ModelConfig", "PoolConfig", "RedisConfig", "RouterConfig", "ServiceConfig", "load_config"]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class PoolConfig(_Config):
    """Replicas of one model on one kind of hardware."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")] = "cpu"
    """What tells the pools of a model apart: `cpu` of `minilm` is the Serve deployment `minilm@cpu`."""
    replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Processes that each hold the model."""
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """Cores of one replica; its engine uses as many threads, at least one."""
    gpus: Annotated[float, Field(ge=0, le=64)] = 0.0
    """GPUs of one replica, as Ray counts them; with any, the model runs there."""
    batches_per_replica: Annotated[int, Field(ge=1, le=16)] = 2
    """Batches one router may have at one replica: one runs, the others are prepared. Of an engine that generates it
    has as many jobs as there are `slots`, and a few that are prepared."""

    @property
    def threads(self) -> int:
        """Compute threads of one replica."""
        return max(1, int(self.cpus))

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where its engines run."""
        return "cuda" if self.gpus else "cpu"


_Patience = Annotated[float, Field(ge=0, le=86_400)]
_Share = Annotated[int, Field(ge=1, le=1_000_000)]


class BatchingConfig(_Config):
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


_SIGNS_OF_LIFE: Final = 5
"""How many a replica must have missed before it may be killed."""
_TO_FOLLOW: Final = 8
"""For how many jobs that generate another one is prepared, to take the place of whichever ends first."""


class ModelConfig(_Config):
    """One model that the service hosts."""

    engine: EngineConfig
    """What runs its jobs."""
    pools: Annotated[tuple[PoolConfig, ...], Field(min_length=1)] = (PoolConfig(),)
    """Where it runs; one entry for each kind of hardware."""
    batching: BatchingConfig = BatchingConfig()
    """How its jobs are grouped."""
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
    def _signs_of_life_come_in_time(self) -> ModelConfig:
        least_s = _SIGNS_OF_LIFE * LIFE_S
        if self.engine.generates and self.call_timeout_s < least_s:
            raise ValueError(
                f"call_timeout_s must be at least {least_s:g} for an engine that generates: it gives a sign of life"
                f" every {LIFE_S:g} s"
            )
        return self

    @property
    def jobs_per_replica(self) -> int:
        """Jobs of one that generates which one router may have there: those that run, and an eighth to follow them."""
        return self.engine.slots + -(-self.engine.slots // _TO_FOLLOW) if self.engine.generates else 0

    def to_policy(self) -> RoutingPolicy:
        """What the model's router is given."""
        return RoutingPolicy(
            forming=self.batching.to_policy(),
            limits=self.limits,
            shards=self.shards,
            batches_per_replica=max(pool.batches_per_replica for pool in self.pools),
            jobs_per_replica=self.jobs_per_replica,
            call_timeout_s=self.call_timeout_s,
            lone_failures=self.lone_failures,
        )


class RouterConfig(_Config):
    """The routers, which share the lanes between them."""

    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Router processes. Each routes every model; more than one share the lanes."""
    cpus: Annotated[float, Field(gt=0, le=64)] = 1.0
    """Cores that Ray sets aside for one router."""
    drain_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """How long a router that is stopped may take to finish what it holds."""


class RedisConfig(_Config):
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


class ServiceConfig(_Config):
    """The whole service. It is checked as it is given; `load_config` puts it together from its sources."""

    redis_url: SecretStr = SecretStr("")
    """The Redis server: `redis://`, `unix://`, `redis+sentinel://` or `redis+cluster://`; `rediss…` for TLS. Empty:
    `headrace serve` starts a server of its own, and a deployed service refuses to start."""
    models: Annotated[dict[Annotated[str, Field(pattern=MODEL_PATTERN)], ModelConfig], Field(min_length=1)]
    """What is hosted, by the name under which producers know it."""
    router: RouterConfig = RouterConfig()
    """The routers, which share all lanes."""
    redis: RedisConfig = RedisConfig()
    """How the Redis server is reached, and what it must be like."""

    @model_validator(mode="after")
    def _shards_have_no_shards(self) -> ServiceConfig:
        for name, hosted in self.models.items():
            if hosted.shards > 1 and model_of(name) != name:
                raise ValueError(f"models: {name!r} names one shard of {model_of(name)!r}, and has none of its own")
        return self

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
