"""Whether what is to run finds a node that it fits on, and enough of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deploy.manifests import Group, Manifests

__all__ = ["findings"]


def findings(manifests: Manifests) -> Iterator[str]:
    """Replicas without a node, and nodes that are not what they should be."""
    selectors: dict[tuple[tuple[str, str], ...], list[dict[str, Any]]] = {}
    for deployment in manifests.application.get("deployments", []):
        options = deployment.get("ray_actor_options", {})
        wanted = _wanted(manifests, deployment["name"])
        selector = options.get("label_selector") or {}
        groups = [group for group in manifests.groups if group.suits(selector)]
        if not groups:
            yield f"{deployment['name']} wants nodes with {selector}, which no group has"
        for group in groups:
            if options.get("num_cpus", 1) > group.cpus or options.get("num_gpus", 0) > group.gpus:
                yield f"a replica of {deployment['name']} does not fit on a node of {group.name}"
        per_node = deployment.get("max_replicas_per_node")
        if per_node and wanted > per_node * sum(group.spec["maxReplicas"] for group in groups):
            yield f"{deployment['name']} wants {wanted} replicas on nodes of their own, which are too few"
        selectors.setdefault(tuple(sorted(selector.items())), []).append({**options, "replicas": wanted})
    for selector_items, demands in selectors.items():
        yield from _room(manifests, dict(selector_items), demands)
    for group in manifests.groups:
        yield from _hardware(group)
    if manifests.head.cpus:
        yield "the head offers CPUs; replicas there would go with it"


def _wanted(manifests: Manifests, name: str) -> int:
    """How many replicas of a deployment there are to be."""
    model, _, pool_name = name.partition("@")
    if name == "router":
        return manifests.models.router.replicas
    pools = manifests.models.models[model].pools if model in manifests.models.models else ()
    return sum(pool.replicas for pool in pools if pool.name == pool_name)


def _room(manifests: Manifests, selector: dict[str, str], demands: list[dict[str, Any]]) -> Iterator[str]:
    groups = [group for group in manifests.groups if group.suits(selector)]
    for option, resource in (("num_cpus", "cpus"), ("num_gpus", "gpus")):
        needed = sum(demand.get(option, 0) * demand["replicas"] for demand in demands)
        there = sum(getattr(group, resource) * group.spec["maxReplicas"] for group in groups)
        if needed > there:
            yield f"what runs on {selector} needs {needed:g} {resource}; its groups come to {there:g} at most"


def _hardware(group: Group) -> Iterator[str]:
    cuda = "cuda" in group.pod.container["image"]
    if bool(group.gpus) != cuda:
        yield f"{group.pod.name} has {group.gpus:g} GPUs and the image {group.pod.container['image']}"
    tolerated = any(found.get("key") == "nvidia.com/gpu" for found in group.pod.spec.get("tolerations", []))
    if group.gpus and not tolerated:
        yield f"{group.pod.name} does not tolerate the taint of GPU nodes"
    if group.labels.get("headrace.io/capacity") == "spot" and not group.pod.spec.get("nodeSelector"):
        yield f"{group.pod.name} is for spot nodes, and has no nodeSelector for them"
    if group.spec.get("idleTimeoutSeconds", 0) < 60:
        yield f"{group.pod.name}: idleTimeoutSeconds should be at least 60, or nodes come and go with every lull"
