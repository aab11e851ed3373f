"""What is simulated: arrivals, sizes, deadlines, pools and what befalls them, as a file of YAML says it.

Every part has a value that means "none of it", so that a trace names only what it is about. A trace says what is
*true* of replicas (`work`); what the system believes of them it has to learn, as in production.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from headrace.errors import ConfigError
from headrace.ids import MODEL_PATTERN
from headrace_cluster.config.errors import describe
from headrace_cluster.config.file import read_yaml
from headrace_cluster.config.models import BatchingConfig, ScalingConfig

__all__ = [
    "Arrivals",
    "Bursts",
    "Deadlines",
    "Flood",
    "Loss",
    "ModelTrace",
    "PoolTrace",
    "ServeBaseline",
    "Sizes",
    "Tide",
    "Trace",
    "Work",
    "load_trace",
    "shipped_traces",
]

_FOLDER: Final = files("headrace_cluster.simulation") / "traces"

_Seconds = Annotated[float, Field(ge=0, le=30 * 86_400)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Rate = Annotated[float, Field(ge=0, le=1e6)]
_Positive = Annotated[float, Field(gt=0, le=1e6)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Bursts(_Part):
    """On and off by turns, each for an exponentially distributed time: a Markov-modulated Poisson process."""

    on_s: _Positive = 60.0
    off_s: _Positive = 60.0
    quiet: _Share = 1.0
    """The rate while off, as a share of that while on; 1: no bursts. The mean rate stays what it is."""
    together: bool = False
    """Whether all models burst at the same times."""


class Tide(_Part):
    """A rate that goes up and down as a sine does, like a day."""

    period_s: _Positive = 86_400.0
    swing: _Share = 0.0
    """How far it goes from the mean, as a share of it; 0: no tide."""


class Flood(_Part):
    """One tenant, `flood`, that submits much for a while, on top of everything else."""

    jobs_per_s: _Rate = 0.0
    from_s: _Seconds = 0.0
    to_s: _Seconds = 0.0


class Arrivals(_Part):
    """When jobs come: drawn, or as they were recorded."""

    jobs_per_s: _Rate = 0.0
    """The mean rate over all models."""
    bursts: Bursts = Bursts()
    tide: Tide = Tide()
    flood: Flood = Flood()
    recorded: Path | None = None
    """Lines of JSON with `offset_s`, `tokens`, and optionally `model`, `tenant`, `priority` and `deadline_s`, which
    counts from the job's submission. Beside it nothing is drawn; a relative path is seen from the trace's folder."""


class Sizes(_Part):
    """How large jobs are, in tokens."""

    kind: Literal["fixed", "lognormal", "pareto"] = "fixed"
    median: Annotated[float, Field(ge=1, le=1e6)] = 64.0
    sigma: Annotated[float, Field(gt=0, le=5)] = 0.8
    """Of the logarithm of a log-normal size."""
    alpha: Annotated[float, Field(gt=0.5, le=10)] = 1.5
    """The tail of a Pareto size: the smaller, the heavier."""
    most: Annotated[int, Field(ge=1, le=1 << 24)] = 4096
    """What is larger is cut to this."""


class Tenants(_Part):
    """Whom jobs are for."""

    count: Annotated[int, Field(ge=1, le=10_000)] = 1
    skew: Annotated[float, Field(ge=0, le=5)] = 0.0
    """Zipf's exponent of how unlike they are in how much they submit."""


class Deadlines(_Part):
    """How long after its submission a job is of use: between the two, evenly on a logarithmic scale."""

    share: _Share = 1.0
    """What part of the jobs has one."""
    least_s: _Positive = 30.0
    most_s: _Positive = 30.0

    @model_validator(mode="after")
    def _in_order(self) -> Deadlines:
        if self.least_s > self.most_s:
            raise ValueError("least_s must not be above most_s")
        return self


class Work(_Part):
    """What a replica of speed 1 really takes: seconds = batch_s + jobs · job_s + tokens · token_s."""

    batch_s: _Seconds = 0.005
    job_s: _Seconds = 0.0
    token_s: Annotated[float, Field(ge=0, le=60)] = 100e-6
    noise: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Sigma of the log-normal factor, of mean 1, by which a job's own part differs from that."""
    slow_share: _Share = 0.0
    """What part of the batches is a straggler's, which takes `slow_factor` times as long."""
    slow_factor: Annotated[float, Field(ge=1, le=1000)] = 10.0
    slots: Annotated[int, Field(ge=0, le=4096)] = 0
    """Jobs that a replica runs at once and that end one by one, as one that generates has; 0: batches, in turn."""

    @model_validator(mode="after")
    def _takes_time(self) -> Work:
        if not (self.batch_s or self.job_s or self.token_s):
            raise ValueError("one of batch_s, job_s and token_s must be above 0")
        return self


class PoolTrace(_Part):
    """Replicas of each model on one kind of hardware."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")] = "cpu"
    min_replicas: Annotated[int, Field(ge=0, le=100_000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=100_000)] = 1
    cost: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """What a second of one replica costs."""
    speed: _Positive = 1.0
    """How many times as fast as `work` says."""
    start_up_s: _Seconds = 5.0
    """From the decision until a replica takes work; it is paid for."""
    batches_per_replica: Annotated[int, Field(ge=1, le=16)] = 2
    """Batches that a router may have at one replica."""

    @model_validator(mode="after")
    def _in_order(self) -> PoolTrace:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas must not be above max_replicas")
        return self


class Loss(_Part):
    """A part of a pool's replicas dies at once, as when nodes go; Serve starts others in their place."""

    at_s: _Seconds
    pool: str = "cpu"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5


class ModelTrace(_Part):
    """One model that is unlike the others; what is not said is as for all."""

    name: Annotated[str, Field(pattern=MODEL_PATTERN)]
    share: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Of the arrivals, in proportion to the others'."""
    sizes: Sizes | None = None
    deadlines: Deadlines | None = None
    work: Work | None = None
    batching: BatchingConfig | None = None
    pools: Annotated[tuple[PoolTrace, ...], Field(min_length=1)] | None = None


class ServeBaseline(_Part):
    """How Serve itself is set up beside ours: its defaults, but for a target that fits batches."""

    target_ongoing_requests: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """0: as many as a batch holds."""
    look_back_period_s: _Seconds = 30.0
    upscale_delay_s: _Seconds = 30.0
    downscale_delay_s: _Seconds = 600.0
    batch_wait_timeout_s: _Seconds = 0.01


class Trace(_Part):
    """The whole of it."""

    title: str = ""
    about: str = ""
    seed: Annotated[int, Field(ge=0)] = 1
    duration_s: _Seconds = 0.0
    """How long jobs arrive. Either this or `jobs`."""
    jobs: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    """How many arrive; they take as long as their rate says."""
    models: Annotated[int, Field(ge=1, le=10_000)] = 1
    """How many, all alike."""
    skew: Annotated[float, Field(ge=0, le=5)] = 0.0
    """Zipf's exponent of how unlike they are in how much comes for them."""
    mix: tuple[ModelTrace, ...] = ()
    """Models that are not alike, in place of a number of them."""
    arrivals: Arrivals
    sizes: Sizes = Sizes()
    tenants: Tenants = Tenants()
    priorities: tuple[_Share, _Share, _Share] = (0.0, 1.0, 0.0)
    """What part of the jobs is of high, normal and low priority, in proportion to the others."""
    deadlines: Deadlines = Deadlines()
    work: Work = Work()
    batching: BatchingConfig = BatchingConfig()
    pools: Annotated[tuple[PoolTrace, ...], Field(min_length=1)] = (PoolTrace(),)
    losses: tuple[Loss, ...] = ()
    scaling: ScalingConfig = ScalingConfig()
    """Towards what our autoscaler scales, as `scaling` of a configuration."""
    measured: bool = True
    """Whether the cost models begin with what work really takes, as after a restart; else they know nothing."""
    overhead_s: Annotated[float, Field(ge=0, le=60)] = 0.004
    """What a batch takes beside its run: the call, and writing the answers."""
    serve: ServeBaseline = ServeBaseline()

    @model_validator(mode="after")
    def _says_how_much(self) -> Trace:
        recorded = self.arrivals.recorded is not None
        if recorded and (self.duration_s or self.jobs or self.arrivals.jobs_per_s):
            raise ValueError("a recorded trace says itself how much comes: leave out duration_s, jobs and jobs_per_s")
        if not recorded and not self.arrivals.jobs_per_s:
            raise ValueError("arrivals.jobs_per_s must be above 0, or arrivals.recorded name a file")
        if not recorded and bool(self.duration_s) == bool(self.jobs):
            raise ValueError("one of duration_s and jobs must be given, and only one")
        return self

    @model_validator(mode="after")
    def _names_fit(self) -> Trace:
        if not any(self.priorities):
            raise ValueError("priorities must not all be 0")
        names = [model.name for model in self.named_models]
        if len(set(names)) < len(names):
            raise ValueError(f"two models have one name: {sorted(names)}")
        pools = {pool.name for model in self.named_models for pool in model.pools or self.pools}
        if unknown := {loss.pool for loss in self.losses} - pools:
            raise ValueError(f"losses: there is no pool {', '.join(sorted(unknown))}; there are {sorted(pools)}")
        return self

    @property
    def named_models(self) -> tuple[ModelTrace, ...]:
        """Every model, with its share of the arrivals."""
        return self.mix or tuple(
            ModelTrace(name=f"model-{rank:03d}", share=1 / rank**self.skew) for rank in range(1, self.models + 1)
        )

    @property
    def horizon_s(self) -> float:
        """How long jobs are drawn for; 0 for recorded ones."""
        return self.duration_s or (self.jobs / self.arrivals.jobs_per_s if self.jobs else 0.0)


def shipped_traces() -> dict[str, Path]:
    """The traces that come with the package, by name."""
    folder = Path(str(_FOLDER))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load_trace(name: str | Path) -> Trace:
    """Read a file, or a trace that comes with the package.

    Raises:
        ConfigError: naming the file and every key that is wrong.
    """
    file = Path(name)
    if not file.suffix and not file.exists():
        known = shipped_traces()
        if str(name) not in known:
            raise ConfigError(f"there is no trace {str(name)!r}: name a file, or one of {', '.join(known)}")
        file = known[str(name)]
    trace = parse_trace(read_yaml(file), str(file))
    recorded = trace.arrivals.recorded
    if recorded is None:
        return trace
    arrivals = trace.arrivals.model_copy(update={"recorded": file.parent / recorded})
    return trace.model_copy(update={"arrivals": arrivals})


def parse_trace(content: dict[str, Any], origin: str = "trace") -> Trace:
    """Check what a file holds.

    Raises:
        ConfigError: naming every key that is wrong.
    """
    try:
        # By way of JSON, whose strict rules know lists for tuples, but neither "2" nor true for 2.
        return Trace.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {'; '.join(words for _, words in describe(error, Trace))}") from None
