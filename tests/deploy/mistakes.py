"""Mistakes that a person could make in the manifests, each planted on purpose.

They are made in the overlay `gpu-spot`, which has everything; each says which words it must be found with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from deploy.kustomization import Object

__all__ = ["MISTAKES", "Mistake"]


class Mistake(NamedTuple):
    """One of them."""

    name: str
    plant: Callable[[list[Object]], object]
    found_by: str
    """A regular expression that one of the findings matches."""


def _of(objects: list[Object], kind: str, name: str) -> Object:
    [found] = [found for found in objects if (found["kind"], found["metadata"]["name"]) == (kind, name)]
    return found


def _spec(objects: list[Object]) -> Object:
    found: Object = _of(objects, "RayService", "headrace")["spec"]
    return found


def _cluster(objects: list[Object]) -> Object:
    found: Object = _spec(objects)["rayClusterConfig"]
    return found


def _group(objects: list[Object], name: str) -> Object:
    groups = {"head": _cluster(objects)["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in _cluster(objects)["workerGroupSpecs"]}
    found: Object = groups[name]
    return found


def _pod(objects: list[Object], name: str) -> Object:
    found: Object = _group(objects, name)["template"]["spec"]
    return found


def _ray(objects: list[Object], name: str) -> Object:
    found: Object = _pod(objects, name)["containers"][0]
    return found


def _server(objects: list[Object], name: str) -> Object:
    found: Object = _of(objects, "StatefulSet", name)["spec"]["template"]["spec"]
    return found


def _budget(objects: list[Object]) -> Object:
    found: Object = _of(objects, "PodDisruptionBudget", "headrace-cpu")["spec"]
    return found


def _policy(objects: list[Object], name: str) -> Object:
    found: Object = _of(objects, "NetworkPolicy", name)["spec"]
    return found


def _serve(objects: list[Object], old: str, new: str) -> None:
    """Change the text of the Serve config."""
    text = _spec(objects)["serveConfigV2"]
    assert old in text
    _spec(objects)["serveConfigV2"] = text.replace(old, new)


def _config_map(objects: list[Object], start: str, old: str, new: str) -> None:
    """Change the only file of a ConfigMap."""
    [found] = [
        found for found in objects if found["kind"] == "ConfigMap" and found["metadata"]["name"].startswith(start)
    ]
    [(key, text)] = found["data"].items()
    assert old in text
    found["data"][key] = text.replace(old, new)


def _rename(node: Object, old: str, new: str) -> None:
    node[new] = node.pop(old)


def _set(node: Any, key: Any, value: Any) -> None:
    node[key] = value


def _variable(objects: list[Object], group: str, name: str, value: str = "1") -> None:
    _ray(objects, group).setdefault("env", []).append({"name": name, "value": value})


def _drain(objects: list[Object], group: str, value: str) -> None:
    [entry] = [entry for entry in _ray(objects, group)["env"] if entry["name"].startswith("RAY_GRACEFUL")]
    entry["value"] = value


_SCHEMA: Final = (
    Mistake("misspelt-field", lambda o: _rename(_group(o, "cpu"), "minReplicas", "minReplicaz"), "minReplicaz"),
    Mistake("number-as-text", lambda o: _set(_group(o, "cpu"), "maxReplicas", "8"), "maxReplicas: '8' is not of type"),
    Mistake(
        "parameter-as-number", lambda o: _set(_group(o, "head")["rayStartParams"], "num-cpus", 0), "num-cpus: 0 is"
    ),
    Mistake("strange-strategy", lambda o: _set(_spec(o), "upgradeStrategy", {"typ": "None"}), "upgradeStrategy.*'typ'"),
    Mistake("group-without-size", lambda o: _group(o, "gpu").pop("maxReplicas"), "'maxReplicas' is a required"),
    Mistake("old-api", lambda o: _set(_of(o, "RayService", "headrace"), "apiVersion", "ray.io/v2"), "no such kind"),
    Mistake("misspelt-core-field", lambda o: _rename(_server(o, "headrace-redis"), "volumes", "volume"), "volume"),
    Mistake("budget-field", lambda o: _rename(_budget(o), "minAvailable", "minAvaliable"), "minAvaliable"),
)

_OPERATOR: Final = (
    Mistake(
        "labels-in-parameters", lambda o: _set(_group(o, "gpu")["rayStartParams"], "labels", "a=b"), "belong in labels"
    ),
    Mistake("label-syntax", lambda o: _set(_group(o, "cpu")["labels"], "a b", "c"), "a b=c is no label"),
    Mistake("resources-twice", lambda o: _set(_group(o, "head"), "resources", {"CPU": "1"}), "both in rayStartParams"),
    Mistake("more-than-most", lambda o: _set(_group(o, "cpu"), "minReplicas", 9), "minReplicas 9 and maxReplicas 8"),
    Mistake(
        "restarting-pods", lambda o: _set(_pod(o, "cpu"), "restartPolicy", "Always"), "restartPolicy must be Never"
    ),
    Mistake("first-autoscaler", lambda o: _set(_cluster(o)["autoscalerOptions"], "version", "v1"), "need .* v2"),
    Mistake("autoscaler-twice", lambda o: _variable(o, "head", "RAY_enable_autoscaler_v2"), "may not be set beside"),
    Mistake(
        "redis-by-variable", lambda o: _variable(o, "head", "RAY_REDIS_ADDRESS"), "gcsFaultToleranceOptions says it"
    ),
    Mistake("no-ray-version", lambda o: _cluster(o).pop("rayVersion"), "needs a rayVersion of at least 2.52.0"),
    Mistake("long-name", lambda o: _set(_of(o, "RayService", "headrace")["metadata"], "name", "h" * 48), "at most 47"),
    Mistake("two-of-one-name", lambda o: _set(_group(o, "gpu-spot"), "groupName", "gpu"), "have one name"),
    Mistake("gated-tls", lambda o: _set(_cluster(o), "tlsOptions", {}), "feature gate"),
)

_SERVE: Final = (
    Mistake(
        "unknown-serve-key", lambda o: _serve(o, "max_replicas_per_node", "max_replica_per_node"), "no key of Serve's"
    ),
    Mistake("unknown-actor-option", lambda o: _serve(o, "num_gpus", "num_gpu"), "num_gpu is no key"),
    Mistake("proxy-on-the-head", lambda o: _serve(o, "EveryNode", "HeadOnly"), "must be EveryNode"),
    Mistake("no-route", lambda o: _serve(o, "route_prefix: /health", "route_prefix: null"), "without a route_prefix"),
    Mistake("wrong-module", lambda o: _serve(o, "headrace_cluster.app", "headrace_cluster.application"), "no module"),
    Mistake("wrong-function", lambda o: _serve(o, "app:build", "app:builder"), "has no builder"),
    Mistake("unknown-argument", lambda o: _serve(o, "{config:", "{configuration:"), "args"),
    Mistake(
        "path-not-mounted", lambda o: _serve(o, "/etc/headrace/models.yaml", "/etc/models.yaml"), "no file /etc/models"
    ),
    Mistake("pool-forgotten", lambda o: _config_map(o, "headrace-models", "name: gpu,", "name: gpu2,"), "minilm@gpu2"),
    Mistake(
        "other-cores", lambda o: _serve(o, "num_cpus: 2, num_gpus: 1", "num_cpus: 1, num_gpus: 1"), "models.yaml says"
    ),
    Mistake("no-selector", lambda o: _serve(o, ", label_selector: {headrace.io/pool: gpu}", ""), "is not told"),
    Mistake("broken-yaml", lambda o: _serve(o, "applications:", "applications: ["), "is not valid"),
    Mistake(
        "unknown-model-key", lambda o: _config_map(o, "headrace-models", "call_timeout_s", "timeout_s"), "timeout_s"
    ),
)

_NAMES: Final = (
    Mistake(
        "missing-secret", lambda o: _set(_cluster(o)["authOptions"], "secretName", "ray-token"), "Secret ray-token"
    ),
    Mistake(
        "missing-key",
        lambda o: _set(_pod(o, "gpu")["volumes"][1]["secret"]["items"][0], "key", "uri"),
        "Secret headrace-redis with the key uri",
    ),
    Mistake("missing-volume", lambda o: _pod(o, "cpu")["volumes"].pop(), "mounts the volume cache"),
    Mistake(
        "missing-cache", lambda o: _ray(o, "cpu")["volumeMounts"].pop(), "nothing to write to is mounted at /cache"
    ),
    Mistake(
        "stale-config-map",
        lambda o: _set(_pod(o, "gpu-spot")["volumes"][0]["configMap"], "name", "headrace-models"),
        "there is no ConfigMap headrace-models",
    ),
    Mistake(
        "wrong-gcs-redis",
        lambda o: _set(_cluster(o)["gcsFaultToleranceOptions"], "redisAddress", "gcs-redis:6379"),
        "which is no Service here",
    ),
    Mistake(
        "one-redis-for-both",
        lambda o: _set(_cluster(o)["gcsFaultToleranceOptions"], "redisAddress", "headrace-redis:6379"),
        "in one Redis",
    ),
    Mistake(
        "service-selects-nothing",
        lambda o: _set(_of(o, "Service", "headrace-redis")["spec"]["selector"], "app.kubernetes.io/component", "redis"),
        r"selects \[\]",
    ),
    Mistake("percentage", lambda o: _set(_budget(o), "minAvailable", "50%"), "needs a number"),
    Mistake("budget-without-room", lambda o: _set(_budget(o), "minAvailable", 2), "no drain could end"),
    Mistake("misspelt-variable", lambda o: _variable(o, "cpu", "HEADRACE_ROUTER__REPLICA"), "router"),
    Mistake("unknown-variable", lambda o: _variable(o, "cpu", "HEADRACE_ROUTERS"), "HEADRACE_ROUTERS is no setting"),
    Mistake(
        "misspelt-ray-variable", lambda o: _variable(o, "cpu", "RAY_GRACEFUL_DRAIN_TIMEOUT_S"), "no variable of Ray's"
    ),
)

_FIT: Final = (
    Mistake("wrong-label", lambda o: _set(_group(o, "cpu"), "labels", {"pool": "cpu"}), "which no group has"),
    Mistake("swapped-resource", lambda o: _swap(o), "does not fit on a node of gpu"),
    Mistake("too-small-a-node", lambda o: _set(_ray(o, "cpu")["resources"]["requests"], "cpu", "1"), "does not fit"),
    Mistake("too-few-nodes", lambda o: _few(o), "come to 4 at most"),
    Mistake("gpu-without-toleration", lambda o: _pod(o, "gpu").pop("tolerations"), "does not tolerate"),
    Mistake(
        "cpu-image-on-gpus", lambda o: _set(_ray(o, "gpu"), "image", _ray(o, "cpu")["image"]), "GPUs and the image"
    ),
    Mistake("replicas-on-the-head", lambda o: _group(o, "head")["rayStartParams"].pop("num-cpus"), "head offers CPUs"),
    Mistake("nervous-idle-time", lambda o: _set(_group(o, "cpu"), "idleTimeoutSeconds", 5), "should be at least 60"),
    Mistake(
        "short-grace", lambda o: _pod(o, "cpu").pop("terminationGracePeriodSeconds"), "a grace of 30 s is too short"
    ),
    Mistake("short-drain", lambda o: _drain(o, "gpu", "30"), "a drain of 30 s is too short"),
    Mistake("no-drain", lambda o: _ray(o, "cpu")["env"].clear(), "does not say RAY_GRACEFUL"),
    Mistake("long-spot-grace", lambda o: _set(_pod(o, "gpu-spot"), "terminationGracePeriodSeconds", 300), "spot node"),
    Mistake("spot-anywhere", lambda o: _pod(o, "gpu-spot").pop("nodeSelector"), "has no nodeSelector"),
    Mistake("hasty-deletion", lambda o: _set(_spec(o), "rayClusterDeletionDelaySeconds", 60), "deleted after 60 s"),
    Mistake(
        "slower-batches",
        lambda o: _config_map(o, "headrace-models", "call_timeout_s: 60", "call_timeout_s: 600"),
        "600",
    ),
)


def _swap(objects: list[Object]) -> None:
    limits = _ray(objects, "gpu")["resources"]["limits"]
    _rename(limits, "nvidia.com/gpu", "nvidia.com/gpus")


def _few(objects: list[Object]) -> None:
    _group(objects, "cpu").update(minReplicas=1, maxReplicas=1)


_RIGHTS: Final = (
    Mistake("root", lambda o: _pod(o, "head")["securityContext"].pop("runAsNonRoot"), "may run as root"),
    Mistake("writable-root", lambda o: _ray(o, "cpu")["securityContext"].pop("readOnlyRootFilesystem"), "may write"),
    Mistake("capabilities", lambda o: _ray(o, "gpu")["securityContext"].pop("capabilities"), "keeps capabilities"),
    Mistake("host-network", lambda o: _set(_pod(o, "cpu"), "hostNetwork", True), "the host's hostNetwork"),
    Mistake(
        "host-path",
        lambda o: _set(_pod(o, "cpu")["volumes"], 4, {"name": "cache", "hostPath": {"path": "/cache"}}),
        "hostPath.* is no volume",
    ),
    Mistake("sidecar-rights", lambda o: _cluster(o)["autoscalerOptions"].pop("securityContext"), "the autoscaler: may"),
    Mistake(
        "no-tokens", lambda o: _set(_cluster(o)["authOptions"], "mode", "disabled"), "authOptions.mode is not token"
    ),
    Mistake(
        "account-token", lambda o: _pod(o, "cpu").pop("automountServiceAccountToken"), "has a token for Kubernetes"
    ),
    Mistake("lax-namespace", lambda o: _of(o, "Namespace", "headrace")["metadata"].pop("labels"), "does not enforce"),
    Mistake("no-memory-limit", lambda o: _ray(o, "cpu")["resources"]["limits"].pop("memory"), "no limit of memory"),
    Mistake("cpu-limit", lambda o: _set(_ray(o, "cpu")["resources"]["limits"], "cpu", "4"), "has a limit of CPU"),
    Mistake("open-head", lambda o: _policy(o, "headrace-ray")["ingress"].append({}), "somebody can reach ray-head"),
    Mistake("no-dns", lambda o: o.remove(_of(o, "NetworkPolicy", "headrace-dns")), "cannot reach kube-system"),
    Mistake("gcs-for-all", lambda o: _policy(o, "headrace-gcs-redis")["ingress"].append({}), "can reach gcs-redis"),
    Mistake(
        "clients-shut-out", lambda o: _policy(o, "headrace-redis")["ingress"][0]["from"].pop(), "a producer cannot"
    ),
    Mistake("no-default", lambda o: o.remove(_of(o, "NetworkPolicy", "headrace-nothing-else")), "and should not"),
)

_REDIS: Final = (
    Mistake(
        "no-file", lambda o: _config_map(o, "headrace-redis", "appendonly yes", "appendonly no"), "keeps no append"
    ),
    Mistake("evicting", lambda o: _config_map(o, "headrace-redis", "noeviction", "allkeys-lru"), "throws keys away"),
    Mistake(
        "lazy-sync",
        lambda o: _config_map(o, "headrace-redis", "appendfsync always", "appendfsync everysec"),
        "asks for",
    ),
    Mistake("no-password", lambda o: _config_map(o, "headrace-redis", "include ", "# "), "asks for no password"),
    Mistake(
        "no-room-for-a-rewrite",
        lambda o: _set(_server(o, "headrace-redis")["containers"][0]["args"], 1, "4gb"),
        "does not leave room",
    ),
    Mistake(
        "no-volume", lambda o: _of(o, "StatefulSet", "headrace-redis")["spec"].pop("volumeClaimTemplates"), "volume"
    ),
)

_VERSIONS: Final = (
    Mistake("other-ray", lambda o: _set(_cluster(o), "rayVersion", "2.59.0"), "rayVersion is 2.59.0"),
    Mistake("old-image", lambda o: _set(_ray(o, "cpu"), "image", "registry/headrace-cpu:0.0.9"), "not of version"),
    Mistake("latest", lambda o: _set(_ray(o, "cpu"), "image", "registry/headrace-cpu:latest"), "has no version"),
    Mistake("image-not-filled-in", lambda o: _set(_ray(o, "gpu-spot"), "image", "headrace-cuda"), "has no version"),
    Mistake(
        "server-with-holes",
        lambda o: _set(_server(o, "headrace-redis")["containers"][0], "image", "docker.io/valkey/valkey:8.1.3"),
        "has known holes: CVE",
    ),
)

MISTAKES: Final = (*_SCHEMA, *_OPERATOR, *_SERVE, *_NAMES, *_FIT, *_RIGHTS, *_REDIS, *_VERSIONS)
