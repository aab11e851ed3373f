"""Times that must fit into each other: a batch into the drain, the drain into the pod's grace, both into an upgrade.

A pod that is told to go drains for RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S seconds, 30 if nobody says otherwise, and is
killed at the end of its grace, which is 30 as well if nobody says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from deploy.manifests import Group, Manifests

__all__ = ["findings"]

_DRAIN: Final = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
_MARGIN_S: Final = 20
_SPOT_NOTICE_S: Final = 120


def findings(manifests: Manifests) -> Iterator[str]:
    """What would be cut short."""
    drains = []
    for group in (manifests.head, *manifests.groups):
        drain = group.pod.environment.get(_DRAIN)
        grace = group.pod.spec.get("terminationGracePeriodSeconds", 30)
        if drain is None:
            yield f"{group.pod.name} does not say {_DRAIN}"
            continue
        drains.append(float(drain))
        if grace < float(drain) + _MARGIN_S:
            yield f"{group.pod.name}: a grace of {grace} s is too short for a drain of {drain} s and {_MARGIN_S} s more"
        longest = _longest_batch_s(manifests, group)
        if longest and float(drain) < longest + _MARGIN_S:
            yield f"{group.pod.name}: a drain of {drain} s is too short for what takes {longest:g} s"
        if group.labels.get("headrace.io/capacity") == "spot" and grace > _SPOT_NOTICE_S:
            yield f"{group.pod.name}: a spot node is gone after {_SPOT_NOTICE_S} s, its grace is {grace} s"
    delay = manifests.service["spec"].get("rayClusterDeletionDelaySeconds", 60)
    if delay < max(drains, default=0):
        yield f"the old cluster is deleted after {delay} s, and its nodes drain for {max(drains):g} s"


def _longest_batch_s(manifests: Manifests, group: Group) -> float:
    """The longest that anything on the group's nodes may take to end in order."""
    models = manifests.models.models
    times = [0.0]
    for deployment in manifests.application.get("deployments", []):
        if group.suits(deployment.get("ray_actor_options", {}).get("label_selector") or {}):
            model = deployment["name"].partition("@")[0]
            if deployment["name"] == "router":
                times.append(manifests.models.router.drain_s + 5)
            elif model in models:
                times.append(models[model].call_timeout_s)
    return max(times) if group is not manifests.head else 0.0
