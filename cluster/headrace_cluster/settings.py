"""What a service is told: which models it hosts, where, how their jobs are grouped, and which Redis it serves.

Priority, highest first: command line, environment (`HEADRACE_…`, `__` between levels), YAML file, default.
An unknown key is refused by its name, in the file and in the environment alike.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from headrace.errors import ConfigError
from headrace.ids import MODEL_PATTERN
from headrace.messages.job import explain
from headrace.registry import Limits
from headrace_cluster.batch_former import FormingPolicy
from headrace_cluster.model_router import RoutingPolicy
from headrace_workers.engines.factory import EngineConfig

__all__ = ["BatchingConfig", "ModelConfig", "PoolConfig", "RouterConfig", "ServiceConfig", "load_config"]

_PREFIX: Final = "HEADRACE_"
_OTHER_VARIABLES: Final = frozenset(
    {"HEADRACE_ISA", "HEADRACE_NATIVE", "HEADRACE_CONFIG", "HEADRACE_LOG", "HEADRACE_HOME"}
)
"""Variables of ours that are not keys of the configuration."""


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class PoolConfig(_Config):
    """Replicas of one model on one kind of hardware."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")] = "cpu"
    replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """Cores of one replica; its engine uses as many threads, at least one."""
    gpus: Annotated[float, Field(ge=0, le=64)] = 0.0
    batches_per_replica: Annotated[int, Field(ge=1, le=16)] = 2
    """Batches one router may have at one replica: one runs, the others are prepared."""

    @property
    def threads(self) -> int:
        """Compute threads of one replica."""
        return max(1, int(self.cpus))


class BatchingConfig(_Config):
    """How a model's jobs are grouped."""

    max_jobs: Annotated[int, Field(ge=1, le=4096)] = 64
    max_tokens: Annotated[int, Field(ge=1, le=1 << 24)] = 4096
    """The work budget of a batch, in the engine's unit (tokens, where it has them)."""
    max_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 26)] = 3 << 20
    linger_ms: Annotated[float, Field(ge=0, le=60_000)] = 5.0
    """Shortest time between two batches that are not full; a lone job never waits."""
    patience_s: tuple[float, float, float] = (0.0, 1.0, 10.0)
    """For priorities high, normal and low: how long after submission a job without a deadline is due."""
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
            padded=self.padded,
        )


class ModelConfig(_Config):
    """One model that the service hosts."""

    engine: EngineConfig
    pools: Annotated[tuple[PoolConfig, ...], Field(min_length=1)] = (PoolConfig(),)
    batching: BatchingConfig = BatchingConfig()
    limits: Limits = Limits()
    call_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """How long a replica may take for one batch."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """How often a job is dispatched before it is answered with `pool_failed`."""

    @model_validator(mode="after")
    def _pools_have_names_of_their_own(self) -> ModelConfig:
        names = [pool.name for pool in self.pools]
        if len(set(names)) < len(names):
            raise ValueError(f"two pools have one name: {sorted(names)}")
        return self

    def to_policy(self) -> RoutingPolicy:
        """What the model's router is given."""
        return RoutingPolicy(
            forming=self.batching.to_policy(),
            limits=self.limits,
            batches_per_replica=max(pool.batches_per_replica for pool in self.pools),
            call_timeout_s=self.call_timeout_s,
            max_attempts=self.max_attempts,
        )


class RouterConfig(_Config):
    """The routers, which share the lanes between them."""

    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    cpus: Annotated[float, Field(gt=0, le=64)] = 1.0
    drain_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """How long a router that is stopped may take to finish what it holds."""


class ServiceConfig(BaseSettings):
    """The whole service."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=_PREFIX, env_nested_delimiter="__", protected_namespaces=()
    )

    redis_url: SecretStr = SecretStr("")
    """Empty: `headrace serve` starts a server of its own, and a deployed service refuses to start."""
    models: dict[Annotated[str, Field(pattern=MODEL_PATTERN)], ModelConfig] = Field(min_length=1)
    router: RouterConfig = RouterConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment outranks the file, which comes in as arguments; the command line is merged before."""
        return env_settings, init_settings


def load_config(file: Path | dict[str, Any] | None = None, *, overrides: dict[str, Any] | None = None) -> ServiceConfig:
    """Read, merge and check the configuration.

    Args:
        file: a YAML file, or what one would hold.
        overrides: what the command line says; outranks everything.

    Raises:
        ConfigError: naming the file, and each key that is wrong with what is wrong about it.
    """
    where = str(file) if isinstance(file, Path) else "configuration"
    content = _read(file) if isinstance(file, Path) else dict(file or {})
    _refuse_unknown_variables()
    try:
        config = ServiceConfig(**content)
        if overrides:
            config = ServiceConfig.model_validate(config.model_copy(update=overrides))
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, 'configuration')}") from None
    return config


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: must be a map with at least the key 'models'")
    return content


def _refuse_unknown_variables() -> None:
    known = {_PREFIX + name.upper() for name in ServiceConfig.model_fields}
    for variable in os.environ:
        if not variable.startswith(_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        if variable.partition("__")[0] not in known:
            raise ConfigError(
                f"environment: {variable} is no setting; known are {', '.join(sorted(known | _OTHER_VARIABLES))}"
            )
