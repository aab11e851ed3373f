"""Who can speak to whom: what must be possible is, and what must not be is not.

The policies are evaluated as Kubernetes does: a pod that any policy of a direction selects may do in that direction
what one of them allows, and nothing else; both ends have to agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from deploy.kustomization import Object
from deploy.manifests import Manifests

__all__ = ["findings"]

_OURS: Final = "headrace"


@dataclass(frozen=True)
class _End:
    """One end of a connection: a pod, or an address outside of the cluster."""

    name: str
    namespace: str | None
    labels: dict[str, str] = field(default_factory=dict)
    namespace_labels: dict[str, str] = field(default_factory=dict)


def _ours(component: str) -> _End:
    labels = {"app.kubernetes.io/part-of": "headrace", "app.kubernetes.io/component": component}
    return _End(component, _OURS, labels, {"kubernetes.io/metadata.name": _OURS})


def _other(name: str, **labels: str) -> _End:
    return _End(name, name, {}, {"kubernetes.io/metadata.name": name, **labels})


_HEAD, _WORKER = _ours("ray-head"), _ours("ray-worker")
_GCS_REDIS, _JOBS_REDIS = _ours("gcs-redis"), _ours("jobs-redis")
_OUTSIDE = _End("an address outside", None)
_PRODUCER = _End("a producer", "shop", {}, {"kubernetes.io/metadata.name": "shop", "headrace.io/clients": "true"})
_STRANGER = _other("somebody")

_MUST: Final = (
    (_WORKER, _HEAD, 6379),
    (_HEAD, _WORKER, 30001),
    (_WORKER, _WORKER, 30001),
    (_other("kuberay-system"), _HEAD, 8265),
    (_other("kuberay-system"), _HEAD, 8000),
    (_other("monitoring"), _HEAD, 8080),
    (_other("monitoring"), _WORKER, 8080),
    (_HEAD, _other("kube-system"), 53),
    (_WORKER, _other("kube-system"), 53),
    (_HEAD, _GCS_REDIS, 6379),
    (_HEAD, _OUTSIDE, 6443),
    (_WORKER, _OUTSIDE, 443),
)
_MUST_WITH_REDIS: Final = ((_HEAD, _JOBS_REDIS, 6379), (_WORKER, _JOBS_REDIS, 6379), (_PRODUCER, _JOBS_REDIS, 6379))
_MUST_NOT: Final = (
    (_STRANGER, _HEAD, 8265),
    (_STRANGER, _HEAD, 6379),
    (_STRANGER, _WORKER, 8000),
    (_PRODUCER, _HEAD, 8265),
    (_other("monitoring"), _HEAD, 8265),
    (_STRANGER, _JOBS_REDIS, 6379),
    (_STRANGER, _GCS_REDIS, 6379),
    (_PRODUCER, _GCS_REDIS, 6379),
    (_WORKER, _GCS_REDIS, 6379),
    (_JOBS_REDIS, _HEAD, 8265),
    (_GCS_REDIS, _OUTSIDE, 443),
    (_JOBS_REDIS, _OUTSIDE, 443),
    (_WORKER, _OUTSIDE, 22),
    (_STRANGER, _ours("what somebody adds"), 80),
)


def findings(manifests: Manifests) -> Iterator[str]:
    """What cannot speak to what it needs, and what can though it should not."""
    policies = manifests.of("NetworkPolicy")
    here = any(pod.labels.get("app.kubernetes.io/component") == "jobs-redis" for pod in manifests.servers)
    for source, target, port in (*_MUST, *(_MUST_WITH_REDIS if here else ())):
        if not _may(policies, source, target, port):
            yield f"{source.name} cannot reach {target.name} on port {port}"
    for source, target, port in _MUST_NOT:
        if _may(policies, source, target, port):
            yield f"{source.name} can reach {target.name} on port {port}, and should not"
    components = {pod.labels.get("app.kubernetes.io/component") for pod in manifests.pods}
    if strange := components - {"ray-head", "ray-worker", "gcs-redis", "jobs-redis"}:
        yield f"no policy knows pods with the component {strange}"


def _may(policies: list[Object], source: _End, target: _End, port: int) -> bool:
    return _agrees(policies, "Egress", source, target, port) and _agrees(policies, "Ingress", target, source, port)


def _agrees(policies: list[Object], direction: str, end: _End, peer: _End, port: int) -> bool:
    if end.namespace != _OURS:
        return True  # what others allow is theirs
    concerned = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"] and _matches(policy["spec"]["podSelector"], end.labels)
    ]
    key, ends = direction.lower(), {"Ingress": "from", "Egress": "to"}[direction]
    rules = [rule for spec in concerned for rule in spec.get(key, [])]
    return not concerned or any(_peers(rule.get(ends), peer) and _ports(rule.get("ports"), port) for rule in rules)


def _peers(allowed: list[Object] | None, peer: _End) -> bool:
    return allowed is None or any(_is_peer(selector, peer) for selector in allowed)


def _is_peer(selector: Object, peer: _End) -> bool:
    if "ipBlock" in selector:
        return peer.namespace is None  # addresses of pods are not to be relied on
    if peer.namespace is None:
        return False
    if "namespaceSelector" in selector:
        in_namespace = _matches(selector["namespaceSelector"], peer.namespace_labels)
    else:
        in_namespace = peer.namespace == _OURS
    return in_namespace and _matches(selector.get("podSelector", {}), peer.labels)


def _ports(allowed: list[Object] | None, port: int) -> bool:
    return allowed is None or any(found.get("port", port) == port for found in allowed)


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    expressions: list[dict[str, Any]] = selector.get("matchExpressions", [])
    if any(expression["operator"] != "In" for expression in expressions):
        raise ValueError(f"{expressions} is not understood here")
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )
