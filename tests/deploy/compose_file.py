"""The compose file, and what is held against it."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from jsonschema import Draft201909Validator  # type: ignore[import-untyped]
from ray.serve.schema import ServeDeploySchema

from deploy.checks.environment import unread
from deploy.checks.serve_config import unknown_keys
from deploy.checks.versions import image_faults
from headrace_cluster.config.settings import load_config

__all__ = ["DEPLOY", "compose_faults", "compose_file"]

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
_SCHEMA: Final = Path(__file__).parent / "schemas" / "compose-spec-2021.schema.json.gz"
"""Compose's own specification (Apache-2.0)."""
_LEAST_GRACE_S: Final = 20


def compose_file() -> dict[str, Any]:
    """As it is written."""
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return content


def compose_faults(content: dict[str, Any]) -> list[str]:
    """All that is wrong with it."""
    known = {key: value for key, value in content.items() if not key.startswith("x-")}
    broken = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in _validator().iter_errors(known)
    ]
    return broken or [*_services(known), *_configuration()]


def _validator() -> Draft201909Validator:
    return Draft201909Validator(json.loads(gzip.decompress(_SCHEMA.read_bytes())))


def _services(content: dict[str, Any]) -> Iterator[str]:
    services = content["services"]
    for name, service in services.items():
        faults = (
            *image_faults(service["image"]),
            *unread(service.get("environment", {}).items()),
            *_names(service, services),
            *_volumes(service, content.get("volumes", {})),
            *_ports(service),
            *_times(service),
        )
        yield from (f"{name}: {fault}" for fault in faults)
    command = services["redis"]["command"]
    if command[command.index("--appendonly") + 1] != "yes" or not services["redis"].get("volumes"):
        yield "redis keeps no append-only file"


def _names(service: dict[str, Any], services: dict[str, Any]) -> Iterator[str]:
    for needed, how in service.get("depends_on", {}).items():
        if needed not in services:
            yield f"waits for {needed}, which is no service"
        elif how["condition"] == "service_healthy" and "healthcheck" not in services[needed]:
            yield f"waits for {needed} to be healthy, which nobody looks after"
    for word in re.findall(r"(?:--address=|redis://)(?:http://)?([a-z]+):\d+", json.dumps(service)):
        if word not in services:
            yield f"{word} is no service"


def _volumes(service: dict[str, Any], volumes: dict[str, Any]) -> Iterator[str]:
    for volume in service.get("volumes", []):
        source = volume.partition(":")[0]
        if not ((DEPLOY / source).exists() if source.startswith(".") else source in volumes):
            yield f"there is no {source}"


def _ports(service: dict[str, Any]) -> Iterator[str]:
    for port in service.get("ports", []):
        if not port.startswith("127.0.0.1:"):
            yield f"the port {port} is open to other machines"


def _times(service: dict[str, Any]) -> Iterator[str]:
    drain = service.get("environment", {}).get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")
    if drain and int(service.get("stop_grace_period", "10s")[:-1]) < int(drain) + _LEAST_GRACE_S:
        yield f"the grace is too short for a drain of {drain} s"


def _configuration() -> Iterator[str]:
    serve = yaml.safe_load((DEPLOY / "compose" / "serve.yaml").read_text("utf-8"))
    ServeDeploySchema.model_validate(serve)
    yield from (f"serve.yaml: {place} is no key of Serve's" for place in unknown_keys(serve, ServeDeploySchema))
    config = load_config(DEPLOY / "compose" / "models.yaml")
    cores = config.router.cpus * config.router.replicas
    cores += sum(pool.cpus * pool.replicas for model in config.models.values() for pool in model.pools)
    worker = next(word for word in compose_file()["services"]["worker"]["command"] if word.startswith("--num-cpus="))
    if cores > float(worker.partition("=")[2]):
        yield f"the models want {cores} cores, and the worker has {worker}"
