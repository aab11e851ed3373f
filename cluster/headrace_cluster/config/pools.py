"""What is said of a pool: how many replicas, on what hardware, and at what price."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from headrace_cluster.config.strict import StrictConfig

__all__ = ["POOL_PATTERN", "PoolConfig", "SharedPoolConfig"]

POOL_PATTERN: Final = r"^[a-z0-9-]{1,32}$"


class PoolConfig(StrictConfig):
    """Replicas of one model on one kind of hardware."""

    name: Annotated[str, Field(pattern=POOL_PATTERN)] = "cpu"
    """What tells the pools of a model apart: `cpu` of `minilm` is the Serve deployment `minilm@cpu`."""
    replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Processes that each hold the model; a fixed number of them."""
    min_replicas: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """With `max_replicas`, in place of a fixed number: as many as the work needs, at least so many. 0: none where no
    job has come for `scaling.idle_s`; the next one starts it again."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """At most so many."""
    cost: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """What a second of one replica costs, in any unit that is the same for all pools: work goes where it is done in
    time for the least."""
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)
    """What the labels of a node must be for a replica to run there, as Ray's `label_selector` takes them."""
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """Cores of one replica; its engine uses as many threads, at least one."""
    gpus: Annotated[float, Field(ge=0, le=64)] = 0.0
    """GPUs of one replica, as Ray counts them; with any, the model runs there."""
    batches_per_replica: Annotated[int, Field(ge=1, le=16)] = 2
    """Batches one router may have at one replica: one runs, the others are prepared. Of an engine that generates it
    has as many jobs as there are `slots`, and a few that are prepared."""
    update: Literal["beside", "in_turn"] = "beside"
    """How its replicas are exchanged when it changes: `beside`, new ones start while the old go on, which needs room
    for both; `in_turn`, each makes room for its successor."""
    shared: Annotated[str, Field(pattern=POOL_PATTERN)] | None = None
    """A pool of `shared_pools`, where the model runs beside others; all else is said there."""

    @model_validator(mode="after")
    def _shared_pools_speak_for_themselves(self) -> PoolConfig:
        others = self.model_fields_set - {"shared"}
        if self.shared is not None and others:
            raise ValueError(f"{', '.join(sorted(others))}: set it in shared_pools.{self.shared}, for all its models")
        return self

    @model_validator(mode="after")
    def _bounds_fit(self) -> PoolConfig:
        if not {"min_replicas", "max_replicas"} & self.model_fields_set:
            return self
        if self.min_replicas is None or self.max_replicas is None:
            raise ValueError("min_replicas and max_replicas belong together: give both")
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas, {self.min_replicas}, is above max_replicas, {self.max_replicas}")
        if "replicas" in self.model_fields_set:
            raise ValueError("replicas is a fixed number: leave it out where there are min_replicas and max_replicas")
        return self

    @property
    def scales(self) -> bool:
        """Whether the number of its replicas follows the work."""
        return self.max_replicas is not None

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most replicas it may have."""
        if self.min_replicas is None or self.max_replicas is None:
            return self.replicas, self.replicas
        return self.min_replicas, self.max_replicas

    @property
    def threads(self) -> int:
        """Compute threads of one replica."""
        return max(1, int(self.cpus))

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where its engines run."""
        return "cuda" if self.gpus else "cpu"


class SharedPoolConfig(PoolConfig):
    """Replicas that several models share: each holds as many of them as there is memory for, those used last."""

    memory_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 46)]
    """Memory of one replica for its models, weights and caches together. What a model takes is what its files do."""

    @model_validator(mode="after")
    def _its_key_is_its_name(self) -> SharedPoolConfig:
        strangers = self.model_fields_set & {"name", "shared"}
        if strangers:
            raise ValueError(f"a shared pool has no {', '.join(sorted(strangers))}: its name is its key")
        return self
