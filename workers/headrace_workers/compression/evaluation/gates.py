"""Gates: what must be true of a result before it is an artifact, asked of figures that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from headrace.errors import RecipeError
from headrace_workers.artifacts.artifact import Task
from headrace_workers.compression.recipe import Gates

__all__ = ["check_gates", "failures"]


@dataclass(frozen=True)
class _Gate:
    figure: str
    """What it looks at, by the name it has in an artifact's metrics."""
    limit_is_most: bool
    advice: str
    tasks: frozenset[Task] | None = None
    """Those that have such a figure; None: all."""


_ROWS_OF_LOGITS: Final[frozenset[Task]] = frozenset(
    {"sequence_classification", "token_classification", "causal_lm", "custom"}
)
_GENTLER: Final = "cut less, train longer, or leave sensitive layers in full precision"

_GATES: Final[dict[str, _Gate]] = {
    "max_metric_drop": _Gate("metric_drop", True, _GENTLER),
    "min_cosine_mean": _Gate("cosine_mean", False, _GENTLER, frozenset({"embedding"})),
    "min_agreement": _Gate("agreement", False, _GENTLER),
    "max_kl": _Gate("kl", True, _GENTLER, _ROWS_OF_LOGITS),
    "max_perplexity_ratio": _Gate("perplexity_ratio", True, _GENTLER, frozenset({"causal_lm"})),
    "min_speedup": _Gate("speedup", False, "use fewer layers or narrower ones, or ask for less on this node"),
    "max_size_ratio": _Gate("size_ratio", True, "store embeddings in int8, use fewer bits, or a smaller student"),
}
_VARIES: Final = "use dynamic activations per token and no overrides in floating point, or drop the gate"


def check_gates(gates: Gates, task: Task) -> None:
    """Refuse gates that no result could pass, before any work is done.

    Raises:
        RecipeError: a gate asks for a figure that models of this task do not have.
    """
    for name, gate in _GATES.items():
        if getattr(gates, name) is not None and gate.tasks is not None and task not in gate.tasks:
            raise RecipeError(
                f"gates.{name} cannot be met: a model for {task} has no {gate.figure}; drop it, or use max_metric_drop"
            )


def failures(gates: Gates, metrics: Mapping[str, float | None]) -> list[str]:
    """What of a recipe's gates is not met, each with value, limit and what to change; empty if all are.

    Args:
        gates: of the recipe.
        metrics: figures by name; `batch_invariant` is 1 or 0. A figure that is missing or None fails its gate.
    """
    found = [_failure(name, gate, getattr(gates, name), metrics.get(gate.figure)) for name, gate in _GATES.items()]
    if gates.batch_invariant and not metrics.get("batch_invariant"):
        distance = metrics.get("batch_distance") or 0.0
        found.append(f"batch_invariant: an answer changes by {distance:.2g} with its batch mates; {_VARIES}")
    return [failure for failure in found if failure]


def _failure(name: str, gate: _Gate, limit: float | None, value: float | None) -> str:
    if limit is None:
        return ""
    if value is None:
        return f"{name}: {gate.figure} was not measured; drop the gate, or have it measured"
    if value <= limit if gate.limit_is_most else value >= limit:
        return ""
    side = "above" if gate.limit_is_most else "below"
    return f"{name}: {gate.figure} is {value:.4g}, {side} {limit:.4g}; {gate.advice}"
