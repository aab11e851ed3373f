"""Everything that is held against the manifests: each file one kind of question, each finding a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from deploy.checks import (
    environment,
    fit,
    network,
    operator_rules,
    redis_servers,
    references,
    schemas,
    security,
    serve_config,
    times,
    versions,
)
from deploy.kustomization import Object
from deploy.manifests import Manifests

__all__ = ["findings"]

_CHECKS: Final[tuple[Callable[[Manifests], Iterator[str]], ...]] = (
    operator_rules.findings,
    serve_config.findings,
    references.findings,
    fit.findings,
    times.findings,
    network.findings,
    redis_servers.findings,
    security.findings,
    environment.findings,
    versions.findings,
)


def findings(objects: list[Object]) -> list[str]:
    """All that is wrong with them; where they cannot be read, that alone, for the rest would stumble over it."""
    manifests = Manifests(objects)
    broken = [*schemas.findings(manifests)] or [*serve_config.unreadable(manifests)]
    return broken or [found for check in _CHECKS for found in check(manifests)]
