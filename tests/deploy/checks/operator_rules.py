"""What KubeRay's operator refuses though its schema allows it: the rules of its `validation.go`, v1.7.0."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from deploy.manifests import Group, Manifests

__all__ = ["findings"]

_LONGEST_NAME: Final = 47
_LEAST_RAY_WITH_TOKENS: Final = (2, 52, 0)
_RESOURCES: Final = ("num-cpus", "num-gpus", "memory", "resources")
_LABEL_KEY: Final = r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL_VALUE: Final = r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"
_REDIS: Final = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")


def findings(manifests: Manifests) -> Iterator[str]:
    """What the operator would refuse."""
    name = manifests.service["metadata"]["name"]
    if len(name) > _LONGEST_NAME or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"the RayService's name {name!r} is not a DNS label of at most {_LONGEST_NAME} characters"
    for group in (manifests.head, *manifests.groups):
        yield from _group(group)
    yield from _sizes(manifests)
    yield from _head(manifests)
    yield from _autoscaler(manifests)
    yield from _tokens(manifests)
    yield from _service(manifests)


def _group(group: Group) -> Iterator[str]:
    parameters = group.spec.get("rayStartParams", {})
    if group.spec.get("resources") and any(key in parameters for key in _RESOURCES):
        yield f"{group.pod.name}: resources are both in rayStartParams and in resources"
    if "labels" in parameters:
        yield f"{group.pod.name}: labels stand in rayStartParams; they belong in labels"
    for key, value in group.labels.items():
        if not re.fullmatch(_LABEL_KEY, key) or not re.fullmatch(_LABEL_VALUE, value):
            yield f"{group.pod.name}: {key}={value} is no label"
    if not group.pod.container["name"].startswith("ray-"):
        yield f"{group.pod.name}: the first container must be Ray's, not {group.pod.container['name']}"


def _sizes(manifests: Manifests) -> Iterator[str]:
    names = [group.name for group in manifests.groups]
    if len(set(names)) < len(names):
        yield f"two worker groups have one name: {sorted(names)}"
    for group in manifests.groups:
        least, most = group.spec["minReplicas"], group.spec["maxReplicas"]
        if not 0 <= least <= most:
            yield f"{group.pod.name}: minReplicas {least} and maxReplicas {most} do not fit each other"
        if not least <= group.spec.get("replicas", least) <= most:
            yield f"{group.pod.name}: replicas is not between minReplicas and maxReplicas"


def _head(manifests: Manifests) -> Iterator[str]:
    head = manifests.cluster["headGroupSpec"]
    tolerant = "gcsFaultToleranceOptions" in manifests.cluster
    for variable in _REDIS:
        if variable in manifests.head.pod.environment:
            yield f"the head sets {variable}; gcsFaultToleranceOptions says it"
    for parameter in ("redis-password", "redis-username"):
        if tolerant and parameter in head.get("rayStartParams", {}):
            yield f"the head's rayStartParams have {parameter}; gcsFaultToleranceOptions says it"
    if "name" in head.get("headService", {}).get("metadata", {}):
        yield "headService.metadata.name may not be set"
    if manifests.cluster.get("gcsFaultToleranceOptions", {}).get("backend", "redis") != "redis":
        yield "gcsFaultToleranceOptions.backend needs a feature gate that is off by default"


def _autoscaler(manifests: Manifests) -> Iterator[str]:
    cluster = manifests.cluster
    second = cluster.get("autoscalerOptions", {}).get("version") == "v2"
    on = cluster.get("enableInTreeAutoscaling", False)
    if "RAY_enable_autoscaler_v2" in manifests.head.pod.environment and (second or not on):
        yield "RAY_enable_autoscaler_v2 may not be set beside autoscalerOptions.version, nor without an autoscaler"
    for group in (manifests.head, *manifests.groups):
        if on and group.spec.get("suspend"):
            yield f"{group.pod.name}: no group can be suspended while there is an autoscaler"
        if on and second and group.pod.spec.get("restartPolicy", "Never") != "Never":
            yield f"{group.pod.name}: restartPolicy must be Never with the second autoscaler"
        if not (on and second) and any(key in group.spec for key in ("idleTimeoutSeconds", "priority")):
            yield f"{group.pod.name}: idleTimeoutSeconds and priority need autoscalerOptions.version v2"


def _tokens(manifests: Manifests) -> Iterator[str]:
    options = manifests.cluster.get("authOptions", {})
    version = manifests.cluster.get("rayVersion", "")
    if options.get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth is not for a RayService"
    if options.get("mode") == "token":
        numbers = tuple(int(part) for part in version.split(".")) if re.fullmatch(r"\d+\.\d+\.\d+", version) else ()
        if numbers < _LEAST_RAY_WITH_TOKENS:
            yield f"authOptions.mode token needs a rayVersion of at least 2.52.0, not {version!r}"


def _service(manifests: Manifests) -> Iterator[str]:
    spec = manifests.service["spec"]
    kind = spec.get("upgradeStrategy", {}).get("type", "NewCluster")
    if kind not in ("NewCluster", "None"):
        yield f"upgradeStrategy.type {kind} needs a gateway, and its options"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds is negative"
    for gated in ("networkPolicy", "tlsOptions", "historyServerOptions"):
        if gated in manifests.cluster:
            yield f"{gated} needs a feature gate that is off by default"
