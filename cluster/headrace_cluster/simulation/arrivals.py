"""The jobs of a trace, drawn before the clock starts: one set of arrays for each model.

Everything random about a job is drawn here, its own run time included, so that all policies, and the oracle, are
given the very same jobs.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ConfigError
from headrace.messages.job import PRIORITIES
from headrace_cluster.simulation.trace import Deadlines, ModelTrace, Sizes, Trace

__all__ = ["FLOOD", "ModelArrivals", "draw_arrivals"]

FLOOD: Final = "flood"
_TIDE_STEPS: Final = 96
"""Into how many pieces of constant rate a tide's period is cut."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ModelArrivals:
    """The jobs of one model in the order they come; element i of each array is of job i."""

    model: str
    offset_s: Floats
    tokens: Ints
    tenant: Ints
    """Indices into `tenants`."""
    tenants: tuple[str, ...]
    priority: Ints
    deadline_s: Floats
    """By the same clock as `offset_s`; infinite where there is none."""
    effort: Floats
    """By what factor the job's own part of the work differs from what its tokens say."""

    def __len__(self) -> int:
        return len(self.offset_s)


def draw_arrivals(trace: Trace) -> list[ModelArrivals]:
    """Draw every model's jobs, or read those that were recorded.

    Raises:
        ConfigError: a recorded file that is not what it should be.
    """
    if trace.arrivals.recorded is not None:
        return _recorded(trace, trace.arrivals.recorded)
    models = trace.named_models
    shares = np.array([model.share for model in models])
    shares /= shares.sum()
    together = _generator(trace.seed, "together")
    bursts = _burst_edges(trace, together) if trace.arrivals.bursts.together else None
    counts: Iterable[int | None] = (
        map(int, _generator(trace.seed, "counts").multinomial(trace.jobs, shares))
        if trace.jobs
        else [None] * len(models)
    )
    return [
        _draw_model(trace, model, float(share), count, bursts)
        for model, share, count in zip(models, shares, counts, strict=True)
    ]


def _generator(seed: int, name: str) -> np.random.Generator:
    """Of its own for each name, so that a model's jobs do not change with what other models there are."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _draw_model(
    trace: Trace, model: ModelTrace, share: float, count: int | None, bursts: tuple[Floats, Floats] | None
) -> ModelArrivals:
    draw = _generator(trace.seed, model.name)
    edges, rates = bursts or _burst_edges(trace, draw)
    edges, rates = _with_tide(trace, edges, rates)
    expected = np.concatenate(([0.0], np.cumsum(rates * np.diff(edges)))) * trace.arrivals.jobs_per_s * share
    number = int(draw.poisson(expected[-1])) if count is None else count
    offset_s = np.interp(np.sort(draw.uniform(0.0, expected[-1], number)), expected, edges)
    tenants = tuple(f"t{n}" for n in range(trace.tenants.count))
    weights = 1.0 / np.arange(1, len(tenants) + 1) ** trace.tenants.skew
    tenant = draw.choice(len(tenants), size=number, p=weights / weights.sum())
    offset_s, tenant, tenants = _with_flood(trace, share, draw, offset_s, tenant, tenants)
    return _jobs(trace, model, draw, offset_s, tenant, tenants)


def _burst_edges(trace: Trace, draw: np.random.Generator) -> tuple[Floats, Floats]:
    """Times between which the rate is constant, and the rates, as multiples of the mean."""
    bursts, horizon_s = trace.arrivals.bursts, trace.horizon_s
    if bursts.quiet == 1.0:
        return np.array([0.0, horizon_s]), np.array([1.0])
    cycles = 2 + int(3 * horizon_s / (bursts.on_s + bursts.off_s))
    lengths_s = draw.exponential([bursts.on_s, bursts.off_s], (cycles, 2)).ravel()
    while lengths_s.sum() < horizon_s:
        lengths_s = np.concatenate((lengths_s, draw.exponential([bursts.on_s, bursts.off_s], (cycles, 2)).ravel()))
    on_share = bursts.on_s / (bursts.on_s + bursts.off_s)
    peak = 1.0 / (on_share + (1 - on_share) * bursts.quiet)
    starts_on = bool(draw.random() < on_share)
    lengths_s = lengths_s if starts_on else lengths_s[1:]
    edges = np.concatenate(([0.0], np.cumsum(lengths_s)))
    edges = np.append(edges[edges < horizon_s], horizon_s)
    on = (np.arange(len(edges) - 1) % 2 == 0) == starts_on
    return edges, np.where(on, peak, peak * bursts.quiet)


def _with_tide(trace: Trace, edges: Floats, rates: Floats) -> tuple[Floats, Floats]:
    tide = trace.arrivals.tide
    if not tide.swing:
        return edges, rates
    grid = np.arange(0.0, trace.horizon_s, tide.period_s / _TIDE_STEPS)
    cut = np.unique(np.concatenate((edges, grid)))
    middle = (cut[:-1] + cut[1:]) / 2
    of_burst = rates[np.searchsorted(edges, middle, side="right") - 1]
    # It begins at the mean and rises, so that the first thing that happens is not the peak.
    return cut, of_burst * (1 + tide.swing * np.sin(2 * np.pi * middle / tide.period_s))


def _with_flood(
    trace: Trace, share: float, draw: np.random.Generator, offset_s: Floats, tenant: Ints, tenants: tuple[str, ...]
) -> tuple[Floats, Ints, tuple[str, ...]]:
    flood = trace.arrivals.flood
    lasts_s = flood.to_s - flood.from_s
    if not flood.jobs_per_s or lasts_s <= 0:
        return offset_s, tenant, tenants
    number = int(draw.poisson(flood.jobs_per_s * share * lasts_s))
    offset_s = np.concatenate((offset_s, draw.uniform(flood.from_s, flood.to_s, number)))
    tenant = np.concatenate((tenant, np.full(number, len(tenants))))
    order = np.argsort(offset_s, kind="stable")
    return offset_s[order], tenant[order], (*tenants, FLOOD)


def _jobs(
    trace: Trace,
    model: ModelTrace,
    draw: np.random.Generator,
    offset_s: Floats,
    tenant: Ints,
    tenants: tuple[str, ...],
) -> ModelArrivals:
    number = len(offset_s)
    weights = np.array(trace.priorities)
    return ModelArrivals(
        model=model.name,
        offset_s=offset_s,
        tokens=_tokens(model.sizes or trace.sizes, draw, number),
        tenant=tenant,
        tenants=tenants,
        priority=draw.choice(3, size=number, p=weights / weights.sum()),
        deadline_s=offset_s + _slack_s(model.deadlines or trace.deadlines, draw, number),
        effort=_effort((model.work or trace.work).noise, draw, number),
    )


def _tokens(sizes: Sizes, draw: np.random.Generator, number: int) -> Ints:
    if sizes.kind == "fixed":
        tokens = np.full(number, sizes.median)
    elif sizes.kind == "lognormal":
        tokens = sizes.median * np.exp(sizes.sigma * draw.standard_normal(number))
    else:
        tokens = sizes.median / 2 ** (1 / sizes.alpha) * (1 + draw.pareto(sizes.alpha, number))
    return np.asarray(np.clip(np.rint(tokens), 1, sizes.most), dtype=np.int64)


def _slack_s(deadlines: Deadlines, draw: np.random.Generator, number: int) -> Floats:
    slack_s = deadlines.least_s * (deadlines.most_s / deadlines.least_s) ** draw.random(number)
    return np.where(draw.random(number) < deadlines.share, slack_s, np.inf)


def _effort(sigma: float, draw: np.random.Generator, number: int) -> Floats:
    return np.exp(sigma * draw.standard_normal(number) - sigma**2 / 2)


# -- recorded -------------------------------------------------------------------------------------------------


def _recorded(trace: Trace, file: Path) -> list[ModelArrivals]:
    """Every model's lines, in the order of their offsets. What a trace says of sizes and the like is not used."""
    known = {model.name: model for model in trace.named_models}
    first = next(iter(known))
    rows: dict[str, list[Mapping[str, Any]]] = {name: [] for name in known}
    for number, row in _rows(file):
        name = row.get("model", first)
        if name not in known:
            raise ConfigError(f"{file}: line {number}: the trace has no model {name!r}; it has {', '.join(known)}")
        rows[name].append(row)
    return [_recorded_model(trace, known[name], of_model) for name, of_model in rows.items()]


def _rows(file: Path) -> Iterable[tuple[int, Mapping[str, Any]]]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                if fault := _fault(row):
                    raise ValueError(fault)
            except ValueError as error:
                raise ConfigError(f"{file}: line {number}: {error}") from None
            yield number, row


def _fault(row: Any) -> str:
    """What is wrong with a line; empty if nothing is."""
    if not isinstance(row, dict):
        return "must be an object with offset_s and tokens"
    if unknown := set(row) - {"offset_s", "tokens", "model", "tenant", "priority", "deadline_s"}:
        return f"there is no such key: {', '.join(sorted(unknown))}"
    for key, least in (("offset_s", 0.0), ("tokens", 1)):
        if not _is_number(row.get(key)) or row[key] < least:
            return f"{key} must be a number of at least {least:g}"
    if row.get("deadline_s") is not None and (not _is_number(row["deadline_s"]) or row["deadline_s"] <= 0):
        return "deadline_s must be a number above 0"
    if row.get("priority", "normal") not in PRIORITIES:
        return f"priority must be one of {', '.join(PRIORITIES)}"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _recorded_model(trace: Trace, model: ModelTrace, rows: list[Mapping[str, Any]]) -> ModelArrivals:
    rows = sorted(rows, key=lambda row: float(row["offset_s"]))
    tenants = tuple(dict.fromkeys(str(row.get("tenant", "")) for row in rows)) or ("",)
    index = {name: number for number, name in enumerate(tenants)}
    offset_s = np.array([row["offset_s"] for row in rows], dtype=np.float64)
    slack_s = [row["deadline_s"] if row.get("deadline_s") is not None else np.inf for row in rows]
    return ModelArrivals(
        model=model.name,
        offset_s=offset_s,
        tokens=np.array([int(row["tokens"]) for row in rows], dtype=np.int64),
        tenant=np.array([index[str(row.get("tenant", ""))] for row in rows], dtype=np.int64),
        tenants=tenants,
        priority=np.array([PRIORITIES.index(row.get("priority", "normal")) for row in rows], dtype=np.int64),
        deadline_s=offset_s + np.array(slack_s, dtype=np.float64),
        effort=_effort((model.work or trace.work).noise, _generator(trace.seed, model.name), len(rows)),
    )
