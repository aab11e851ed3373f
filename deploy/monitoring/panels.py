"""What the dashboard shows: three rows, one for each question that is asked of a queue.

`build.py` makes Grafana's JSON of it. Names of metrics come from the service's own catalogue, which raises for one
that it does not have.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.telemetry.metric_names import EXPORT_PREFIX, METRICS

__all__ = ["ROWS", "Panel", "Query", "Row"]


@dataclass(frozen=True)
class Query:
    """One query of a panel, and what its lines are called."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One graph, or one number."""

    title: str
    description: str
    unit: str
    """As Grafana names it: `s`, `short`, `percentunit`, `cps` …"""
    queries: tuple[Query, ...]
    is_number: bool = False
    red_above: float | None = None
    """From where on a number is red."""


@dataclass(frozen=True)
class Row:
    """Panels that answer one question."""

    question: str
    panels: tuple[Panel, ...]


_CHOSEN = {label: f'{label}=~"${label}"' for label in ("namespace", "model", "pool")}


def _of(name: str, *more: str, suffix: str = "") -> str:
    """A declared metric, of the namespaces, models and pools that are chosen above."""
    metric = METRICS[f"headrace_{name}"]
    chosen = [_CHOSEN["namespace"], *(_CHOSEN[label] for label in ("model", "pool") if label in metric.labels)]
    if "model" not in metric.labels and "pool" in metric.labels:  # the deployment's name, "model@pool" or "@pool"
        chosen[-1] = 'pool=~"(.*@)?($pool)"'
    return f"{EXPORT_PREFIX}{metric.name}{suffix}{{{', '.join([*chosen, *more])}}}"


def _rate(name: str, by: str = "model", *more: str, suffix: str = "") -> str:
    """How much a counter, or a sum or count of a histogram, grows a second."""
    metric = _of(name, *more, suffix=suffix) if suffix else _of(f"{name}_total", *more)
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


def _per_model(name: str, function: str = "max") -> str:
    return f"{function} by (model) ({_of(name)})"


def _quantiles(name: str, *shares: float, by: str = "model") -> tuple[Query, ...]:
    """The quantiles of a histogram."""
    buckets = f"sum by ({by}, le) (rate({_of(name, suffix='_bucket')}[$__rate_interval]))"
    return tuple(Query(f"histogram_quantile({share}, {buckets})", f"{{{{{by}}}}} p{share * 100:g}") for share in shares)


def _mean(name: str, by: str) -> str:
    """The mean of a histogram's values."""
    return f"{_rate(name, by, suffix='_sum')} / {_rate(name, by, suffix='_count')}"


_WAITING = f"sum by (model) (max by (model, priority) ({_of('waiting_jobs')}))"
_REPLICAS = f"max by (model, pool) ({_of('replicas')})"
_BUSY = _rate("run_seconds", "model, pool", suffix="_sum")

_KEEPING_UP = Row(
    "Is it keeping up?",
    (
        Panel(
            "Oldest waiting job",
            "How long the oldest job that no router has taken has waited. The first number to look at.",
            "s",
            (Query(f"max({_of('oldest_waiting_seconds')})", "oldest"),),
            is_number=True,
            red_above=300,
        ),
        Panel(
            "Jobs that wait",
            "Jobs in lanes that no router has taken yet.",
            "short",
            (Query(f"sum({_WAITING})", "waiting"),),
            is_number=True,
        ),
        Panel(
            "Time to drain",
            "How long what waits will take at the pace of the last minutes; no value while nothing is answered.",
            "s",
            (Query(f"sum({_WAITING}) / (sum({_rate('answered_jobs')}) > 0)", "drain"),),
            is_number=True,
            red_above=900,
        ),
        Panel(
            "Answers a second",
            "Jobs whose terminal entry was written.",
            "cps",
            (Query(f"sum({_rate('answered_jobs')})", "answered"),),
            is_number=True,
        ),
        Panel(
            "Backlog by priority",
            "Jobs that wait, by model and priority, and those that failed and wait for their next attempt.",
            "short",
            (
                Query(f"max by (model, priority) ({_of('waiting_jobs')})", "{{model}} {{priority}}"),
                Query(_per_model("delayed_jobs"), "{{model}} delayed"),
            ),
        ),
        Panel(
            "Pace",
            "Jobs read, sent to replicas and answered, a second, and batches. The lines part when it falls behind.",
            "cps",
            (
                Query(_rate("read_jobs"), "{{model}} read"),
                Query(_rate("dispatched_jobs"), "{{model}} sent"),
                Query(_rate("answered_jobs"), "{{model}} answered"),
                Query(_rate("batches", "model, pool"), "{{model}}@{{pool}} batches"),
            ),
        ),
        Panel(
            "Wait until dispatch",
            "From a job's submission until a router sent it to a replica.",
            "s",
            _quantiles("wait_seconds", 0.5, 0.95, 0.99),
        ),
        Panel(
            "Where a batch's time goes",
            "Means: forming it, computing it, writing its answers. What is left of a job's time is waiting.",
            "s",
            (
                Query(_mean("form_seconds", "namespace"), "form"),
                Query(_mean("run_seconds", "model, pool"), "run {{model}}@{{pool}}"),
                Query(_mean("answer_seconds", "model"), "answer {{model}}"),
            ),
        ),
        Panel(
            "Jobs in hand",
            "Jobs that routers hold and batches that replicas have; delivered is what Redis says of the former. All at"
            " zero while jobs wait: nobody reads.",
            "short",
            (
                Query(_per_model("delivered_jobs"), "{{model}} delivered"),
                Query(f"sum by (model) ({_of('router_held_jobs')})", "{{model}} held jobs"),
                Query(f"sum by (model) ({_of('in_flight_batches')})", "{{model}} batches under way"),
            ),
        ),
        Panel(
            "Size of batches",
            "Mean jobs and tokens of a batch. Small ones under load mean that jobs trickle in, or budgets are small.",
            "short",
            (
                Query(_mean("batch_jobs", "model"), "{{model}} jobs"),
                Query(_mean("batch_tokens", "model"), "{{model}} tokens"),
            ),
        ),
        Panel(
            "First token, and the next",
            "Of models that generate: from a generation's start to its first token, and the mean time between two.",
            "s",
            (
                *_quantiles("first_token_seconds", 0.95),
                Query(_mean("inter_token_seconds", "model"), "{{model}} between two"),
            ),
        ),
        Panel(
            "Decoders",
            "Sequences that are computed together, and pages for keys and values by state.",
            "short",
            (
                Query(f"sum by (model) ({_of('running_sequences')})", "{{model}} sequences"),
                Query(f"sum by (model, state) ({_of('kv_pages')})", "{{model}} pages {{state}}"),
            ),
        ),
        Panel(
            "Redis, as routers see it",
            "How long Redis took to answer a router's probe. Every job costs a few round trips.",
            "s",
            (Query(f"max({_of('redis_latency_seconds')})", "slowest router"),),
        ),
        Panel(
            "Cold start by phase",
            "How long the start of the slowest replica took: process, import, fetch, load, pack, first answer.",
            "s",
            (Query(f"max by (model, pool, phase) ({_of('cold_start_seconds')})", "{{model}}@{{pool}} {{phase}}"),),
        ),
    ),
)

_LOSING = Row(
    "Is it losing or repeating?",
    (
        Panel(
            "Audit difference",
            "Jobs submitted, less those finished, less those live. Anything but 0 is a lost job or a doubled answer.",
            "short",
            (Query(f"max(abs({_of('audit_difference_jobs')}))", "difference"),),
            is_number=True,
            red_above=1,
        ),
        Panel(
            "Dead letters",
            "Jobs that were given up and are kept, with their bytes, until somebody replays or drops them.",
            "short",
            (Query(f"sum({_per_model('dead_letters')})", "dead letters"),),
            is_number=True,
            red_above=1,
        ),
        Panel(
            "Live jobs",
            "Jobs that were submitted and have not ended, whoever has them.",
            "short",
            (Query(f"sum({_per_model('live_jobs')})", "live"),),
            is_number=True,
        ),
        Panel(
            "Routers without a lease",
            "Others may take over what such a router holds, and its work is then done twice.",
            "short",
            (Query(f"count({_of('lease_held')} == 0) or vector(0)", "without"),),
            is_number=True,
            red_above=1,
        ),
        Panel(
            "Ends that are no answer",
            "Jobs a second that expired, were called off, were set aside as a cause of crashes, or not understood.",
            "cps",
            (
                Query(_rate("expired_jobs"), "{{model}} expired"),
                Query(_rate("cancelled_jobs"), "{{model}} cancelled"),
                Query(_rate("dead_lettered_jobs"), "{{model}} dead"),
                Query(_rate("refused_jobs"), "{{model}} refused"),
            ),
        ),
        Panel(
            "Work that is done again",
            "Jobs a second that came back without an answer, were handed back for another attempt, had been answered by"
            " somebody else (late), or were taken over from a router that died.",
            "cps",
            (
                Query(_rate("returned_jobs"), "{{model}} returned"),
                Query(_rate("retried_jobs"), "{{model}} retried"),
                Query(_rate("late_jobs"), "{{model}} late"),
                Query(_rate("reaped_jobs"), "{{model}} reaped"),
            ),
        ),
        Panel(
            "Deaths and stragglers",
            "Batches a second whose replica died, and those that went to a second replica because the first was late.",
            "cps",
            (
                Query(_rate("replica_deaths"), "{{model}} replica died"),
                Query(_rate("hedged_batches"), "{{model}} hedged"),
            ),
        ),
        Panel(
            "Generation that reads",
            "Of the application, by model: a step is an upgrade, two lines for long are one that does not end.",
            "dateTimeAsIso",
            (
                Query(_per_model("generation"), "{{model}} newest"),
                Query(_per_model("generation", "min"), "{{model}} oldest"),
            ),
        ),
    ),
)

_COST = Row(
    "What does it cost?",
    (
        Panel(
            "Replicas",
            "Replicas that routers can send batches to, of all pools.",
            "short",
            (Query(f"sum({_REPLICAS})", "replicas"),),
            is_number=True,
        ),
        Panel(
            "Busy",
            "Share of the replicas' time spent on batches, about, for Ray adds up by buckets. Decoders are not in it.",
            "percentunit",
            (Query(f"sum({_BUSY}) / sum({_REPLICAS})", "busy"),),
            is_number=True,
        ),
        Panel(
            "Replica seconds for 1000 answers",
            "Replicas that stand ready, idle or not, over answers: what is paid for, over what is got.",
            "s",
            (Query(f"1000 * sum({_REPLICAS}) / (sum({_rate('answered_jobs')}) > 0)", "for 1000 answers"),),
            is_number=True,
        ),
        Panel(
            "Work that waits",
            "How long one replica would work on what waits, as predicted: what the autoscaler goes by.",
            "s",
            (Query(f"sum({_per_model('backlog_work_seconds')})", "work"),),
            is_number=True,
        ),
        Panel(
            "Replicas by pool",
            "Those that are there, and how many of them were busy on average.",
            "short",
            (
                Query(_REPLICAS, "{{model}}@{{pool}}"),
                Query(_BUSY, "{{model}}@{{pool}} busy"),
            ),
        ),
        Panel(
            "Replicas wanted, and why",
            "What the autoscaler wants of each pool, by its reason.",
            "short",
            (Query(f"max by (pool, reason) ({_of('replicas_wanted')})", "{{pool}} {{reason}}"),),
        ),
        Panel(
            "Changes of mind",
            "How often the autoscaler changed what it wants, by direction. Up and down in turn is flapping.",
            "cps",
            (Query(_rate("scaling_decisions", "pool, direction"), "{{pool}} {{direction}}"),),
        ),
        Panel(
            "Error of the cost model",
            "How far predicted run times were off, relative to the actual ones.",
            "percentunit",
            (Query(f"max by (model, pool) ({_of('cost_error_ratio')})", "{{model}}@{{pool}}"),),
        ),
        Panel(
            "Tokens for a second of computing",
            "How much a busy replica of each pool does.",
            "short",
            (Query(f"{_rate('tokens', 'model, pool')} / ({_BUSY} > 0)", "{{model}}@{{pool}}"),),
        ),
        Panel(
            "Padding that was not computed",
            "Tokens of padding a second that packed batches did without.",
            "cps",
            (Query(_rate("padding_tokens_avoided"), "{{model}}"),),
        ),
    ),
)

ROWS = (_KEEPING_UP, _LOSING, _COST)
