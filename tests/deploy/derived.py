"""What KubeRay's operator makes of a group: the command of its pod, the variables, the question whether it is ready.

After `pod.go` of v1.7.0. A cluster of two groups on this page and one on Kubernetes are started with the same words.
"""

from __future__ import annotations

from typing import Final

from deploy.manifests import Group, Manifests, amount

__all__ = ["HEAD_SERVICE", "RAYLET_LIVES", "READY_HEAD", "READY_WORKER", "command", "start_parameters", "variables"]

HEAD_SERVICE: Final = "headrace-head-svc.headrace.svc.cluster.local"
"""The operator adds a suffix to the cluster's name; it is resolved, and no more."""

_GCS_PORT: Final = 6379
_SWITCHES: Final = ("true", "false")
_NO_SWITCHES: Final = ("log-color", "include-dashboard", "include-log-monitor")
_WGET: Final = "wget --tries 1 -T {} -q -O- http://localhost:{}/{} | grep success"
RAYLET_LIVES: Final = _WGET.format(2, 52365, "api/local_raylet_healthz")
READY_HEAD: Final = " && ".join((RAYLET_LIVES, _WGET.format(10, 8265, "api/gcs_healthz")))
READY_WORKER: Final = " && ".join((RAYLET_LIVES, _WGET.format(10, 8000, "-/healthz")))


def start_parameters(manifests: Manifests, group: Group) -> dict[str, str]:
    """The parameters of `ray start`, in the order of the command."""
    told = dict(group.spec.get("rayStartParams", {}))
    if group is manifests.head:
        told.setdefault("dashboard-host", "0.0.0.0")
        if manifests.cluster.get("enableInTreeAutoscaling"):
            told["no-monitor"] = "true"
        if "redisPassword" in manifests.cluster.get("gcsFaultToleranceOptions", {}):
            told["redis-password"] = "$REDIS_PASSWORD"
    else:
        told.setdefault("address", f"{HEAD_SERVICE}:{_GCS_PORT}")
    if group.labels:
        told["labels"] = ",".join(f"{key}={value}" for key, value in sorted(group.labels.items()))
    told.setdefault("metrics-export-port", "8080")
    told["block"] = "true"
    told.setdefault("dashboard-agent-listen-port", "52365")
    if cpus := group.pod.resource("cpu"):
        told.setdefault("num-cpus", str(-int(-cpus // 1)))
    limits = group.pod.container.get("resources", {}).get("limits", {})
    if "memory" in limits:
        told.setdefault("memory", str(int(amount(limits["memory"]))))
    for name in sorted(limits):
        if name.rpartition("/")[2].startswith("gpu"):
            told.setdefault("num-gpus", str(int(amount(limits[name]))))
    return dict(sorted(told.items()))


def command(manifests: Manifests, group: Group) -> str:
    """What the pod's container runs in a shell."""
    words = ["ray start", *(["--head"] if group is manifests.head else [])]
    for name, value in start_parameters(manifests, group).items():
        if value.lower() in _SWITCHES and name not in _NO_SWITCHES:
            words += [f"--{name}"] if value.lower() == "true" else []
        else:
            words.append(f"--{name}={value}")
    return "ulimit -n 65536; " + " ".join(words)


def variables(manifests: Manifests, group: Group, secrets: dict[str, dict[str, str]], *, pod: str) -> dict[str, str]:
    """The container's variables: the manifest's, and those that the operator adds."""
    token = secrets[manifests.cluster["authOptions"]["secretName"]]["auth_token"]
    added = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_CLUSTER_NAME": "headrace",
        "RAY_CLOUD_INSTANCE_ID": pod,
        "RAY_NODE_TYPE_NAME": group.name,
        "RAY_PORT": str(_GCS_PORT),
        "RAY_timeout_ms_task_wait_for_death_info": "0",
        "RAY_gcs_server_request_timeout_seconds": "5",
        "RAY_SERVE_KV_TIMEOUT_S": "5",
    }
    if group is manifests.head:
        options = manifests.cluster["gcsFaultToleranceOptions"]
        reference = options["redisPassword"]["valueFrom"]["secretKeyRef"]
        added |= {
            "RAY_ADDRESS": f"127.0.0.1:{_GCS_PORT}",
            "RAY_REDIS_ADDRESS": options["redisAddress"],
            "REDIS_PASSWORD": secrets[reference["name"]][reference["key"]],
            "RAY_external_storage_namespace": "headrace-uid",
            "RAY_enable_autoscaler_v2": "true",
        }
    else:
        added |= {
            "RAY_ADDRESS": f"{HEAD_SERVICE}:{_GCS_PORT}",
            "FQ_RAY_IP": HEAD_SERVICE,
            "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
        }
    return {**added, **{name: value for name, value in group.pod.environment.items() if value is not None}}
