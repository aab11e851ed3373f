"""Whether there is a node that could ever hold a replica of a pool: asked for a GPU where there is none, say so.

It looks at whole nodes, not at what is free: what others use comes back. Where a cluster may grow, a node that fits
may still come, so this is a word of warning there and an error only where nothing can come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Node", "why_unplaceable"]


@dataclass(frozen=True, slots=True)
class Node:
    """What one node has."""

    cpus: float
    gpus: float
    labels: Mapping[str, str]

    @classmethod
    def living(cls, nodes: Iterable[Mapping[str, Any]]) -> list[Node]:
        """Those that live, of what `ray.nodes()` tells."""
        return [
            cls(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0), node.get("Labels") or {})
            for node in nodes
            if node["Alive"]
        ]


def why_unplaceable(cpus: float, gpus: float, labels: Mapping[str, str], nodes: Iterable[Node]) -> str:
    """Why none of these nodes can hold a replica that needs so much; empty if one can."""
    fitting = [node for node in nodes if all(_fits(node.labels.get(key), wish) for key, wish in labels.items())]
    if labels and not fitting:
        wishes = ", ".join(f"{key}={wish}" for key, wish in sorted(labels.items()))
        return f"it asks for a node with the labels {wishes}, and there is none"
    if any(node.gpus >= gpus and node.cpus >= cpus for node in fitting):
        return ""
    if gpus and not any(node.gpus >= gpus for node in fitting):
        most = max((node.gpus for node in fitting), default=0.0)
        return f"it asks for {gpus:g} GPU, and {_most(most)}"
    most = max((node.cpus for node in fitting if node.gpus >= gpus), default=0.0)
    return f"it asks for {cpus:g} CPU, and {_most(most)}"


def _most(most: float) -> str:
    return f"the most that a node has is {most:g}" if most else "no node has any"


def _fits(label: str | None, wish: str) -> bool:
    """Whether a node's label is what a selector of Ray's wishes: `x`, `!x`, `in(x,y)` or `!in(x,y)`."""
    negated, words = wish.startswith("!"), wish.removeprefix("!")
    if words.startswith("in(") and words.endswith(")"):
        wanted = {word.strip() for word in words[3:-1].split(",")}
    else:
        wanted = {words}
    return (label in wanted) != negated
