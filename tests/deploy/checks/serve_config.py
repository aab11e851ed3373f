"""serveConfigV2 is text to Kubernetes, and Serve passes over keys that it does not know. Here neither is so."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from deploy.manifests import Manifests
from headrace.errors import ConfigError
from headrace_cluster.app import BuildArgs, pool_name

__all__ = ["findings", "unknown_keys", "unreadable"]


def findings(manifests: Manifests) -> Iterator[str]:
    """What Serve would not notice, or what would not work."""
    config = manifests.serve
    yield from (f"serveConfigV2: {place} is no key of Serve's" for place in unknown_keys(config, ServeDeploySchema))
    if config.get("proxy_location") != "EveryNode":
        yield "serveConfigV2: proxy_location must be EveryNode, or no worker is ever ready"
    for application in config["applications"]:
        yield from _application(application)
    yield from _deployments(manifests)


def unreadable(manifests: Manifests) -> Iterator[str]:
    """Texts in the manifests that are no Serve config or no configuration of ours."""
    try:
        ServeDeploySchema.model_validate(manifests.serve)
    except (ValidationError, yaml.YAMLError) as error:
        yield f"serveConfigV2 is not valid: {error}"
    try:
        _ = manifests.models
    except (ConfigError, yaml.YAMLError) as error:
        yield f"models.yaml is not valid: {error}"


def unknown_keys(value: Any, schema: type[BaseModel], place: str = "") -> Iterator[str]:
    """The places of keys that no field of a schema, or of those in it, has the name of."""
    for key, inner in value.items():
        field = schema.model_fields.get(key)
        if field is None:
            yield f"{place}{key}"
            continue
        for nested in _models_in(field.annotation):
            for item in inner if isinstance(inner, list) else [inner]:
                if isinstance(item, dict):
                    yield from unknown_keys(item, nested, f"{place}{key}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _application(application: dict[str, Any]) -> Iterator[str]:
    module, _, name = application["import_path"].partition(":")
    try:
        if not callable(getattr(importlib.import_module(module), name, None)):
            yield f"serveConfigV2: {module} has no {name}"
    except ImportError:
        yield f"serveConfigV2: there is no module {module}"
    try:
        BuildArgs.model_validate(application.get("args", {}))
    except ValidationError as error:
        yield f"serveConfigV2: args: {error.errors()[0]['msg']}: {error.errors()[0]['loc']}"
    if not application.get("route_prefix", "/"):
        yield "serveConfigV2: without a route_prefix no worker is ever ready"


def _deployments(manifests: Manifests) -> Iterator[str]:
    """Each deployment of the application is told where to run, and needs there what the configuration says."""
    models, router = manifests.models.models, manifests.models.router
    wanted = {"router": (router.cpus, 0.0)} | {
        pool_name(model, pool): (pool.cpus, pool.gpus) for model, hosted in models.items() for pool in hosted.pools
    }
    told = {deployment["name"]: deployment for deployment in manifests.application.get("deployments", [])}
    if set(told) != set(wanted):
        yield f"serveConfigV2 has the deployments {sorted(told)}; models.yaml makes {sorted(wanted)}"
    for name in set(told) & set(wanted):
        options = told[name].get("ray_actor_options", {})
        given = (options.get("num_cpus", 1.0), options.get("num_gpus", 0.0))
        if given != wanted[name]:
            yield f"serveConfigV2: {name} has (CPUs, GPUs) {given}; models.yaml says {wanted[name]}"
        if not options.get("label_selector"):
            yield f"serveConfigV2: {name} is not told by a label_selector where to run"
